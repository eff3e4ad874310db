"""Masks in the one loop: they close as written, hold after every step, and resume bit for bit."""

import copy
import math

import pytest
import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.surgery.gradual_pruning import MaskSmallest
from foveate.surgery.masks import Mask, Weight, masked, sparsity
from foveate.surgery.random_pruning import MaskAtRandom
from foveate.train import Ingredient, train
from foveate.train.gradual_pruning import GradualPruning, cubic_sparsity
from foveate.train.granet import GraNet, regenerate


class Watch(Ingredient):
    """Remembers the masks after each step, looks for leaks, and can pull the plug."""

    def __init__(self, stop: int = -1) -> None:
        self.stop, self.masks, self.progress = stop, [], []

    def batch(self, training, batch):
        assert all(not weight.value[~weight.mask].any() for weight in self._all(training))
        return batch

    def step_end(self, training) -> None:
        assert all(not weight.value[~weight.mask].any() for weight in self._all(training))
        self.masks.append([weight.mask.clone() for weight in self._all(training)])
        self.progress.append(training.clock.progress)
        if training.clock.step == self.stop:
            raise InterruptedError

    def _all(self, training):
        return list(masked(training.model).values())

    def held(self, step: int) -> float:
        masks = self.masks[step]
        return sum(int((~m).sum()) for m in masks) / sum(m.numel() for m in masks)


@pytest.mark.paper("gradual_pruning")
def test_the_schedule_is_the_papers():
    initial, final, begin, dt, n = 0.1, 0.9, 30, 10, 20
    for k in range(n + 1):
        t = begin + k * dt
        written = final + (initial - final) * (1 - (t - begin) / (n * dt)) ** 3
        assert cubic_sparsity((t - begin) / (n * dt), initial, final) == pytest.approx(written)
    assert cubic_sparsity(-1, initial, final) == pytest.approx(initial)
    assert cubic_sparsity(2, initial, final) == final


@pytest.mark.paper("gradual_pruning")
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_masks_close_by_the_schedule_and_hold(
    scope, optimizer, squares, make_model, recipe, tmp_path
):
    model, _ = Mask().apply(make_model())
    watch = Watch()
    parts = [GradualPruning(0.8, begin=0.2, end=0.7, every=3, scope=scope), watch]
    settings = recipe(epochs=4, optimizer=optimizer, learning_rate=0.02, ema=0.9)
    train(model, squares, settings, tmp_path, ingredients=parts, progress=False)
    due = 0.0
    for step, progress in enumerate(watch.progress):
        if 0.2 <= progress < 0.7 and (step + 1) % 3 == 0:
            due = cubic_sparsity((progress - 0.2) / 0.5, 0.0, 0.8)
        elif progress >= 0.7:
            due = 0.8
        assert watch.held(step) == pytest.approx(due, abs=0.01)
    for before, after in zip(watch.masks, watch.masks[1:], strict=False):
        assert all(not (b & ~a).any() for a, b in zip(before, after, strict=True))
    assert sparsity(model).share == pytest.approx(0.8, abs=0.01)
    assert all(not weight.value[~weight.mask].any() for weight in masked(model).values())
    layers = sparsity(model).layers.values()
    assert (max(layers) - min(layers) < 0.05) == (scope == "layer")


@pytest.mark.parametrize("make", [GradualPruning, GraNet])
def test_a_killed_run_resumes(make, squares, make_model, recipe, tmp_path):
    def run(folder, stop=-1):
        model, _ = MaskAtRandom(sparsity=0.3).apply(make_model())
        parts = [make(0.85, begin=0.1, end=0.6, every=2), Watch(stop)]
        settings = recipe(epochs=3, learning_rate=0.05)
        train(model, squares, settings, tmp_path / folder, ingredients=parts, progress=False)
        return model

    whole = run("a")
    for stop in (4, 13, 20):
        with pytest.raises(InterruptedError):
            run("b", stop)
    again = run("b").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in whole.state_dict().items())
    assert sparsity(whole).share == pytest.approx(0.85, abs=0.01)


@pytest.mark.paper("random_pruning")
def test_fixed_masks_stay_as_they_are(squares, make_model, recipe, tmp_path):
    model, _ = MaskAtRandom(sparsity=0.7).apply(make_model())
    masks = [weight.mask.clone() for weight in masked(model).values()]
    watch = Watch()
    train(model, squares, recipe(epochs=2), tmp_path, ingredients=[watch], progress=False)
    for seen in (*watch.masks, [weight.mask for weight in masked(model).values()]):
        assert all(map(torch.equal, seen, masks))
    assert watch.held(-1) == pytest.approx(0.7, abs=0.01)


