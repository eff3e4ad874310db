"""Clipped softmax and gates in timm's transformers, and what outliers are."""

import copy
import json
import math

import pytest
import timm
import torch
from timm.models.swin_transformer import WindowAttention
from torch import nn

import foveate
from foveate import VisionModel
from foveate.errors import FoveateError
from foveate.ops.quantizable_transformers import ClippedSoftmax
from foveate.surgery.lineage import lineage
from foveate.surgery.quant_whitepaper_qualcomm.simulate import Simulate
from foveate.surgery.quantizable_transformers import (
    ClipSoftmax,
    GateAttention,
    kurtosis,
    outliers,
)
from foveate.surgery.replay import replay
from foveate.surgery.storage import Store

pytestmark = pytest.mark.paper("quantizable_transformers")

NAMES = ("vit_tiny_patch16_224", "deit_tiny_patch16_224")


def options(name, **fields):
    size = {"img_size": 32, "patch_size": 8} if name in NAMES else {"img_size": 64}
    return {"num_classes": 5, **size, **fields}


def make(name, **fields):
    torch.manual_seed(0)
    net = timm.create_model(name, **options(name, **fields)).eval()
    for module in net.modules():  # as training would leave it: attention that looks somewhere
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.15)
    return net


def images(net):
    return torch.randn(2, 3, net.patch_embed.img_size[0], net.patch_embed.img_size[0])


