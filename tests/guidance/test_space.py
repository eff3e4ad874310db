"""Compositions become models, by the edits that they name."""

import pytest
import torch

from foveate.compress import seen_by_edits
from foveate.guidance.bench import Lost
from foveate.guidance.sensitivity import Sensitivity
from foveate.guidance.space import Choice, Space
from foveate.surgery.lineage import lineage
from foveate.surgery.quant_whitepaper_qualcomm.simulate import Simulate

LAYERS = ("backbone.0", "backbone.3", "backbone.6", "backbone.11")


def rows(measured=4):
    """What layers cost, of which so many were measured."""
    return [
        Sensitivity("Simulate", name, "8 bits", Lost(0, 0, 0) if i < measured else None, i)
        for i, name in enumerate(LAYERS)
    ]


def space(model, digits, integers):
    return Space(model, 1, seen_by_edits(model, digits, 32), None, Simulate(), integers, [], None)


def test_a_corrected_composition_is_made_by_its_edits(trained, digits):
    made = space(trained, digits, rows()).made(Choice(numbers="int8", floats=1, corrected=True))
    assert [step["edit"] for step in lineage(made)] == ["Simulate", "CorrectBias", "Store"]
    assert isinstance(made.get_submodule(LAYERS[-1]), torch.nn.Linear)  # the most sensitive one
    plain = space(trained, digits, rows()).made(Choice(numbers="int8", floats=1))
    differing = {
        name
        for name, value in made.state_dict().items()
        if not value.equal(plain.state_dict()[name])
    }
    assert differing == {f"{name}.bias" for name in LAYERS[:3]}


@pytest.mark.parametrize(
    ("integers", "levels"), [(rows(), (False, True)), (rows(3), (False,)), ([], (False,))]
)
def test_biases_are_corrected_where_there_was_time_for_all_layers(
    trained, digits, integers, levels
):
    assert space(trained, digits, integers).levels["corrected"] == levels


def test_what_means_nothing_is_as_by_default(trained, digits):
    of = space(trained, digits, rows())
    assert of.plain(Choice(multiple=8, tuned=True, corrected=True)) == Choice()
    assert of.plain(Choice(numbers="int8", floats=4, corrected=True)) == Choice(
        numbers="int8", corrected=True
    )
    found = of.neighbours(Choice(numbers="int8"))
    assert Choice(numbers="int8", corrected=True) in found
    assert Choice() in found
