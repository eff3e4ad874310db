"""Mixup and CutMix against their closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import one_hot

from foveate.data import Augment
from foveate.data.mix import Mix

shares = st.floats(0, 1)


def pair(side: int = 10) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    images, partners = (
        torch.randint(0, 256, (4, 3, side, side), generator=generator, dtype=torch.uint8)
        for _ in range(2)
    )
    return images, partners, torch.tensor([0, 1, 2, 3]), torch.tensor([3, 1, 0, 2])


@given(keep=shares)
def test_mixup_is_the_weighted_mean(keep):
    images, partners, targets, others = pair()
    mixed, soft = Mix("mixup", keep).apply(images, partners, targets, others, 5)
    exact = keep * images.double() + (1 - keep) * partners.double()
    assert mixed.dtype == torch.uint8
    assert (mixed.double() - exact).abs().max() <= 0.5 + 1e-4
    expected = keep * one_hot(targets, 5) + (1 - keep) * one_hot(others, 5)
    torch.testing.assert_close(soft, expected.float())


@given(keep=shares, x=shares, y=shares)
def test_cutmix_pastes_one_box_and_weighs_by_its_area(keep, x, y):
    images, partners, targets, others = pair()
    images[:], partners[:] = 10, 200
    mixed, soft = Mix("cutmix", keep, x, y).apply(images, partners, targets, others, 5)
    pasted = mixed[0, 0] == 200
    rows, columns = pasted.any(1).sum().item(), pasted.any(0).sum().item()
    assert set(mixed.unique().tolist()) <= {10, 200}
    assert pasted.sum().item() == rows * columns
    assert torch.equal(pasted.expand_as(mixed), mixed == 200)
    share = pasted.double().mean()
    expected = (1 - share) * one_hot(targets, 5) + share * one_hot(others, 5)
    torch.testing.assert_close(soft, expected.float())


@pytest.mark.parametrize("keep", [0.19, 0.51, 0.84])
def test_a_cutmix_box_away_from_the_border_covers_the_drawn_share(keep):
    images, partners, targets, others = pair(side=200)
    soft = Mix("cutmix", keep, 0.5, 0.5).apply(images, partners, targets, others, 5)[1]
    assert soft[0, 0].item() == pytest.approx(keep, abs=0.01)


@given(kind=st.sampled_from(["mixup", "cutmix"]), keep=shares, x=shares, y=shares)
def test_mixed_targets_sum_to_one_and_inputs_stay_whole(kind, keep, x, y):
    images, partners, targets, others = pair()
    before = images.clone(), partners.clone()
    soft = Mix(kind, keep, x, y).apply(images, partners, targets, others, 4)[1]
    torch.testing.assert_close(soft.sum(1), torch.ones(4))
    assert soft.min() >= 0
    assert torch.equal(images, before[0])
    assert torch.equal(partners, before[1])


def test_batches_are_mixed_as_often_as_asked_and_both_ways_alike():
    augment = Augment(mixup=0.2, cutmix=1.0, mix=0.6)
    kinds = [Mix.drawn(augment, 0, 0, step).kind for step in range(3000)]
    counts = {kind: kinds.count(kind) / 3000 for kind in ("none", "mixup", "cutmix")}
    assert counts == pytest.approx({"none": 0.4, "mixup": 0.3, "cutmix": 0.3}, abs=0.035)


def test_nothing_is_mixed_without_an_alpha():
    assert Mix.drawn(Augment(), 0, 0, 0) == Mix("none")


def test_the_mix_is_a_function_of_seed_epoch_and_step():
    augment = Augment(mixup=1.0)
    here = Mix.drawn(augment, 1, 2, 3)
    assert here == Mix.drawn(augment, 1, 2, 3)
    others = [Mix.drawn(augment, *at).keep for at in ((0, 2, 3), (1, 0, 3), (1, 2, 0))]
    assert here.keep not in others


def test_mixing_keeps_channels_last():
    images, partners, targets, others = pair()
    last = images.contiguous(memory_format=torch.channels_last)
    mixed = Mix("mixup", 0.3).apply(last, partners, targets, others, 4)[0]
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(mixed, Mix("mixup", 0.3).apply(images, partners, targets, others, 4)[0])