@pytest.mark.parametrize("name", NAMES)
def test_clipped_as_the_formula_says(name):
    net = make(name, depth=2)
    x = images(net)
    ours, coverage = ClipSoftmax(alpha=2.0).apply(net, x)
    assert [line.name for line in coverage] == ["blocks.0.attn", "blocks.1.attn"]
    tokens = torch.randn(2, 17, 192)
    attn = net.blocks[0].attn
    q, k, v = attn.qkv(tokens).view(2, 17, 3, 3, 64).permute(2, 0, 3, 1, 4)
    p = (q @ k.mT / 64**0.5).softmax(-1)
    clipped = ((1 + 2 / 17) * p - 2 / 17).clamp(0, 1)
    assert (clipped == 0).float().mean() > 0.2
    wanted = attn.proj((clipped @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(ours.blocks[0].attn(tokens), wanted)
    torch.testing.assert_close(ClipSoftmax(alpha=0.0).apply(net, x)[0](x), net(x))


def test_swins_softmax_exchanged_by_hand_is_the_same():
    net = make("swin_tiny_patch4_window7_224", window_size=4, depths=(2, 2))
    x = images(net)
    ours, _ = ClipSoftmax(alpha=None, gamma=-0.1, zeta=1.05).apply(net, x)
    theirs = copy.deepcopy(net)
    for module in theirs.modules():
        if isinstance(module, WindowAttention):
            module.softmax = ClippedSoftmax(None, -0.1, 1.05)  # pyright: ignore
    assert torch.equal(ours(x), theirs(x))
    assert not torch.allclose(ours(x), net(x))


@pytest.mark.parametrize("kind", ["linear", "mlp", "all_heads"])
def test_gates_are_neutral_or_shut(kind):
    net = make(NAMES[0], depth=2)
    x, tokens = images(net), torch.randn(2, 17, 192)
    same, coverage = GateAttention(kind=kind, neutral=True).apply(net, x)
    assert len(coverage) == 2
    torch.testing.assert_close(same(x), net(x), atol=0, rtol=0)
    shut, _ = GateAttention(kind=kind).apply(net, x)
    attn = shut.blocks[0].attn
    half = attn(tokens)
    score = attn.attention_gate.gate.score
    last = score[-1] if kind == "mlp" else score
    with torch.no_grad():
        last.bias.fill_(-math.inf)
    nothing = attn.proj.bias.expand(2, 17, 192)
    torch.testing.assert_close(attn(tokens), nothing, atol=0, rtol=0)
    assert (half - nothing).abs().max() > 0.1


def test_gates_learn_and_the_rest_of_the_net_too():
    net = make(NAMES[0], depth=1)
    ours, _ = ClipSoftmax().apply(net, images(net))
    ours, _ = GateAttention(neutral=True).apply(ours, images(net))
    ours.train()(images(net)).square().sum().backward()
    without = [name for name, p in ours.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_what_cannot_be_gated_says_why():
    net = timm.create_model("davit_tiny", depths=(1, 1, 1, 1), num_classes=2).eval()
    _, coverage = GateAttention().apply(net, torch.randn(1, 3, 64, 64))
    why = {line.name.split(".")[-2]: line.why for line in coverage if not line.changed}
    assert "of its" in why["1"]
    assert "tokens" in why["1"]
    again, _ = ClipSoftmax().apply(net, torch.randn(1, 3, 64, 64))
    with pytest.raises(FoveateError, match="an edit before did the same"):
        ClipSoftmax().apply(again, torch.randn(1, 3, 64, 64))
    conv = timm.create_model("resnet10t", num_classes=2)
    with pytest.raises(FoveateError, match="found nothing to change in ResNet"):
        ClipSoftmax().apply(conv, torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize("name", [*NAMES, "swin_tiny_patch4_window7_224"])
def test_saved_and_loaded_among_other_edits(name, tmp_path):
    fields = {"depth": 2} if name in NAMES else {"depths": (1, 1), "window_size": 4}
    net = make(name, **fields)
    x = images(net)
    model = net
    edits = (
        GateAttention(kind="mlp", seed=3, skip=("*.0.attn",)),
        ClipSoftmax(alpha=1.0),
        Simulate(activation_range="minmax"),
        Store(),
    )
    if name not in NAMES:
        edits = (GateAttention(), ClipSoftmax(), Simulate(activation_range="minmax"), Store())
    for edit in edits:
        model, _ = edit.apply(model, x)
    foveate.save(
        model, tmp_path, architecture={"name": f"timm/{name}", "kwargs": options(name, **fields)}
    )
    again = foveate.load_network(tmp_path)
    assert torch.equal(again(x), model(x))
    assert [step["edit"] for step in lineage(again)] == [type(edit).__name__ for edit in edits]


def test_replayed_in_a_vision_model():
    fields = {"img_size": 32, "patch_size": 8, "depth": 1}
    model = VisionModel.create("timm/vit_tiny_patch16_224", ["a", "b"], size=32, **fields)
    x = torch.rand(2, 3, 32, 32)
    edited, _ = GateAttention().apply(model, x)
    fresh = replay(copy.deepcopy(model), json.loads(json.dumps(lineage(edited))))
    fresh.load_state_dict(edited.state_dict())
    assert torch.equal(fresh.eval()(x), edited.eval()(x))
    assert not torch.equal(edited(x), model.eval()(x))


def test_kurtosis_has_its_closed_forms():
    torch.manual_seed(0)
    x = torch.stack((torch.randn(400_000), torch.rand(400_000)))
    assert kurtosis(x)[0].item() == pytest.approx(3, abs=0.05)
    assert kurtosis(x)[1].item() == pytest.approx(9 / 5, abs=0.01)
    ones = torch.zeros(1, 5, 40)
    ones[0, 0, 0] = 7.0
    p = 1 / 200
    assert kurtosis(ones).item() == pytest.approx((1 - 3 * p * (1 - p)) / (p * (1 - p)))
    torch.testing.assert_close(kurtosis(3 * x + 5), kurtosis(x), rtol=1e-4, atol=0)


def test_outliers_of_what_attends():
    net = make(NAMES[0], depth=2)
    batches = [images(net), images(net)[:1]]
    seen = []
    net.blocks[1].attn.register_forward_hook(lambda module, args, out: seen.append(out))
    found = outliers(net, batches)
    assert list(found) == ["blocks.0.attn", "blocks.1.attn"]
    last = torch.cat(seen[-2:])
    assert found["blocks.1.attn"].infinity_norm == pytest.approx(
        last.flatten(1).abs().amax(1).mean().item()
    )
    assert found["blocks.1.attn"].kurtosis == pytest.approx(kurtosis(last).mean().item())
    assert list(outliers(net, batches, ("blocks.?",))) == ["blocks.0", "blocks.1"]
    with pytest.raises(FoveateError, match="give batches"):
        outliers(net, None)
    with pytest.raises(FoveateError, match="no part"):
        outliers(net, batches, ("stages",))


def test_mistakes():
    for make_it, message in (
        (lambda: ClipSoftmax(alpha=None), "give one"),
        (lambda: ClipSoftmax(zeta=0.5), "zeta is 0.5"),
        (lambda: GateAttention(kind="deep"), "kind is 'deep'"),  # pyright: ignore
        (lambda: GateAttention(opened=0.0), "opened is 0"),
    ):
        with pytest.raises(FoveateError, match=message):
            make_it()
