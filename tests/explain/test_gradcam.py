"""Grad-CAM against its closed form, and against captum where that is installed."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foveate.backbones import create_model
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
    """The same net, its map as tokens behind a class token, named as timm's ViTs name theirs."""

    num_prefix_tokens = 1

    def __init__(self, net: Pooled) -> None:
        super().__init__()
        self.patch_embed = nn.Sequential(net.conv, net.act)
        self.blocks, self.norm, self.head = nn.Identity(), nn.Identity(), net.head

    def forward(self, x):
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2)
        tokens = self.norm(torch.cat([tokens[:, :1] * 0, tokens], dim=1))
        return self.head(tokens[:, 1:].mean(dim=1))


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


def test_a_class_token_net_is_explained_at_the_places_that_its_last_block_sees():
    """In rows one pixel wide: weights are mean gradients, and the class token is no place."""
    torch.manual_seed(0)
    model = create_model("pvt_mini32", num_classes=4).eval()
    photos = torch.rand(5, 3, 64, 96)
    found = saliency(Vision(model), photos, TARGETS)
    assert found.shape == (5, 64, 96)
    kept = []
    seen = model.stages[2].blocks[1].norm1
    seen.register_forward_hook(lambda m, i, y: (y.retain_grad(), kept.append(y))[0])
    model(photos)[range(5), TARGETS].sum().backward()
    places, slopes = kept[0].detach()[:, :, 1:, 0], kept[0].grad[:, :, 1:, 0]
    cam = (slopes.mean(2, keepdim=True) * places).sum(1).relu().view(5, 1, 8, 12)
    cam = torch.nn.functional.interpolate(cam, (64, 96), mode="bilinear")[:, 0]
    peak = cam.amax((1, 2), keepdim=True)
    expected = torch.where(peak > 0, cam / peak, 0)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_takes_bytes_and_arrays(net, images):
    pixels = (images * 255).round().to(torch.uint8)
    model = Vision(net)
    expected = closed_form(net, pixels.float() / 255)
    np.testing.assert_allclose(saliency(model, pixels, TARGETS), expected, atol=1e-5)
    np.testing.assert_allclose(
        saliency(model, pixels.numpy(), np.array(TARGETS)), expected, atol=1e-5
    )


def test_explains_the_module_that_the_backbone_names(net, images):
    first = nn.Conv2d(3, 3, 1)
    model = Vision(nn.Sequential(first, net))
    model.backbone.feature_info = [{"module": "0"}]
    with torch.no_grad():
        seen = first(images).requires_grad_()
    logits = net(seen)
    (gradient,) = torch.autograd.grad(logits[range(5), TARGETS].sum(), seen)
    cam = (gradient.mean(dim=(2, 3), keepdim=True) * seen).sum(dim=1).relu().detach()
    cam = cam / cam.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    np.testing.assert_allclose(saliency(model, images, TARGETS), cam, atol=1e-5)


@pytest.mark.parametrize("name", ["convnext_atto", "inceptionnext_atto"])
def test_our_families_are_explained(name):
    from foveate import VisionModel

    model = VisionModel.create(name, ["a", "b", "c"], 64)
    found = saliency(model, torch.randint(0, 255, (2, 3, 48, 80), dtype=torch.uint8), [0, 2])
    assert found.shape == (2, 48, 80)
    assert np.isfinite(found).all()


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


def test_agrees_with_captum(net, images):
    attr = pytest.importorskip("captum.attr")
    net.act.inplace = False
    cam = attr.LayerGradCam(net, net.act).attribute(
        images, torch.tensor(TARGETS), relu_attributions=True
    )
    cam = F.interpolate(cam.detach(), images.shape[-2:], mode="bilinear")[:, 0]
    cam = cam / cam.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    np.testing.assert_allclose(saliency(net, images, TARGETS), cam.numpy(), atol=1e-5)
