"""Two of four: by trying all pairs, in the compressed layout, and under integers."""

from itertools import combinations

import pytest
import torch
from torch import nn

from foveate import FoveateError
from foveate.surgery.gpusq_vit import Compressed, MaskTwoOfFour, two_of_four
from foveate.surgery.masks import masked
from foveate.surgery.quant_whitepaper import Quantise, QuantisedLayer


@pytest.mark.paper("gpusq_vit")
def test_the_best_two_of_each_four():
    weight = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    mask = two_of_four(weight)
    for row, chosen in zip(weight, mask, strict=True):
        for four, kept in zip(row.split(4), chosen.split(4), strict=True):
            best = max(combinations(range(4), 2), key=lambda pair: four[list(pair)].abs().sum())
            assert kept.nonzero().flatten().tolist() == list(best)
    kernel = torch.randn(4, 8, 3, 3)
    for i in range(3):
        for j in range(3):
            assert torch.equal(two_of_four(kernel)[..., i, j], two_of_four(kernel[..., i, j]))
    assert two_of_four(torch.zeros(2, 4)).sum() == 4


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 2, stride=2), nn.Conv2d(8, 16, 1), nn.Flatten(), nn.Linear(256, 32)
    ).eval()


def images():
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.paper("gpusq_vit")
def test_zeros_of_each_four_and_their_integers():
    edited, coverage = MaskTwoOfFour().apply(net())
    assert [line.why for line in coverage] == [
        "left because its 3 inputs are no multiple of 4",
        "50.00% of its weights held at zero",
        "50.00% of its weights held at zero",
    ]
    for weight in masked(edited).values():
        fours = (weight.value == 0).flatten(1).unflatten(1, (-1, 4))
        assert (fours.sum(-1) == 2).all()
    quantised, _ = Quantise().apply(edited, images())
    layers = [m for m in quantised.modules() if isinstance(m, QuantisedLayer)]
    for layer in layers[1:]:
        integers = layer.integers().weight.flatten(1).to(torch.int8)
        again = Compressed.of(integers)
        assert torch.equal(again.dense(), integers)
        dense = layer.layer.weight.numel() * 4
        assert dense / again.bytes == pytest.approx(6.4), "the paper's ratio"


@pytest.mark.paper("gpusq_vit")
def test_the_layout_holds_everything():
    matrix = torch.randn(5, 24, generator=torch.Generator().manual_seed(2))
    matrix = matrix * two_of_four(matrix)
    matrix[0] = 0
    matrix[1, 1:] = 0
    packed = Compressed.of(matrix)
    assert packed.values.shape == (5, 12)
    assert packed.positions.shape == (5, 3)
    assert torch.equal(packed.dense(), matrix)
    one = torch.tensor([[0.0, 5, 0, 7, 1, 2, 0, 0]])
    assert Compressed.of(one).positions.item() == 1 + 3 * 4 + 0 * 16 + 1 * 64
    assert Compressed.of(one).values.tolist() == [[5, 7, 1, 2]]


def test_mistakes():
    with pytest.raises(FoveateError, match="apply MaskTwoOfFour"):
        Compressed.of(torch.ones(2, 8))
    with pytest.raises(FoveateError, match="no layout"):
        Compressed.of(torch.zeros(2, 12))
