"""Rounded products of attention against the same written by hand; saved among other edits."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import foveate
from foveate.surgery.integers import affine_grid, fake_quantise
from foveate.surgery.lineage import lineage
from foveate.surgery.mptq_vit.bits import MixBits
from foveate.surgery.mptq_vit.regions import RegionQuantiser
from foveate.surgery.mptq_vit.simulate import SimulateTransformer, quantisers
from foveate.surgery.mptq_vit.smooth import ShiftAndSmooth
from foveate.surgery.quant_whitepaper_qualcomm.bias import CorrectBias
from foveate.surgery.quant_whitepaper_qualcomm.blame import decibels
from foveate.surgery.quant_whitepaper_qualcomm.quantiser import Quantiser, grid_over
from foveate.surgery.quant_whitepaper_qualcomm.simulate import none, simulated, switched
from foveate.surgery.quantizable_transformers import ClipSoftmax
from foveate.surgery.storage import Store

pytestmark = pytest.mark.paper("mptq_vit")

FEW = {"weight_bits": 4, "activation_bits": 4}


def test_every_product_takes_rounded_numbers(net, images, name):
    ours, coverage = SimulateTransformer(**FEW).apply(net, images)
    assert all(line.changed for line in coverage)
    blocks = 4 if "swin" in name else 2
    kinds = {line.name: line.kind for line in coverage if line.kind.endswith("Attention")}
    assert len(kinds) == blocks
    assert len(simulated(ours)) == len(coverage) - blocks
    regions = [n for n, g in quantisers(ours).items() if isinstance(g, RegionQuantiser)]
    assert len(regions) == 2 * blocks
    assert all(n.endswith(("fc2.input_grid", "products.p_grid")) for n in regions)
    assert not any(layer.output_grid for layer in simulated(ours).values())
    with switched(ours, none):
        torch.testing.assert_close(ours(images), net(images), atol=1e-4, rtol=1e-4)
    assert (ours(images) - net(images)).abs().max() > 0.01


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224"])
def test_a_block_computed_by_hand(net, images):
    """Attention and the layers behind it, from integers of the test's own making."""
    edit = SimulateTransformer(regions=False, activation_range="minmax", weight_range="minmax")
    ours, _ = edit.apply(net, images)
    tokens = []
    net.blocks[0].attn.register_forward_pre_hook(lambda module, args: tokens.append(args[0]))
    net(images)
    x, attn = tokens[0], net.blocks[0].attn

    def on(x, size):
        scale = size / 127
        return (x * (1 / scale)).round().clamp(-127, 127) * scale

    def rounded(x, rows=False):
        return on(x, x.abs().amax(1, keepdim=True) if rows else x.abs().max())

    def layer(x, linear):
        return F.linear(x, rounded(linear.weight, rows=True), linear.bias)

    def heads(linear, x):
        return linear(x).view(len(x), -1, 3, 3, 64).permute(2, 0, 3, 1, 4)

    plain = heads(attn.qkv, x)
    sizes = [part.abs().max() for part in (plain[0] / 8, plain[1], plain[2])]

    q, k, v = heads(lambda x: layer(x, attn.qkv), rounded(x))
    q, k, v = (on(part, size) for part, size in zip((q / 8, k, v), sizes, strict=True))
    p = (q @ k.mT).softmax(-1)
    most = (plain[0] / 8 @ plain[1].mT).softmax(-1).max()
    mixed = (on(p, most) @ v).transpose(1, 2).flatten(2)
    before = F.scaled_dot_product_attention(*plain).transpose(1, 2).flatten(2).abs().max()
    wanted = layer(on(mixed, before), attn.proj)
    found = ours.blocks[0].attn(x)
    off = (found - wanted).abs()
    assert off.max() < 0.02 * wanted.abs().max()  # ties may fall either way
    assert off.mean() < 1e-4 * wanted.abs().max()


def test_every_activation_is_rounded_better_than_by_extremes(net, images):
    ours, _ = SimulateTransformer(**FEW).apply(net, images)
    seen = {}
    for grid_name, grid in quantisers(ours).items():
        if not grid_name.endswith("weight_grid"):
            grid.register_forward_pre_hook(
                lambda module, args, name=grid_name: seen.update({name: args[0].detach()})
            )
    with switched(ours, none):
        ours(images)
    for grid_name, x in seen.items():
        grid = quantisers(ours)[grid_name]
        if isinstance(grid, RegionQuantiser):
            theirs = fake_quantise(x, affine_grid(x.min(), x.max(), 4), 0, 15)
        else:
            theirs = fake_quantise(x, *grid_over(x.min(), x.max(), 4, True))
        assert (grid(x) - x).square().mean() < (theirs - x).square().mean()


def test_shifts_help_where_channels_lie_off_their_middle(net, images):
    """Decibels of the outputs: of plain channels, of smoothed ones, and of shifted ones."""
    found = []
    for before in (None, ShiftAndSmooth(shift=None), ShiftAndSmooth()):
        model = before.apply(net, images)[0] if before else net
        ours, _ = SimulateTransformer(weight_bits=6, activation_bits=6).apply(model, images)
        found.append(decibels(ours, images)(ours))
    assert found[0] < found[1] < found[2] - 2


def test_saved_and_loaded_among_other_edits(net, images, name, options, tmp_path):
    model = net
    edits = (
        ClipSoftmax(alpha=0.3),
        ShiftAndSmooth(),
        SimulateTransformer(weight_bits=6),
        CorrectBias(),
        MixBits(weight_bits=None, activation_bits=7.5, least=6),
        Store(),
    )
    for edit in edits:
        model, _ = edit.apply(model, images)
    foveate.save(model, tmp_path, architecture={"name": f"timm/{name}", "kwargs": options})
    again = foveate.load_network(tmp_path)
    assert torch.equal(again(images), model(images))
    assert [step["edit"] for step in lineage(again)] == [type(edit).__name__ for edit in edits]
    regions = [m for m in again.modules() if isinstance(m, Quantiser)]
    assert all(isinstance(m, RegionQuantiser) for m in regions)  # grids are constants now
    assert not any(p.requires_grad for m in regions for p in m.parameters())


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224"])
def test_it_exports_trains_and_leaves_activations_alone(net, images):
    ours, _ = SimulateTransformer(**FEW).apply(net, images)
    program = torch.export.export(ours, (images,)).module()
    torch.testing.assert_close(program(images), ours(images))
    ours.train()(images).square().sum().backward()
    assert all(layer.weight.grad.any() for layer in simulated(ours).values())
    only, coverage = SimulateTransformer(weight_bits=3, activation_bits=None).apply(net, images)
    assert {type(g) for g in quantisers(only).values()} == {Quantiser}
    assert all(n.endswith("weight_grid") for n in quantisers(only))
    assert len(coverage) == len(simulated(only))


def test_networks_without_attention_are_welcome():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    x = torch.randn(4, 3, 8, 8)
    ours, coverage = SimulateTransformer().apply(net, x)
    assert len(coverage) == 2
    torch.testing.assert_close(ours(x), net(x), atol=0.02, rtol=0.02)
