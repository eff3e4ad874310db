"""UniRepLKNet, in both forms, against the authors' outputs."""

import pytest
import torch

from foveate.backbones import create_model
from foveate.errors import FoveateError
from foveate.ops.unireplknet import BRANCHES, DilatedReparam


@pytest.mark.paper("unireplknet")
@pytest.mark.paper("unireplknet_v2")
@pytest.mark.parametrize("form", ["", "_reparam"])
def test_the_authors_outputs(oracle, form):
    official = oracle(f"unireplknet__unireplknet_a{form}")
    model = official.load(create_model("unireplknet_a", deploy=bool(form)))
    assert sum(p.numel() for p in model.parameters()) == official.facts["params"]
    stages = {f"stages.{i}" for i in range(4)}
    assert stages | {"downsample_layers.0", "norm", "head"} <= set(official.agrees(model))


@pytest.mark.paper("unireplknet")
def test_published_parameter_counts():
    """Table 4 of arXiv 2311.15599, in millions; of the deployed form."""
    published = {"a": 4.4, "f": 6.2, "p": 10.7, "n": 18.3, "t": 31, "s": 56, "b": 98, "l": 218}
    for name, millions in published.items():
        with torch.device("meta"):
            model = create_model(f"unireplknet_{name}")
        found = sum(p.numel() for key, p in model.named_parameters() if ".dil_" not in key)
        assert found / 1e6 == pytest.approx(millions, rel=0.02), name


@pytest.mark.paper("unireplknet")
@pytest.mark.parametrize("kernel", BRANCHES)
@torch.inference_mode()
def test_one_kernel_of_all_branches(kernel):
    torch.manual_seed(0)
    op = DilatedReparam(4, kernel).double().eval()
    for module in op.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
            module.running_mean.normal_()
            module.weight.normal_()
            module.bias.normal_()
    x = torch.randn(1, 4, 20, 19, dtype=torch.float64)
    before = op(x)
    op.merge_branches()
    assert [name for name, _ in op.named_parameters()] == ["lk_origin.weight", "lk_origin.bias"]
    torch.testing.assert_close(op(x), before)


def test_branches_must_lie_inside():
    with pytest.raises(FoveateError, match="beyond"):
        DilatedReparam(4, 7, ((3, 4),))
    with pytest.raises(FoveateError, match="published"):
        DilatedReparam(4, 19)
