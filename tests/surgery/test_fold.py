"""The deployed form of a model's own parts: as many numbers as published, and the same outputs."""

import json

import pytest
import torch
from torch import nn

import foveate
from foveate import FoveateError
from foveate.backbones import create_model
from foveate.backbones.riformer import ReparamIdentity
from foveate.surgery.fold import Fold
from foveate.surgery.lineage import lineage
from foveate.surgery.merging import Merge


def settled(name, **kwargs):
    """A network of ours in float64 whose norms, scales and affines are not what they begin with."""
    torch.manual_seed(0)
    model = create_model(name, **kwargs).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def image(side):
    return torch.rand(1, 3, side, side, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "oracle"),
    [("unireplknet_a", "unireplknet__unireplknet_a_reparam"), ("riformer_s12", None)],
)
@torch.inference_mode()
def test_published_deployed_forms(name, oracle, shared):
    model, x = settled(name), image(64)
    folded, coverage = Fold().apply(model)
    torch.testing.assert_close(folded(x), model(x))
    published = create_model(name, deploy=True).state_dict()
    assert {k: v.shape for k, v in folded.state_dict().items()} == {
        k: v.shape for k, v in published.items()
    }
    assert all(line.changed for line in coverage)
    if oracle:
        facts = json.loads((shared / "oracles" / f"{oracle}.json").read_text())
        assert sum(p.numel() for p in folded.parameters()) == facts["params"]


@pytest.mark.paper("riformer")
@torch.inference_mode()
def test_the_affine_folds_into_the_norm_before_it():
    """gamma' = gamma (s - 1) and beta' = beta (s - 1) + b, section 3.2 of arXiv 2304.05659."""
    model, x = settled("riformer_mini32", num_classes=5), image(32)
    folded, _ = Fold().apply(model)
    assert not any(isinstance(module, ReparamIdentity) for module in folded.modules())
    torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)
    affines = [m for m in model.modules() if isinstance(m, ReparamIdentity)]
    gone = sum(p.numel() for affine in affines for p in affine.parameters())
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, folded))
    assert before - after == gone
    block, deployed = (m.get_submodule("stages.1.blocks.1") for m in (model, folded))
    scale = block.token_mixer.weight - 1
    torch.testing.assert_close(deployed.norm1.weight, block.norm1.weight * scale)
    torch.testing.assert_close(
        deployed.norm1.bias, block.norm1.bias * scale + block.token_mixer.bias
    )


@pytest.mark.paper("riformer")
@torch.inference_mode()
def test_merging_finds_the_affine_by_itself(tmp_path):
    """Without knowing the module, and the layer scales behind norm and MLP, too."""
    model, x = settled("riformer_mini32", num_classes=5), image(32)
    folded, _ = Fold().apply(model)
    merged, _ = Merge().apply(model, x)
    torch.testing.assert_close(merged(x), model(x), rtol=1e-10, atol=1e-10)
    scales = sum(p.numel() for n, p in model.named_parameters() if "gamma" in n)
    numbers = sum(v.numel() for v in merged.state_dict().values())
    assert numbers == sum(p.numel() for p in folded.parameters()) - scales
    foveate.save(merged, tmp_path)
    again = foveate.load_network(tmp_path)
    assert torch.equal(again(x), merged(x))
    assert [step["edit"] for step in lineage(again)] == ["Merge"]


def test_what_knows_no_deployed_form():
    with pytest.raises(FoveateError, match="nothing to change"):
        Fold().apply(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))


@pytest.mark.parametrize("name", ["riformer_mini32", "unireplknet_mini32", "lsnet_mini32"])
def test_what_has_its_deployed_form(name):
    folded, coverage = Fold().apply(create_model(name, num_classes=5))
    assert any(line.changed for line in coverage)
    with pytest.raises(FoveateError, match="deployed form already"):
        Fold().apply(folded)