def test_the_best_is_as_sparse_as_asked(squares, make_model, recipe, tmp_path):
    """A dense beginning that judged better is no result."""
    model, _ = Mask().apply(make_model())
    settings = recipe(epochs=3, learning_rate=0.1)
    parts = [GradualPruning(0.995, begin=0.5, end=0.9, every=1)]
    outcome = train(model, squares, settings, tmp_path, ingredients=parts, progress=False)
    assert sparsity(model).share == pytest.approx(0.995, abs=0.005)
    assert outcome.best_epoch == 3


@pytest.mark.paper("granet")
def test_regeneration_step_by_step():
    layer = nn.Linear(10, 1, bias=False)
    layer.weight.data = torch.tensor([[5.0, -1.0, 2.0, 0.5, -3.0, 4.0, 0, 0, 0, 0]])
    weight = Weight(layer, "weight")
    weight.give_mask()
    weight.set(layer.weight != 0)
    gradient = torch.tensor([[9.0, 9.0, 9.0, 1.0, 9.0, 9.0, 0.1, -6.0, 0.2, 3.0]])
    # 6 are free; a third of them, 0.5 and -1, are held; of what is held then, the gradients
    # 9 (of -1, which so comes back) and -6 are largest.
    new = regenerate(weight, gradient, 1 / 3)
    assert new[0].nonzero().flatten().tolist() == [7]
    assert layer.weight[0].tolist() == [5, -1, 2, 0, -3, 4, 0, 0, 0, 0]
    assert weight.mask[0].tolist() == [
        True,
        True,
        True,
        False,
        True,
        True,
        False,
        True,
        False,
        False,
    ]


@pytest.mark.paper("granet")
def test_granet_keeps_the_schedule_and_moves_masks(squares, make_model, recipe, tmp_path):
    model, _ = MaskAtRandom(sparsity=0.4, ratios="erk").apply(make_model())
    watch, seen = Watch(), Moments()
    parts = [GraNet(0.9, end=0.5, every=2, regrown=0.4), seen, watch]
    settings = recipe(epochs=4, optimizer="adamw", learning_rate=0.01)
    train(model, squares, settings, tmp_path, ingredients=parts, progress=False)
    for step, progress in enumerate(watch.progress):
        if (step + 1) % 2 == 0:
            due = cubic_sparsity(progress / 0.5, 0.4, 0.9)
            assert watch.held(step) == pytest.approx(due, abs=0.01)
    opened = [
        sum(int((b & ~a).sum()) for a, b in zip(before, after, strict=True))
        for before, after in zip(watch.masks, watch.masks[1:], strict=False)
    ]
    assert sum(opened[::2]) > 0
    assert sum(opened[1::2]) == 0, "masks move only every second step"
    assert opened[-1] <= max(opened) / 10, "and ever less"
    assert seen.checked > 0


class Moments(Ingredient):
    """Sees to it that what is freed begins at zero and without momentum."""

    def __init__(self) -> None:
        self.checked, self.before = 0, None

    def step_end(self, training) -> None:
        found = masked(training.model)
        for name, weight in found.items():
            if self.before is not None:
                freed = weight.mask & ~self.before[name]
                assert not weight.value[freed].any()
                for held in training.optimizer.state[weight.value].values():
                    if held.shape == freed.shape:
                        assert not held[freed].any()
                self.checked += int(freed.sum())
        self.before = {name: weight.mask.clone() for name, weight in found.items()}


def test_nothing_regrown_is_gradual_pruning(squares, make_model, recipe, tmp_path):
    model, _ = Mask().apply(make_model())
    twin, settings = copy.deepcopy(model), recipe(epochs=2, learning_rate=0.05)
    plain = GradualPruning(0.7, every=3, scope="global")
    train(model, squares, settings, tmp_path / "a", ingredients=[plain], progress=False)
    same = GraNet(0.7, every=3, regrown=0.0)
    train(twin, squares, settings, tmp_path / "b", ingredients=[same], progress=False)
    ours, theirs = model.state_dict(), twin.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_mistakes(squares, make_model, recipe, tmp_path):
    for fields, named in (
        ({"sparsity": 1.0}, "sparsity is 1"),
        ({"begin": 0.8}, "begin is 0.8"),
        ({"every": 0}, "every is 0"),
        ({"scope": "net"}, "scope is 'net'"),
    ):
        with pytest.raises(FoveateError, match=named):
            GradualPruning(**fields)
    with pytest.raises(FoveateError, match="regrown is 1"):
        GraNet(regrown=1.0)
    with pytest.raises(FoveateError, match="apply Mask"):
        train(make_model(), squares, recipe(), tmp_path, ingredients=[GradualPruning()])


def test_a_mask_of_what_was_pruned_at_once_is_where_the_schedule_begins(
    squares, make_model, recipe, tmp_path
):
    model, _ = MaskSmallest(sparsity=0.5).apply(make_model())
    watch = Watch()
    parts = [GradualPruning(0.5, every=1), watch]
    train(model, squares, recipe(epochs=1), tmp_path, ingredients=parts, progress=False)
    assert all(math.isclose(watch.held(i), watch.held(0)) for i in range(len(watch.masks)))
