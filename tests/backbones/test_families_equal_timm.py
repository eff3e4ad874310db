"""ConvNeXt and InceptionNeXt give timm's numbers when given timm's weights."""

import pytest
import timm
import torch

from foveate.backbones import create_model, sizes
from foveate.backbones.convnext import ConvNeXt
from foveate.backbones.inceptionnext import InceptionNeXt
from foveate.backbones.weights import _squeeze

SMALL = [
    "inception_next_atto",
    "inception_next_tiny",
    "convnext_atto",
    "convnext_femto_ols",
    "convnext_nano_ols",
    "convnext_tiny",
    "convnextv2_atto",
]
OURS = [
    name
    for name, (family, _) in sizes().items()
    if family in (ConvNeXt, InceptionNeXt) and "mini" not in name
]
ALL = [name for name in OURS if timm.is_model(name)]
OURS_ALONE = {"inception_next_base_384"}


@pytest.mark.paper("inceptionnext")
@pytest.mark.parametrize("name", SMALL)
def test_outputs_and_maps(twins, name):
    reference, ours = twins(name)
    images = torch.randn(2, 3, 96, 64)
    with torch.inference_mode():
        last, maps = reference.forward_intermediates(images)
        our_last, our_maps = ours.forward_intermediates(images)
        assert_close(ours(images), reference(images))
    assert_close(our_last, last)
    for ours_at, theirs_at in zip(our_maps, maps, strict=True):
        assert_close(ours_at, theirs_at)


@pytest.mark.parametrize("name", ["inception_next_atto", "convnextv2_atto"])
def test_gradients(twins, name):
    reference, ours = twins(name)
    images = torch.randn(2, 3, 64, 64)
    for model in (reference, ours):
        model.train()
        model(images).square().sum().backward()
    theirs = dict(reference.named_parameters())
    for key, parameter in ours.named_parameters():
        assert_close(parameter.grad.flatten(), theirs[key].grad.flatten(), 1e-3)


@pytest.mark.parametrize("name", sorted(set(ALL)))
def test_every_size_has_timms_parameters(name):
    """On the meta device: names and shapes, up to 1x1 convolutions that timm keeps as matrices."""
    with torch.device("meta"):
        theirs = timm.create_model(name).state_dict()
        ours = create_model(name).state_dict()
    assert list(map(_squeeze, ours.values())) == [_squeeze(theirs[key]) for key in ours]
    assert ours.keys() == theirs.keys()


def test_the_sizes_that_timm_lacks_are_known():
    assert set(OURS) - set(ALL) == OURS_ALONE


def test_published_parameter_counts():
    """Table 1 and 9 of arXiv 2201.03545; table 2 of arXiv 2303.16900, in millions."""
    published = {
        "convnext_tiny": 28.6,
        "convnext_small": 50.2,
        "convnext_base": 88.6,
        "convnext_large": 197.8,
        "convnext_xlarge": 350.2,
        "inception_next_tiny": 28.1,
        "inception_next_small": 49.4,
        "inception_next_base": 86.7,
    }
    for name, millions in published.items():
        with torch.device("meta"):
            count = sum(p.numel() for p in create_model(name).parameters())
        assert count / 1e6 == pytest.approx(millions, abs=0.1), name


def assert_close(ours, theirs, tolerance=1e-5):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * max(theirs.abs().max().item(), 1e-3)
