"""Training with quantisation in the one loop: it mends, freezes and resumes."""

import pytest
import torch

from foveate.data import Batches
from foveate.errors import FoveateError
from foveate.surgery.quant_whitepaper import Quantise, QuantisedLayer
from foveate.train import Ingredient, evaluate, train
from foveate.train.quant_whitepaper import QuantisationAware


class Watch(Ingredient):
    """Remembers the statistics after each step, and can pull the plug."""

    def __init__(self, stop: int = -1) -> None:
        self.stop, self.seen = stop, []

    def step_end(self, training) -> None:
        layers = [m for m in training.model.modules() if isinstance(m, QuantisedLayer)]
        parts = [part for layer in layers for part in (layer.norm, layer.input, layer.output)]
        kept = [b.clone() for part in parts if part is not None for b in part.buffers()]
        self.seen.append((all(layer.frozen for layer in layers), kept))
        if training.clock.step == self.stop:
            raise InterruptedError


@pytest.mark.paper("quant_whitepaper")
def test_it_mends_few_bits_freezes_and_resumes(squares, make_model, recipe, tmp_path):
    model, settings = make_model(), recipe(epochs=3, precision="auto")
    train(model, squares, settings, tmp_path / "float", progress=False)
    batches = Batches(split=squares.splits["train"], batch_size=64, size=8)
    images = [batch.images for batch in batches.epoch(0)]
    edit = Quantise(weight_bits=2, activation_bits=4)
    few_bits, _ = edit.apply(model, images)
    loss = evaluate(few_bits, squares.splits["train"]).loss
    tuned = recipe(epochs=3, learning_rate=0.1)

    watch = Watch()
    parts = [QuantisationAware(0.5), watch]
    train(few_bits, squares, tuned, tmp_path / "a", ingredients=parts, progress=False)
    assert evaluate(few_bits, squares.splits["train"]).loss < 0.7 * loss
    frozen = [kept for done, kept in watch.seen if done]
    assert len(frozen) == pytest.approx(len(watch.seen) / 2, abs=1)
    assert all(map(torch.equal, frozen[0], frozen[-1]))
    assert not all(map(torch.equal, watch.seen[0][1], frozen[0]))

    for stop in (2, len(watch.seen) - 3, -1):
        again, _ = edit.apply(model, images)
        parts = [QuantisationAware(0.5), Watch(stop)]
        try:
            train(again, squares, tuned, tmp_path / "b", ingredients=parts, progress=False)
        except InterruptedError:
            continue
    whole, resumed = few_bits.state_dict(), again.state_dict()
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_mistakes(squares, make_model, recipe, tmp_path):
    with pytest.raises(FoveateError, match="freeze is 2"):
        QuantisationAware(2)
    with pytest.raises(FoveateError, match="apply Quantise"):
        train(make_model(), squares, recipe(), tmp_path, ingredients=[QuantisationAware()])
