"""The fastest program computes what the network does, keeps the guard, and is remembered."""

from importlib import import_module

import numpy as np
import pytest
import torch
from torch import nn

from foveate import FoveateError
from foveate.deploy import fastest, load_fastest
from foveate.deploy.formats import to_openvino, write_program
from foveate.deploy.quantise import in_float, quantise, quantised_layers, run, with_fallback

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
module = import_module("foveate.deploy.fastest")


class Small(nn.Module):
    """Two convolutions with norms, one of them beside the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.mix, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        return self.head((x + self.norm(self.mix(x))).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_it_computes_what_the_network_does(model, images, tmp_path):
    made = fastest(model, images, batch=2, guard=0, seconds=0.02)
    expected = model(images).detach().numpy()
    for batch in (1, 2, 5):
        given = made(images[:batch])
        assert given.shape == (batch, 5)
        assert np.abs(given - expected[:batch]).max() < 0.1 * np.abs(expected).max()
    assert any("one convolution" in change for _, change in made.coverage)
    precisions = {row.precision for row in made.table}
    assert {"float32", "int8"} <= precisions
    float32 = [row for row in made.table if row.precision == "float32"]
    assert all(row.error < 1e-4 for row in float32)
    able = [row for row in made.table if not row.why]
    assert made.chosen == made.table[0]
    assert all(row.score >= 100 for row in able)
    made.save(tmp_path / "saved")
    again = load_fastest(tmp_path / "saved")
    assert again.chosen == made.chosen
    assert np.array_equal(again(images[:2]), made(images[:2]))


def test_what_was_measured_is_remembered(model, images, cache, monkeypatch):
    first = fastest(model, images, seconds=0.02)
    assert len(list(cache.rglob("*.json"))) == 1

    def never(*args):
        raise AssertionError("measured again")

    monkeypatch.setattr(module, "_measured", never)
    second = fastest(model, images)
    assert second.chosen == first.chosen
    assert np.array_equal(second(images[:1]), first(images[:1]))
    with pytest.raises(AssertionError, match="measured again"):
        fastest(model, images, again=True)
    with torch.no_grad():
        other = Small()
    with pytest.raises(AssertionError, match="measured again"):
        fastest(other.eval(), images)
    with pytest.raises(AssertionError, match="measured again"):
        fastest(model, images, targets=np.zeros(24, np.int64))
    with pytest.raises(AssertionError, match="measured again"):
        fastest(model, images, score=lambda logits: 100.0)


def test_who_judges_decides(model, images):
    """A judge whom only exact logits please gets no INT8."""
    expected = model(images).detach().numpy()

    def strict(logits):
        return 100.0 if np.allclose(logits, expected, atol=1e-4) else 0.0

    made = fastest(model, images, score=strict, seconds=0.02)
    assert made.chosen.precision == "float32"
    assert all(row.why for row in made.table if row.precision == "bfloat16")


def test_python_that_cannot_be_followed_is_deployed_as_it_comes(model, images, monkeypatch):
    def refuse(*args, **kwargs):
        raise FoveateError("the graph of Small cannot be captured")

    monkeypatch.setattr(module, "lean", refuse)
    made = fastest(model, images, seconds=0.02)
    assert {row.graph for row in made.table} == {"plain"}
    assert "cannot be captured" in made.coverage[0][1]


def test_layers_return_to_float_until_the_guard_is_kept(model, images, tmp_path):
    write_program(model, images, tmp_path / "small.onnx")
    program = to_openvino(tmp_path / "small.onnx")
    pixels = images.numpy()
    quantised = quantise(program, pixels)
    layers = quantised_layers(quantised)
    assert len(layers) == 3
    expected = run(program, pixels)
    whole = np.abs(run(quantised, pixels) - expected).max()
    assert whole > 0
    assert np.abs(run(in_float(quantised, layers), pixels) - expected).max() < whole

    def again(floats):
        return quantise(program, pixels, floats=floats)

    def keeps(model):
        return bool(np.abs(run(model, pixels) - expected).max() < whole)

    found = with_fallback(quantised, again, pixels, expected, keeps)
    assert found is not None
    edited, floats = found
    assert 1 <= len(floats) <= 2
    assert set(quantised_layers(edited)) == set(layers) - set(floats)
    assert np.abs(run(edited, pixels) - expected).max() < whole
    assert with_fallback(quantised, again, pixels, expected, lambda model: False) is None


def test_mistakes_are_said(model, images, tmp_path):
    with pytest.raises(FoveateError, match="two or more"):
        fastest(model, images[:1])
    with pytest.raises(FoveateError, match="batch 0"):
        fastest(model, images, batch=0)
    with pytest.raises(FoveateError, match="deploy the model again"):
        load_fastest(tmp_path)
