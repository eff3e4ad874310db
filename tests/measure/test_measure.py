"""Figures that a noisy machine does not fool, and counts that have a closed form."""

import time

import pytest
import torch
from torch import nn

from foveate.measure import count, machine, paired, side_by_side, timing


def busy(milliseconds: float):
    def work():
        end = time.perf_counter() + milliseconds / 1e3
        while time.perf_counter() < end:
            pass

    return work


def test_timing_brackets_its_median():
    found = timing(busy(1), seconds=0.1)
    assert found.low <= found.median <= found.high
    assert found.median >= 1e-3
    assert found.runs >= 5


def test_a_planted_difference_is_found():
    assert paired(busy(2), busy(1), seconds=0.2).verdict == "slower"
    assert paired(busy(1), busy(2), seconds=0.2).verdict == "faster"


def test_side_by_side_names_each():
    found = side_by_side({"slow": busy(2), "fast": busy(0.5)}, seconds=0.05)
    assert found["slow"].median > found["fast"].median


def test_counts_have_closed_forms():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(128, 5))
    found = count(net, torch.zeros(1, 3, 4, 4))
    assert found.params == 3 * 8 * 9 + 128 * 5 + 5
    assert found.macs == 3 * 8 * 9 * 16 + 128 * 5


def test_published_macs():
    """timm's model card of ConvNeXt-T states 4.5 G multiply-adds, as the paper does."""
    import timm

    model = timm.create_model("convnext_tiny")
    assert count(model, torch.zeros(1, 3, 224, 224)).macs / 1e9 == pytest.approx(4.47, abs=0.03)


def test_machine_says_what_it_is():
    facts = machine()
    assert facts["cores"] >= 1
    assert "torch" in facts["versions"]
