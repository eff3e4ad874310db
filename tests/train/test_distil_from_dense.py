"""The mixed loss as written, and what it does to a network of two in four and 8 bits."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from foveate.data import Batches
from foveate.errors import FoveateError
from foveate.surgery.gpusq_vit import MaskTwoOfFour
from foveate.surgery.masks import masked
from foveate.surgery.quant_whitepaper import Quantise
from foveate.train import Ingredient, train
from foveate.train.gpusq_vit import DistilFromDense, distance, divergence
from foveate.train.quant_whitepaper import QuantisationAware


@pytest.mark.paper("gpusq_vit")
def test_the_terms_as_written():
    torch.manual_seed(0)
    ours, theirs = torch.randn(5, 4), torch.randn(5, 4)
    p, q = ((x / 3).softmax(1) for x in (theirs, ours))
    written = 9 * (p * (p / q).log()).sum(1).mean()
    assert divergence(ours, theirs, 3.0).item() == pytest.approx(written.item(), rel=1e-5)
    assert divergence(ours, ours, 3.0).item() == pytest.approx(0, abs=1e-6)
    assert distance(ours, theirs).item() == pytest.approx(
        ((ours - theirs).square().sum() / theirs.square().sum()).item()
    )


class Spy(Ingredient):
    """Compares the loss with one written out, for the first step."""

    def __init__(self, teacher, points):
        self.teacher, self.points, self.checked = copy.deepcopy(teacher), points, 0

    def batch(self, training, batch):
        self.images = batch.images
        return batch

    def loss(self, training, logits, targets, loss):
        if not self.checked:
            found, shelves = copy.deepcopy(training.model), ({}, {})
            for model, shelf in zip((found.train(), self.teacher.eval()), shelves, strict=True):
                for name in self.points:
                    part = model.get_submodule(name)
                    part._forward_hooks.clear()
                    part.register_forward_hook(lambda m, i, o, s=shelf, n=name: s.update({n: o}))
            with torch.no_grad():
                found._forward_pre_hooks.clear()
                again, answers = found(self.images), self.teacher(self.images)
            torch.testing.assert_close(again, logits)
            written = 0.5 * cross_entropy(logits, targets, label_smoothing=0.1)
            written = written + 2.0 * divergence(logits, answers, 4.0)
            for name in self.points:
                written = written + 0.25 * distance(shelves[0][name], shelves[1][name])
            torch.testing.assert_close(loss, written)
        self.checked += 1
        return loss


@pytest.mark.paper("gpusq_vit")
def test_sparse_and_quantised_it_stays_near_to_the_dense(squares, make_model, recipe, tmp_path):
    dense = make_model()
    train(dense, squares, recipe(), tmp_path / "dense", progress=False)
    sparse, _ = MaskTwoOfFour().apply(dense)
    points = ("backbone.stages.0", "backbone.stages.1")
    spy = Spy(dense, points)
    distil = DistilFromDense(dense, points, hard=0.5, soft=2.0, features=0.25, temperature=4.0)
    settings = recipe(epochs=2, learning_rate=0.05)
    train(sparse, squares, settings, tmp_path / "a", ingredients=[distil, spy], progress=False)
    assert spy.checked > 0
    batches = Batches(split=squares.splits["train"], batch_size=64, size=8)
    images = [batch.images for batch in batches.epoch(0)]
    quantised, _ = Quantise().apply(sparse, images)
    parts = [DistilFromDense(dense), QuantisationAware()]
    train(quantised, squares, settings, tmp_path / "b", ingredients=parts, progress=False)
    kept = masked(quantised)
    assert kept
    for weight in kept.values():
        fours = weight.value.movedim(1, -1).unflatten(-1, (-1, 4))
        assert ((fours == 0).sum(-1) >= 2).all()


@pytest.mark.paper("gpusq_vit")
def test_a_student_learns_from_answers_alone(squares, make_model, recipe, tmp_path):
    dense = make_model()
    train(dense, squares, recipe(epochs=4), tmp_path / "dense", progress=False)
    settings, found = recipe(epochs=3, learning_rate=0.05), []
    images = next(iter(Batches(split=squares.splits["val"], batch_size=64, size=8).epoch(0))).images
    for soft in (0.0, 1.0):
        student, _ = MaskTwoOfFour().apply(dense)
        distil = DistilFromDense(dense, hard=0.2, soft=soft, features=0.0)
        folder = tmp_path / str(soft)
        train(student, squares, settings, folder, ingredients=[distil], progress=False)
        with torch.no_grad():
            found.append(divergence(student.eval()(images), dense.eval()(images), 2.0).item())
    assert found[1] < 0.8 * found[0]


def test_mistakes(squares, make_model, recipe, tmp_path):
    model = make_model()
    for fields in ({"temperature": 0}, {"soft": -1}):
        with pytest.raises(FoveateError, match=next(iter(fields))):
            DistilFromDense(model, **fields)
    wrong = DistilFromDense(model, ("nose",))
    with pytest.raises(FoveateError, match="points names 'nose'"):
        train(make_model(), squares, recipe(), tmp_path, ingredients=[wrong])
