"""Terminator: what its blocks are wired to, what they see, and how many parameters that takes."""

import pytest
import torch
from torch.nn import functional as F

from foveate.backbones import create_model
from foveate.backbones.hyperzzw_terminator import SlowFastBlock, Terminator


def slow(dim: int, axes: int, hidden: int, layers: int, places: int) -> int:
    """Parameters of a slow network."""
    sines = (layers + 1) * hidden * (axes + 1)
    return sines + layers * hidden * (hidden + 1) + (hidden + 1) * dim + places


@pytest.mark.paper("hyperzzw_terminator")
def test_parameters_are_those_of_the_published_configuration():
    """Counted from the sizes in the authors' configuration for images of 32 pixels."""
    total, dims = 0, (3, 12, 36, 72, 144)
    for dim, factor, layers, before in zip(
        dims, (4, 3, 2, 2, 2), (3, 2, 2, 2, 2), (0, 0, 1, 1, 2), strict=True
    ):
        square = dim * (dim + 1)
        total += slow(dim, 2, 64, layers, 1024)
        for side in (3, 9, 5, 7):
            total += slow(dim, 2, 32, 2, side**2) + (dim + 1) * 32 + 3 * 32 * 33 + square + 1
        total += square + 2 * (4 * square + 1024)
        total += slow(1, 1, 32, 2, dim) + slow(1, 1, 16, 2, dim) + slow(1, 2, 64, 2, 1024)
        total += ((10 + before) * dim + 1) * factor * dim + 1
    total += 288 * 10 + 10
    with torch.device("meta"):
        model = create_model("terminator_sfne5", num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == total
    assert model.num_features == 288


@pytest.mark.paper("hyperzzw_terminator")
def test_a_block_is_its_ten_branches():
    """Written out with plain products, in double precision, with its gradients."""
    torch.manual_seed(0)
    block = SlowFastBlock(6, 2, (3,), (0,), (0, 1), 2, 9, 2000.0, False, 0.0).double()
    x = torch.randn(3, 9, 9, 9, dtype=torch.float64, requires_grad=True)
    z, before = x[:, :6], x[:, 6:]
    weights = block.slow((9, 9)) * z
    fast = F.instance_norm(block.slow_unit(weights) + block.fast_unit(z))
    mixed, weighed = F.instance_norm(block.channel_mixer(z)), F.instance_norm(block.channels(z, z))
    out = torch.einsum("bcik,bckj->bcij", weights, fast)
    near = []
    pairs = ((z, weighed), (weighed, z), (mixed, z), (z, mixed))
    for local, (context, values) in zip(block.local, pairs, strict=True):
        kernel = local.kernel_of(context)
        side = kernel.shape[-1]
        patches = F.unfold(values, side, padding=side // 2).unflatten(1, (6, -1))
        y = torch.einsum("bckl,ck->bcl", patches, kernel[0].flatten(1)).view_as(values)
        y = local.mixer(y)
        y = (y - y.mean((0, 2, 3), keepdim=True)) / (y.var((0, 2, 3), correction=0) + 1e-5).sqrt()[
            :, None, None
        ]
        near.append(F.gelu(y) + local.bias)
    branches = [
        *(out, near[1], torch.cat((before, before), 1), fast, weights @ mixed, near[0]),
        *(out * out.sigmoid(), near[2], weights @ weighed, near[3], block.interact(z, out)),
    ]
    y = F.gelu(block.standard(block.bottleneck(torch.cat(branches, 1)))) + block.bias
    expected = torch.cat((y, z, before), 1)
    found = block(x)
    torch.testing.assert_close(found, expected)
    cotangent = torch.randn_like(found)
    inputs = [x, *block.parameters()]
    ours = torch.autograd.grad((cotangent * found).sum(), inputs)
    theirs = torch.autograd.grad((cotangent * expected).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-6)


@pytest.mark.paper("hyperzzw_terminator")
@pytest.mark.parametrize("sequence", [False, True])
def test_every_output_sees_every_pixel_after_one_block(sequence):
    torch.manual_seed(0)
    model = Terminator(factors=(4, 3), earlier=((), ()), layers=(1, 1), size=9, sequence=sequence)
    stem = model.stem.eval().double()
    images = torch.randn(1, 3, 9, 9, dtype=torch.float64, requires_grad=True)
    maps = stem(images)
    assert maps.shape == (1, 12, 9, 9)
    for i, j in ((0, 0), (4, 7), (8, 8)):
        (seen,) = torch.autograd.grad(maps[0, :, i, j].square().sum(), images, retain_graph=True)
        assert (seen.abs().sum(1) > 0).all()


def test_earlier_outputs_arrive_where_they_are_seen():
    """Blocks 2, 3 and 4 see the outputs of 0, of 1, and of 2 and 1 besides their inputs."""
    with torch.device("meta"):
        model = create_model("terminator_sfne5")
        blocks = [model.stem, *model.stages]
        assert [block.widths for block in blocks] == [
            *((3,), (12,), (36, 12), (72, 36), (144, 72, 36)),
        ]
        assert [block.used for block in blocks] == [(), (), (0,), (0,), (0, 1)]
        maps = model.forward_intermediates(torch.zeros(2, 3, 32, 32), intermediates_only=True)
    assert [m.shape[1] for m in maps] == [36, 72, 144, 288]


def test_an_image_alone_and_in_a_batch():
    torch.manual_seed(0)
    model = create_model("terminator_mini32", num_classes=3)
    images = torch.randn(4, 3, 32, 32)
    model(images).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    torch.testing.assert_close(model(images)[:1], model(images[:1]), atol=1e-5, rtol=1e-4)
