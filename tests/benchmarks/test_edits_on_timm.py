"""Every edit on timm's networks, a few quickly, all slowly: nothing fails, at most it refuses."""

import numpy as np
import pytest
import torch
from torch import nn

import foveate
from foveate.surgery.replay import edits

QUICK = ("MaskSmallest", "Merge", "Quantise")


@pytest.fixture
def bench(script):
    return script("edits_on_timm")


@pytest.fixture
def names():
    """Of the package's own edits: other tests define some, too."""
    return [name for name, kind in edits().items() if kind.__module__.startswith("foveate.")]


def outcomes(bench, network, wanted, before):
    trials = bench.Trials(bench.NETWORKS[network])
    with bench.Elsewhere() as there:
        return [bench.tried(edits()[name], before.get(name, []), trials, there) for name in wanted]


def test_a_few(bench):
    found = outcomes(bench, "mobilenetv3_small_050", QUICK, {})
    assert [(one.outcome, one.why) for one in found] == [("works", "")] * len(QUICK)
    assert all(0 < one.changed <= one.parts for one in found)
    table = bench.sheet(found)
    assert [row[:3] for row in table.rows] == [[name, "", "1"] for name in QUICK]
    assert not table.notes


def test_what_refuses_and_what_fails(bench, monkeypatch):
    known = edits()
    [refused] = outcomes(bench, "deit_tiny_patch16_224", ["CrossLayerEqualise"], {})
    assert refused.outcome == "refuses"
    assert "found nothing to change" in refused.why
    monkeypatch.setattr(bench.Network, "make", lambda network: nn.Linear(3, 2))
    [failed] = outcomes(bench, "resnet10t", ["Quantise"], {"Quantise": [known["Mask"]]})
    assert failed.outcome == "fails"
    table = bench.sheet([refused, failed])
    assert table.rows[1][:5] == ["Quantise", "Mask", "", "", "1"]
    assert table.notes[0].startswith("CrossLayerEqualise refuses on deit_tiny_patch16_224: ")


@pytest.mark.slow
def test_other_bits_are_told(bench, tmp_path):
    network = bench.SMALL
    model = network.make()
    foveate.save(model, tmp_path)
    images = network.images(2)
    np.save(tmp_path / "images.npy", images.numpy())
    with torch.inference_mode():
        outputs = model(images).numpy()
    with bench.Elsewhere() as there:
        for given, answer in (
            (outputs, "the same"),
            (np.nextafter(outputs, np.float32(9)), "other numbers"),
        ):
            np.save(tmp_path / "outputs.npy", given)
            assert there.compute(tmp_path) == answer
        assert there.compute(tmp_path / "nowhere").startswith("FileNotFoundError")


@pytest.mark.slow
def test_what_comes_first(bench, names):
    known = {name: edits()[name] for name in names}
    found = bench.befores(known, known, bench.SMALL)
    assert [kind.__name__ for kind in found["AdaRound"]] == ["Simulate"]
    assert [kind.__name__ for kind in found["Grow"]] == ["Templates"]
    assert found["Merge"] == found["Quantise"] == []
    assert bench.befores(["Grow"], known, bench.SMALL) == {"Grow": found["Grow"]}


@pytest.mark.slow
def test_all_edits_on_all_networks(bench, names):
    before = bench.befores(names, {name: edits()[name] for name in names}, bench.SMALL)
    assert len(bench.NETWORKS) >= 15
    for network in bench.NETWORKS:
        for one in outcomes(bench, network, names, before):
            assert one.outcome in ("works", "refuses"), one
