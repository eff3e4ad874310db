"""FasterNet, against timm's with the same weights; its merged form; the authors' own names."""

import re

import pytest
import timm
import torch

from foveate.backbones import create_model, load_weights
from foveate.backbones.fasternet import SIZES

SLUGS = [name for name in SIZES if "mini" not in name]


@pytest.mark.paper("fasternet")
@pytest.mark.parametrize("name", ["fasternet_t0", "fasternet_t2"])
def test_timms_outputs_and_maps(twins, name):
    reference, ours = twins(name)
    images = torch.randn(2, 3, 96, 64)
    with torch.inference_mode():
        _, maps = reference.forward_intermediates(images)
        our_maps = ours.forward_intermediates(images, intermediates_only=True)
        torch.testing.assert_close(ours(images), reference(images), atol=1e-4, rtol=1e-4)
    for ours_at, theirs_at in zip(our_maps, maps, strict=True):
        torch.testing.assert_close(ours_at, theirs_at, atol=1e-4, rtol=1e-4)


@pytest.mark.paper("fasternet")
@pytest.mark.parametrize("name", SLUGS)
def test_timms_parameters(name):
    with torch.device("meta"):
        ours, theirs = create_model(name), timm.create_model(name)
    shapes = [sorted(p.numel() for p in model.parameters()) for model in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_the_authors_names_load(tmp_path):
    """They count the layers between stages as stages, and name the head otherwise than timm."""
    theirs = timm.create_model("fasternet_t0", num_classes=3).state_dict()
    official = {}
    for name, tensor in theirs.items():
        new = re.sub(r"^stages\.(\d)\.downsample", lambda m: f"stages.{2 * int(m[1]) - 1}", name)
        new = re.sub(r"^stages\.(\d)\.blocks", lambda m: f"stages.{2 * int(m[1])}.blocks", new)
        new = new.replace("conv_head", "avgpool_pre_head.1").replace("classifier", "head")
        official[new] = tensor
    torch.save(official, tmp_path / "official.pth")
    ours = create_model("fasternet_t0", num_classes=3)
    load_weights(ours, tmp_path / "official.pth")
    again = create_model("fasternet_t0", num_classes=3)
    torch.save(theirs, tmp_path / "timm.pth")
    load_weights(again, tmp_path / "timm.pth")
    for ours_at, again_at in zip(ours.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours_at, again_at)
