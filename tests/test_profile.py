"""A profile adds up, compares what it says it compares, and makes a page that stands alone."""

import json
import re

import numpy as np
import pytest
import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.measure import Ceilings
from foveate.profile import Asked, explain, profile, sort_of
from foveate.report.profile import profile_page


@pytest.fixture(scope="module")
def facts():
    with pytest.MonkeyPatch.context() as patch:
        roof = Ceilings(1e11, "convolution 3x3", 1e10, 1, "2026-11-21")
        patch.setattr("foveate.profile.ceilings", lambda fresh: roof)
        patch.setattr("foveate.profile.BATCHES", (1, 2, 3))
        asked = Asked(
            models=("sprint_s", "sprint_m"),
            resolution=64,
            batch=2,
            runtimes=("eager", "onnx"),
            training=True,
            growth=True,
            seconds=0.05,
            data="digits",
        )
        return profile(asked)


def test_layers_add_up_to_the_model(facts):
    for row in facts["models"]:
        assert sum(layer["flops"] for layer in row["layers"]) == row["flops"]
        layers = sum(layer["milliseconds"] for layer in row["layers"])
        assert layers == pytest.approx(sum(s["milliseconds"] for s in row["sorts"]))
        assert row["efficiency"] == pytest.approx(row["ideal_milliseconds"] / row["milliseconds"])
        assert row["ideal_milliseconds"] == pytest.approx(row["flops"] / 1e8)
        assert sum(s["share"] for s in row["sorts"]) == pytest.approx(1)


def test_a_static_model_costs_each_image_the_same(facts):
    for row in facts["models"]:
        assert row["spread"]["low"] == row["spread"]["median"] == row["spread"]["high"]
        assert 2 * row["spread"]["median"] == row["macs"]


def test_every_runtime_is_timed_for_both(facts):
    first, second = facts["models"]
    assert set(first["runtimes"]) == set(second["runtimes"]) == {"eager", "onnx"}
    assert {(r["runtime"], r["model"]) for r in facts["ratios"]} == {
        ("eager", "sprint_m"),
        ("onnx", "sprint_m"),
    }
    assert first["training"]["median"] > 0
    assert len(first["growth"]["batch"]["milliseconds"]) == 3


def test_words_name_where_the_time_goes(facts):
    words = explain(facts)
    assert len(words) == 3
    assert words[0].startswith("sprint_s needs")
    assert facts["models"][0]["sorts"][0]["sort"] in words[0]
    assert "sprint_m" in words[2]
    assert "takes" in words[2]


def test_the_page_stands_alone(facts):
    page = profile_page(json.loads(json.dumps(facts)), explain(facts))
    assert "Waterline of sprint_m" in page
    assert "Efficiency gap" in page
    assert not re.search(r'(src|href)="http', page)
    assert "nan" not in page


def test_what_cannot_be_had_is_said(monkeypatch):
    def refuse(*_):
        raise RuntimeError("no such\noperator")

    monkeypatch.setattr("foveate.profile.write_onnx", refuse)
    monkeypatch.setattr(
        "foveate.profile.ceilings", lambda fresh: Ceilings(1e11, "it", 1e10, 1, "2026-11-21")
    )
    found = profile(
        Asked(models=("sprint_s",), resolution=32, runtimes=("eager", "onnx"), seconds=0.02)
    )
    assert found["models"][0]["left_out"] == {"onnx": "no such"}
    assert "left out: no such" in profile_page(found, explain(found))


@pytest.mark.parametrize(
    ("layer", "sort"),
    [
        (nn.Conv2d(8, 8, 1), "pointwise"),
        (nn.Conv2d(8, 8, 1, groups=2), "grouped 1x1"),
        (nn.Conv2d(8, 8, 7, groups=8), "depthwise 7x7"),
        (nn.Conv2d(8, 8, (1, 11), groups=8), "depthwise 1x11"),
        (nn.Conv2d(8, 8, 3, groups=2), "grouped 3x3"),
        (nn.Conv2d(8, 8, 4, stride=4), "patch 4x4"),
        (nn.Conv2d(8, 8, 3), "full 3x3"),
        (nn.Linear(2, 2), "linear"),
        (nn.BatchNorm2d(2), "norm"),
        (nn.MultiheadAttention(4, 1), "attention"),
        (nn.MaxPool2d(2), "pool"),
        (nn.GELU(), "activation"),
        (nn.Sequential(nn.ReLU()), "between layers"),
        (nn.Flatten(), "Flatten"),
    ],
)
def test_sorts_of_layers(layer, sort):
    assert sort_of(layer) == sort


@pytest.mark.parametrize(
    ("fields", "mention"),
    [
        ({"models": ("convnex_tiny",)}, "convnext_tiny"),
        ({"resolution": 0}, "--resolution"),
        ({"batch": -1}, "--batch"),
        ({"seconds": 0}, "--seconds"),
        ({"runtimes": ("tensorrt",)}, "openvino"),
    ],
)
def test_wishes_that_cannot_be_met(fields, mention):
    with pytest.raises(FoveateError, match=mention):
        Asked(**{"models": ("sprint_s",), **fields})


def test_a_model_whose_work_follows_the_image():
    from foveate.measure import count_each

    class Exits(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.first(x.mean((2, 3)))
            return x if x.mean() > 1e6 else self.second(x)

    net = Exits()
    images = [torch.full((4, 2, 2), 1e9 if i % 4 else 0.0) for i in range(8)]
    nn.init.ones_(net.first.weight)
    found = count_each(net, images)
    assert np.bincount(found.macs).nonzero()[0].tolist() == [16, 32]
    assert (found.macs == 32).sum() == 2
