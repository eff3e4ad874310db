"""The flow finds what was broken on purpose."""

import io

import pytest
import torch
from rich.console import Console

from foveate.errors import FoveateError
from foveate.surgery.quant_whitepaper_qualcomm.blame import blame, decibels
from foveate.surgery.quant_whitepaper_qualcomm.simulate import Simulate

pytestmark = pytest.mark.paper("quant_whitepaper_qualcomm")


@pytest.mark.parametrize(("name", "part"), [("wide", "weight"), ("deep", "output")])
def test_the_guilty_quantiser_is_found(net, images, name, part):
    model, _ = Simulate().apply(net, images)
    grid = getattr(getattr(model, name), f"{part}_grid")
    grid.set_range(0 * grid.high, 0.05 * grid.high)
    outputs = model(images)
    verdict = blame(model, decibels(model, images))
    first, second = verdict.suspects[:2]
    assert (first.name, first.part) == (name, part)
    assert verdict.kind == ("weights" if part == "weight" else "activations")
    assert verdict.plain == 200
    assert verdict.rounded < 25 < second.alone
    assert first.spared > verdict.rounded + 15
    assert all(s.spared < verdict.rounded + 3 for s in verdict.suspects[1:])
    assert torch.equal(model(images), outputs)
    page = io.StringIO()
    Console(file=page, width=100).print(verdict.table())
    assert f"{name} {part}" in page.getvalue()


def test_decibels(net, images):
    """A grid's noise is step² / 12: each bit is worth 6.02 decibels."""
    found = []
    for bits in (6, 7):
        model, _ = Simulate(weight_bits=bits, activation_bits=None).apply(net, images)
        found.append(decibels(model, images)(model))
    assert found[1] - found[0] == pytest.approx(6.02, abs=2)


def test_mistakes(net, images):
    with pytest.raises(FoveateError, match="apply Simulate to it first"):
        blame(net, lambda model: 0.0)
