"""Foveate and its peers do what they say to a small network."""

import sys
from itertools import product

import pytest
import torch
from torch import nn


@pytest.fixture
def compressors(script):
    return script("compressors")


@pytest.fixture
def images():
    return torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 5),
    ).eval()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("peer", ["foveate", "nncf", "torchao"])
def test_int8(compressors, peer, images):
    pytest.importorskip("openvino" if peer == "foveate" else peer)
    how = {"compiled": False} if peer == "torchao" else {}
    program = getattr(compressors, f"int8_by_{peer}")(net(), images, **how)
    assert (program.integer, program.layers) == (3, 3)
    expected = net()(images).detach()
    error = torch.from_numpy(program.call(images.numpy())) - expected
    assert 0 < error.abs().max() < 0.1 * expected.abs().max()
    whole = compressors.in_float(net(), images)
    assert (whole.integer, whole.layers) == (0, 3)
    rounded = torch.from_numpy(whole.call(images.numpy())) - expected
    assert rounded.abs().max() < 0.02 * expected.abs().max(), "bfloat16, at most"


@pytest.mark.parametrize("peer", ["foveate", "torch_pruning"])
def test_pruning(compressors, peer, images):
    pytest.importorskip(peer)
    small = getattr(compressors, f"pruned_by_{peer}")(net(), images[:2], 0.25)
    assert [small[i].weight.shape[:2] for i in (0, 2, 5)] == [(6, 3), (6, 6), (5, 96)]
    assert small(images).shape == (8, 5)


@pytest.mark.slow
def test_torch_pruning_of_heads(compressors, script):
    pytest.importorskip("torch_pruning")
    network = script("networks").NETWORKS["deit_tiny_patch16_224"]
    model = compressors.pruned_by_torch_pruning(network.make(), network.images(2), 0.25)
    assert model(network.images(2)).isfinite().all()
    assert model.blocks[0].attn.proj.out_features < 192


def test_reach_tells_refusals_from_success(script):
    pytest.importorskip("torch_pruning")
    pytest.importorskip("torchao")
    reach = script("compressors_reach")
    network = reach.NETWORKS["mobilenetv3_small_050"]

    def broken(model, images, share):
        raise IndexError("out of\nbounds")

    good = reach.tried(network, "pruned", "Foveate", lambda m, x, s: m, reach.pruned)
    bad = reach.tried(network, "pruned", "torch-pruning", broken, reach.pruned)
    assert (good.works, good.said) == (True, "1.00x MACs")
    assert (bad.works, bad.said) == (False, "IndexError: out of")
    table = reach.sheet([good, bad])
    assert table.rows[0] == ["mobilenetv3_small_050", "1.00x MACs", "*fails*"]
    assert table.rows[1][1:] == ["**1 of 1**", "**0 of 1**"]
    assert table.notes == ["mobilenetv3_small_050, pruned, torch-pruning: IndexError: out of"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_compression_costs(script, shared, monkeypatch):
    """The whole of it on few images, steps and tries."""
    for needed in ("nncf", "torchao", "torch_pruning"):
        pytest.importorskip(needed)
    cost = script("compressors_cost")
    few = cost.numbers
    monkeypatch.setattr(cost, "numbers", lambda split: [part[:250] for part in few(split)])
    for name, value in (("CALIBRATION", 64), ("TUNED", 2), ("HALVINGS", 4), ("LEFT", (0.5,))):
        monkeypatch.setattr(cost, name, value)
    left = []
    monkeypatch.setattr(cost.Sheet, "write", lambda sheet: left.append(sheet))
    words = ["cost", str(shared / "weights"), str(shared / "data/cifar10.tar.gz")]
    monkeypatch.setattr(sys, "argv", words)
    cost.main()
    [found] = left
    by_name = {(fact["what"], fact["by"].split()[0]): fact for fact in found.facts}
    whole = by_name["float", "OpenVINO"]
    assert whole["top1"] > 0.7
    for library in ("Foveate", "nncf", "torchao"):
        int8 = by_name["INT8", library]
        assert abs(int8["lost"][0]) < 5
        assert int8["integer"] == [20, 20]
        assert int8["bytes"] < whole["bytes"] or library == "torchao", "it writes much beside"
    for scope, way, tuned in product(cost.SCOPES, ("magnitudes", "calibrated"), ("", ", tuned")):
        pruned = by_name[f"50% of MACs, {scope}, {way}{tuned}", "Foveate"]
        assert pruned["macs"] == pytest.approx(whole["macs"] / 2, rel=0.15)
    assert ("50% of MACs, blocks, calibrated", "torch-pruning") in by_name
    assert len(found.rows) == (4 if cost.fitting_bits() == 8 else 5) + 2 * 4 * 2
    assert len(found.notes) == sum("fails" in fact for fact in found.facts)
    # of one row, all others stay, in the pace of the recorded float network
    monkeypatch.setattr(sys, "argv", [*words, "--rows", "float"])
    cost.main()
    recorded = cost.facts_before(cost.__file__)
    assert len(left[1].facts) > len(recorded) / 3
    for fact in left[1].facts[1:]:
        assert fact in recorded
    assert left[1].facts[0]["milliseconds"]["median"] == pytest.approx(
        recorded[0]["milliseconds"]["median"]
    )
