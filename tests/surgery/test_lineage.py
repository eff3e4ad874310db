"""What edits decided is kept with the model, and a fresh model becomes the edited one by it."""

import copy
import json
from dataclasses import dataclass

import pytest
import timm
import torch
from torch import nn

from foveate import FoveateError, VisionModel
from foveate.adaptive.ftwt import FireTogether
from foveate.surgery.edit import Covered, Edit
from foveate.surgery.lineage import lineage
from foveate.surgery.mixturegrowth import Grow, Templates
from foveate.surgery.quant_whitepaper import Quantise
from foveate.surgery.replay import edit_class, edits, replay


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)
    ).eval()


def images(side=8):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def rebuilt(model, fresh):
    """A fresh model with the lineage of another, as it reads after JSON, and its weights."""
    again = replay(fresh, json.loads(json.dumps(lineage(model))))
    again.load_state_dict(model.state_dict())
    return again.eval()


CHAINS = {
    "quantised": [Quantise(weight_bits=4, skip=("3",))],
    "templates": [Templates(layers_per_bank=2)],
    "grown": [Templates(), Grow(), Grow(coefficients="copy")],
    "heads": [FireTogether(ratio=0.5, seed=3)],
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_a_fresh_model_becomes_the_edited_one(chain):
    model = net()
    for edit in chain:
        model, _ = edit.apply(model, images())
    assert [step["edit"] for step in lineage(model)] == [type(edit).__name__ for edit in chain]
    for param in model.parameters():  # as if trained since
        param.data.add_(0.01)
    again = rebuilt(model, net())
    assert torch.equal(model(images()), again(images()))
    assert lineage(again) == json.loads(json.dumps(lineage(model)))


def test_a_second_model_is_not_needed_to_load_what_grew_with_it():
    first, second = (Templates(seed=seed).apply(net())[0] for seed in (0, 1))
    grown, _ = Grow(second=second).apply(first, images())
    again = rebuilt(grown, net())
    assert torch.equal(grown(images()), again(images()))


def test_parts_that_were_edited_alone():
    """The lineage of a part is the whole's, too, in the order in which it was done."""
    model = VisionModel.create("sprint_s", ["a", "b", "c"], size=16).eval()
    pixels = torch.rand(2, 3, 16, 16)
    fresh = copy.deepcopy(model)
    model.backbone, _ = Templates().apply(model.backbone)
    model, _ = Grow(coefficients="zero").apply(model, pixels)
    model.backbone, _ = Grow(coefficients="zero", seed=2).apply(model.backbone, pixels)
    steps = lineage(model)
    assert [(step["edit"], step["at"]) for step in steps] == [
        ("Templates", "backbone"),
        ("Grow", ""),
        ("Grow", "backbone"),
    ]
    assert torch.equal(rebuilt(model, fresh)(pixels), model(pixels))


def test_the_model_before_keeps_its_lineage():
    model, _ = Templates().apply(net())
    Grow().apply(model, images())
    assert len(lineage(model)) == 1
    assert lineage(net()) == []


def test_batches_that_come_once_are_enough():
    model, _ = Quantise().apply(net(), iter([images(), 2 * images()]))
    both, _ = Quantise().apply(net(), [images(), 2 * images()])
    assert torch.equal(model(images()), both(images()))


def test_edits_are_found_by_name():
    assert edit_class("fire-together") is FireTogether
    assert edit_class("quantise") is edits()["Quantise"] is Quantise
    with pytest.raises(FoveateError, match=r"no edit 'quantize'.*Quantise"):
        edit_class("quantize")
    with pytest.raises(FoveateError, match=r"Quantise has no field 'bits': it has .*weight_bits"):
        Quantise.from_json({"bits": 4})
    edit = Quantise(skip=("a", "b"), decay=None)
    assert Quantise.from_json(json.loads(json.dumps(edit.to_json()))) == edit


def test_an_edit_of_ones_own_counts_once_it_is_there():
    @dataclass(frozen=True)
    class Rename(Edit):
        def decide(self, model, data):
            return {}, [Covered("", "", True, "")]

        def rebuild(self, model, plan):
            return nn.Sequential(model)

    model, _ = Rename().apply(net())
    assert torch.equal(rebuilt(model, net())(images()), net()(images()))


@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        (Quantise(), Quantise(), "as 0 .QuantisedLayer. holds weights as integers: they are quan"),
        (Quantise(), Templates(), "make them first"),
        (FireTogether(), Quantise(), "chosen filters"),
        (Templates(), FireTogether(), "fold them"),
    ],
)
def test_orders_that_make_no_sense(first, then, message):
    model, _ = first.apply(net(), images())
    with pytest.raises(FoveateError, match=message):
        then.apply(model, images())


def test_timms_networks_carry_a_lineage():
    model = timm.create_model("mobilenetv2_035", num_classes=5).eval()
    edited, _ = Quantise().apply(model, images(32))
    again = rebuilt(edited, timm.create_model("mobilenetv2_035", num_classes=5))
    assert torch.equal(edited(images(32)), again(images(32)))
