"""Grad-CAM against its closed form, and against captum where that is installed."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foveate.errors import FoveateError
from foveate.explain import saliency


class Pooled(nn.Module):
    """Convolution, mean over the pixels, linear: here Grad-CAM is CAM, in closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.act(self.conv(x)).mean(dim=(2, 3)))


class Tokens(nn.Module):
    """The same net with its map as tokens behind a class token."""

    num_prefix_tokens = 1

    def __init__(self, net: Pooled) -> None:
        super().__init__()
        self.net, self.last = net, nn.Identity()

    def forward(self, x):
        tokens = self.net.act(self.net.conv(x)).flatten(2).transpose(1, 2)
        tokens = self.last(torch.cat([tokens[:, :1] * 0, tokens], dim=1))
        return self.net.head(tokens[:, 1:].mean(dim=1))

    def explanation(self):
        return SimpleNamespace(module=self.last, layout="BNC")


class Vision(nn.Module):
    """As a VisionModel: uint8 in, a backbone inside."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x):
        return self.backbone(x.float() / 255 if x.dtype == torch.uint8 else x)


@pytest.fixture
def net() -> Pooled:
    torch.manual_seed(1)
    return Pooled()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(5, 3, 12, 16, generator=torch.Generator().manual_seed(2))


TARGETS = [0, 1, 2, 3, 1]


def closed_form(net: Pooled, images: torch.Tensor) -> np.ndarray:
    """CAM: the class's weights times the maps, negative parts dropped, each maximum 1."""
    with torch.no_grad():
        maps = net.conv(images).relu()
        cam = torch.einsum("bc,bchw->bhw", net.head.weight[TARGETS], maps).relu()
        cam = F.interpolate(cam[:, None], images.shape[-2:], mode="bilinear")[:, 0]
    return (cam / cam.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)).numpy()


def test_is_weights_times_maps_when_the_head_is_linear_after_a_pool(net, images):
    found = saliency(net, images, TARGETS)
    assert found.shape == (5, 12, 16)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, closed_form(net, images), atol=1e-5)


def test_lies_in_the_unit_interval_and_reaches_one(net, images):
    found = saliency(net, images, TARGETS)
    assert found.min() >= 0
    np.testing.assert_allclose(found.max(axis=(1, 2)), 1, atol=1e-6)


def test_tokens_give_the_same_as_the_map_they_came_from(net, images):
    found = saliency(Vision(Tokens(net)), images, TARGETS)
    np.testing.assert_allclose(found, closed_form(net, images), atol=1e-5)


def test_takes_bytes_and_arrays(net, images):
    pixels = (images * 255).round().to(torch.uint8)
    model = Vision(net)
    expected = closed_form(net, pixels.float() / 255)
    np.testing.assert_allclose(saliency(model, pixels, TARGETS), expected, atol=1e-5)
    np.testing.assert_allclose(
        saliency(model, pixels.numpy(), np.array(TARGETS)), expected, atol=1e-5
    )


def test_explains_the_module_that_the_backbone_names(net, images):
    first = Vision(nn.Sequential(nn.Conv2d(3, 3, 1), net))
    first.backbone.explanation = lambda: SimpleNamespace(module=first.backbone[0], layout="BCHW")
    assert not np.allclose(saliency(first, images, TARGETS), saliency(net, images, TARGETS))


def test_is_zero_where_nothing_speaks_for_the_class(net, images):
    with torch.no_grad():
        net.head.weight.fill_(-1)
    assert not saliency(net, images, TARGETS).any()


def test_works_on_frozen_weights_without_gradients_around(net, images):
    net.requires_grad_(False)
    with torch.no_grad():
        found = saliency(net, images, TARGETS)
    np.testing.assert_allclose(found, closed_form(net, images), atol=1e-5)


def test_leaves_modes_gradients_and_hooks_as_they_were(net, images):
    net.act.eval()
    saliency(net, images, TARGETS)
    assert net.training
    assert not net.act.training
    assert all(p.grad is None for p in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())


def test_many_images_are_explained_one_by_one(net, images):
    many = saliency(net, images.repeat(9, 1, 1, 1), TARGETS * 9)
    np.testing.assert_allclose(many[-5:], saliency(net, images, TARGETS), atol=1e-5)


def test_no_images_give_no_maps(net):
    assert saliency(net, torch.zeros(0, 3, 8, 8), []).shape == (0, 8, 8)


def test_a_model_without_a_map_is_a_clear_error(images):
    with pytest.raises(FoveateError, match="Sequential makes no map"):
        saliency(nn.Sequential(nn.Flatten(), nn.Linear(576, 4)), images, TARGETS)


def test_an_unknown_layout_is_a_clear_error(net, images):
    net.explanation = lambda: SimpleNamespace(module=net.act, layout="HWBC")
    with pytest.raises(FoveateError, match="'HWBC'.*BCHW"):
        saliency(Vision(net), images, TARGETS)


def test_agrees_with_captum(net, images):
    attr = pytest.importorskip("captum.attr")
    net.act.inplace = False
    cam = attr.LayerGradCam(net, net.act).attribute(
        images, torch.tensor(TARGETS), relu_attributions=True
    )
    cam = F.interpolate(cam.detach(), images.shape[-2:], mode="bilinear")[:, 0]
    cam = cam / cam.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    np.testing.assert_allclose(saliency(net, images, TARGETS), cam.numpy(), atol=1e-5)
