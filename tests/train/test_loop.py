"""The loop learns, stops where it should, and says what went wrong."""

import json

import pytest
import torch

from foveate import FoveateError
from foveate.data import Augment
from foveate.train import Ingredient, evaluate, train


def test_it_learns(squares, make_model, recipe, tmp_path):
    model = make_model()
    outcome = train(model, squares, recipe(epochs=8), tmp_path, progress=False)
    assert outcome.top1 >= 0.9
    assert evaluate(model, squares.splits["val"]).top1 == outcome.top1
    assert evaluate(model, squares.splits["test"]).top1 >= 0.9
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert losses[-1] < losses[0]
    assert len([line for line in lines if line["kind"] == "eval"]) == 8


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "lion", "RMSprop"])
def test_optimisers_by_name(squares, make_model, recipe, tmp_path, optimizer):
    before = evaluate(make_model(), squares.splits["train"]).loss
    model = make_model()
    settings = recipe(optimizer=optimizer, learning_rate=3e-3, epochs=4)
    train(model, squares, settings, tmp_path, progress=False)
    assert evaluate(model, squares.splits["train"]).loss < before


def test_everything_at_once(squares, make_model, recipe, tmp_path):
    settings = recipe(
        ema=0.9,
        clip=1.0,
        accumulate=2,
        layer_decay=0.8,
        drop_path=0.1,
        precision="bfloat16",
        augment=Augment(shift=1, flip="alternate", erase=0.3, mixup=0.2, cutmix=1.0, mix=0.5),
    )
    model = make_model("convnext_mini32", size=16)
    outcome = train(model, squares, settings, tmp_path, progress=False)
    assert outcome.steps == 3 * (len(squares.splits["train"]) // 16)
    assert 0 <= outcome.top1 <= 1


def test_accumulating_parts_gives_the_gradient_of_the_whole(squares, make_model, recipe, tmp_path):
    class Kept(Ingredient):
        def gradients(self, training):
            self.found = [p.grad.clone() for p in training.model.parameters()]

    found = []
    for parts in (1, 4):
        kept = Kept()
        model = make_model("convnext_mini32", size=16)
        settings = recipe(accumulate=parts, epochs=0.1, optimizer="adamw")
        train(model, squares, settings, tmp_path / str(parts), ingredients=[kept], progress=False)
        found.append(kept.found)
    for whole, summed in zip(*found, strict=True):
        torch.testing.assert_close(whole, summed, atol=1e-5, rtol=1e-3)


def test_a_loss_that_explodes_is_said(squares, make_model, recipe, tmp_path):
    with pytest.raises(FoveateError, match=r"lower the learning rate"):
        train(make_model(), squares, recipe(learning_rate=1e30), tmp_path, progress=False)


def test_patience_ends_it(squares, make_model, recipe, tmp_path):
    settings = recipe(patience=2, learning_rate=1e-9, epochs=20)
    outcome = train(make_model(), squares, settings, tmp_path, progress=False)
    assert outcome.epochs < 20


def test_minutes_end_it(squares, make_model, recipe, tmp_path):
    settings = recipe(epochs=None, minutes=0.03)
    outcome = train(make_model(), squares, settings, tmp_path, progress=False)
    assert outcome.seconds < 0.03 * 60 * 1.5
    assert outcome.steps > 3


def test_another_training_is_not_mixed_in(squares, make_model, recipe, tmp_path):
    train(make_model(), squares, recipe(), tmp_path, progress=False)
    with pytest.raises(FoveateError, match="learning_rate"):
        train(make_model(), squares, recipe(learning_rate=0.1), tmp_path, progress=False)


def test_unknown_optimiser_names_near_ones(squares, make_model, recipe, tmp_path):
    with pytest.raises(FoveateError, match="adamw"):
        train(make_model(), squares, recipe(optimizer="adamww"), tmp_path, progress=False)
