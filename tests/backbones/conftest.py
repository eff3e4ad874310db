"""Ways to set a network of timm's beside ours."""

import pytest
import timm
import torch
from torch import nn

from foveate.backbones import create_model, load_weights


def disturb(model: nn.Module) -> nn.Module:
    """Make every weight and statistic count: none stays at zero or one."""
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif tensor.dtype.is_floating_point:
            tensor.add_(0.05 * torch.randn_like(tensor))
    return model


@pytest.fixture
def twins(tmp_path):
    """Builds timm's network with random weights, and ours with the same by way of a file."""

    def build(name: str, theirs: str | None = None):
        from safetensors.torch import save_file

        torch.manual_seed(0)
        reference = disturb(timm.create_model(theirs or name, num_classes=7)).eval()
        path = tmp_path / "weights.safetensors"
        save_file({k: v.contiguous() for k, v in reference.state_dict().items()}, path)
        ours = create_model(name, num_classes=7).eval()
        report = load_weights(ours, path)
        assert not report.skipped
        return reference, ours

    return build
