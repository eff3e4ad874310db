"""FastViT: timm's outputs through our contract, and our RepMixer against timm's in both forms."""

import subprocess
import sys

import pytest
import torch
from timm.models.fastvit import RepMixer as TheirMixer

from foveate.backbones.fastvit import SIZES
from foveate.ops.fastvit import RepMixer

SLUGS = [name for name in SIZES if "mini" not in name]


@pytest.mark.paper("fastvit")
@pytest.mark.parametrize("name", ["fastvit_t8", "fastvit_sa12"])
def test_timms_outputs_and_maps(agrees_with_timm, name):
    agrees_with_timm(name, (96, 64))


@pytest.mark.parametrize("name", SLUGS)
def test_timms_parameters(has_timms_parameters, name):
    has_timms_parameters(name)


@pytest.mark.paper("fastvit")
def test_the_mixer_equals_timms_in_both_forms():
    torch.manual_seed(0)
    theirs, ours = TheirMixer(6, layer_scale_init_value=0.3), RepMixer(6, scale=0.3)
    pairs = {
        "conv.conv": "mixer.conv_kxk.0.conv",
        "conv.norm": "mixer.conv_kxk.0.bn",
        "point.conv": "mixer.conv_scale.conv",
        "point.norm": "mixer.conv_scale.bn",
        "same": "mixer.identity",
        "norm": "norm.identity",
    }
    for mine, other in pairs.items():
        for tensor in theirs.get_submodule(other).state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor))
        ours.get_submodule(mine).load_state_dict(theirs.get_submodule(other).state_dict())
    ours, theirs = ours.eval().double(), theirs.eval().double()
    x = torch.randn(2, 6, 7, 5, dtype=torch.float64)
    with torch.no_grad():
        apart = theirs(x)
        torch.testing.assert_close(ours(x), apart)
        ours.merge_branches()
        ours.merge_branches()
        theirs.reparameterize()
        torch.testing.assert_close(ours(x), apart)
    torch.testing.assert_close(ours.merged.weight, theirs.reparam_conv.weight)
    assert len(list(ours.parameters())) == 2


@pytest.mark.slow
def test_it_trains_in_channels_last():
    """In a process of its own, since PyTorch's strided 1x1 convolution may end it."""
    program = """
import torch
from foveate.backbones import create_model
images = torch.rand(4, 3, 256, 256).contiguous(memory_format=torch.channels_last)
model = create_model("fastvit_t8").train().to(memory_format=torch.channels_last)
model(images).square().mean().backward()
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
