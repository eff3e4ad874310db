"""Inception-v4 and Inception-ResNet, against timm's with the same weights; counts; the residual."""

import pytest
import timm
import torch

from foveate.backbones import create_model
from foveate.errors import FoveateError
from foveate.ops.inception_v4 import Cell, Conv, Pool, ScaledResidual, build


@pytest.mark.paper("inception_v4")
@pytest.mark.parametrize("name", ["inception_v4", "inception_resnet_v2"])
def test_timms_outputs_and_maps(twins, name):
    reference, ours = twins(name)
    images = torch.randn(1, 3, 107, 91)
    with torch.inference_mode():
        _, maps = reference.forward_intermediates(images)
        our_maps = ours.forward_intermediates(images, intermediates_only=True)
        theirs, found = reference(images), ours(images)
    assert (found - theirs).abs().max() < 1e-4 * theirs.abs().max()
    for ours_at, theirs_at in zip(our_maps, maps[2:], strict=True):
        assert (ours_at - theirs_at).abs().max() < 1e-4 * theirs_at.abs().max()


@pytest.mark.paper("inception_v4")
def test_parameter_counts():
    """timm's; and for v1 that of the well-known facenet, which has one more block and a layer to
    512 numbers with its norm: 23,482,624."""
    with torch.device("meta"):
        for name in ("inception_v4", "inception_resnet_v2"):
            ours, theirs = create_model(name), timm.create_model(name)
            counts = [sum(p.numel() for p in model.parameters()) for model in (ours, theirs)]
            assert counts[0] == counts[1]
        v1 = create_model("inception_resnet_v1", num_classes=0)
        block = sum(p.numel() for p in v1.stages[2].blocks[0].parameters())
        trunk = sum(p.numel() for p in v1.parameters())
    assert trunk + block + 1792 * 512 + 2 * 512 == 23_482_624


def test_published_maps():
    """Figures 9 and 15: 35, 17 and 8 pixels a side of 299, and their channels."""
    published = {
        "inception_v4": [(384, 35), (1024, 17), (1536, 8)],
        "inception_resnet_v1": [(256, 35), (896, 17), (1792, 8)],
        "inception_resnet_v2": [(320, 35), (1088, 17), (1536, 8)],
    }
    for name, expected in published.items():
        with torch.device("meta"):
            model = create_model(name).eval()
            maps = model.forward_intermediates(torch.zeros(1, 3, 299, 299), intermediates_only=True)
        assert [(m.shape[1], m.shape[2]) for m in maps] == expected


@pytest.mark.paper("inception_v4")
def test_the_residual_as_section_3_3_has_it():
    torch.manual_seed(0)
    cell = Cell(((Conv(3),), (Conv(2), Conv(4, (1, 3)), Pool())))
    op = ScaledResidual(5, cell, scale=0.2).eval().double()
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64)
    first, second = op.cell
    inner = torch.cat((first(x), second(x)), 1)
    assert inner.shape[1] == 7
    up = torch.einsum("oc,bchw->bohw", op.up.weight[..., 0, 0], inner)
    expected = (x + 0.2 * (up + op.up.bias.view(-1, 1, 1))).relu()
    torch.testing.assert_close(op(x), expected)
    op.shortcut = False
    torch.testing.assert_close(op(x), (up + op.up.bias.view(-1, 1, 1)).relu())


def test_padding_makes_maps_as_large_as_their_strides_say():
    layers = Conv(4, 3, 2), Conv(4, 3, valid=True), Cell(((Pool(2),), (Conv(2, 3, 2),)))
    x = torch.zeros(1, 3, 32, 32)
    (bare, dim), (padded, _) = build(layers, 3), build(layers, 3, padded=True)
    assert dim == 6
    assert bare(x).shape[-1] == 6
    assert padded(x).shape[-1] == 8


def test_mistakes():
    with pytest.raises(FoveateError, match="resnet_v1"):
        create_model("inception_v4", plan="v5")
    with pytest.raises(FoveateError, match="at least 75"):
        create_model("inception_v4")(torch.zeros(1, 3, 64, 64))
