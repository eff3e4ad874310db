"""Families with a deployed form: merging changes no output, and leaves the authors' form."""

import pytest
import torch

from foveate.backbones import create_model
from foveate.ops.merge import is_mergeable, merge

NAMES = [
    "unireplknet_mini32",
    "unireplknet_a",
    "recnext_mini32",
    "recnext_m0",
    "riformer_mini32",
    "lsnet_mini32",
    "lsnet_t",
    "emov2_mini32",
    "convnext_dcls_mini32",
    "fasternet_mini32",
    "fastvit_mini32",
    "fastvit_t8",
    "levit_mini32",
]


def disturbed(name: str) -> torch.nn.Module:
    """With weights and statistics that all count."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=5)
    for key, tensor in model.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif tensor.dtype.is_floating_point:
            tensor.add_(0.1 * torch.randn_like(tensor))
    return model.eval().double()


@pytest.mark.paper("unireplknet")
@pytest.mark.paper("unireplknet_v2")
@pytest.mark.paper("riformer")
@pytest.mark.paper("fastvit")
@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_merging_changes_no_output(name):
    model = disturbed(name)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    before, parameters = model(images), sum(p.numel() for p in model.parameters())
    assert is_mergeable(model)
    merge(model)
    after = model(images)
    torch.testing.assert_close(after, before, atol=1e-9, rtol=1e-9)
    assert sum(p.numel() for p in model.parameters()) < parameters
    merge(model)
    assert torch.equal(model(images), after)


BUILT = [name for name in NAMES if not name.startswith(("emov2", "convnext"))]


@pytest.mark.parametrize("name", BUILT)
def test_the_deployed_form_can_be_built_at_once(name):
    built = create_model(name, num_classes=5, deploy=True).state_dict()
    merged = merge(create_model(name, num_classes=5)).state_dict()
    assert {k: v.shape for k, v in built.items()} == {k: v.shape for k, v in merged.items()}


@pytest.mark.parametrize("name", NAMES[:1])
def test_gradients_flow_before_merging(name):
    model = create_model(name, num_classes=5).train()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
