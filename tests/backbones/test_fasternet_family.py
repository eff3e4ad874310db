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
def test_timms_outputs_and_maps(agrees_with_timm, name):
    agrees_with_timm(name, (96, 64))


@pytest.mark.paper("fasternet")
@pytest.mark.parametrize("name", SLUGS)
def test_timms_parameters(has_timms_parameters, name):
    has_timms_parameters(name)


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
