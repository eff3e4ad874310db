"""Attention that is met in other people's modules, and written out where it was fused."""

import pytest
import timm
import torch
from timm.layers.attention import Attention
from timm.models.swin_transformer import WindowAttention
from torch import nn
from torch.nn import functional as F

from foveate.errors import FoveateError
from foveate.ops.attention import SelfAttention
from foveate.surgery.attention import Attend, attend_by, attending, cover_attention
from foveate.surgery.mptq_vit.smooth import ShiftAndSmooth
from foveate.surgery.quantizable_transformers import ClipSoftmax


class Fused(nn.Module):
    """Attention of tokens with arguments of the test's own."""

    def __init__(self, **fields):
        super().__init__()
        self.fields = fields

    def forward(self, x):
        q, k, v = x, x.roll(1, -1), x.roll(2, -1)
        if self.fields.get("enable_gqa"):
            k, v = k[:, :2], v[:, :2]
        return F.scaled_dot_product_attention(q, k, v, **self.fields)


MASK = torch.rand(5, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"attn_mask": MASK},
        {"attn_mask": MASK > 0.3},
        {"is_causal": True},
        {"scale": 0.3},
        {"enable_gqa": True},
    ],
)
def test_written_out_it_is_what_fused_attention_computes(fields):
    torch.manual_seed(0)
    module, x = Fused(**fields).double(), torch.randn(2, 4, 5, 6, dtype=torch.float64)
    wanted = module(x)
    attend_by(module, "part", Attend())
    torch.testing.assert_close(module(x), wanted)


def test_dropped_out_as_often_as_fused():
    module = Fused(dropout_p=0.5)
    attend_by(module, "part", Attend())
    torch.manual_seed(0)
    out = module(torch.zeros(1, 1, 1, 400) + 1)  # one place: its weight is 0 or 1 / (1 - 0.5)
    assert out.unique().numel() == 1
    assert out[0, 0, 0, 0] in (0, 2)


class Told(Attend):
    """Notes which steps it meets."""

    def __init__(self, met):
        super().__init__()
        self.met = met

    def scores(self, q, k):
        self.met.append("scores")
        return q @ k

    def weights(self, p):
        self.met.append("weights")
        torch.testing.assert_close(p.sum(-1), torch.ones(p.shape[:-1]))
        return p

    def mix(self, p, v):
        self.met.append("mix")
        return p @ v

    def output(self, x, prepared):
        self.met.append("output")
        return x


def swin():
    return timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=64, window_size=4, num_classes=5, depths=(2, 2)
    )


def vit(name="vit_tiny_patch16_224"):
    return timm.create_model(name, img_size=32, patch_size=8, depth=2, num_classes=5)


@pytest.mark.parametrize("build", [vit, lambda: vit("deit_tiny_patch16_224"), swin])
def test_steps_of_timms_modules_are_met_in_order(build):
    net, met = build().eval(), []
    x = torch.randn(2, 3, 64, 64) if build is swin else torch.randn(2, 3, 32, 32)
    wanted, names = net(x), list(net.state_dict())
    found = attending(net, x)
    kind = WindowAttention if build is swin else Attention
    assert list(found) == [name for name, m in net.named_modules() if isinstance(m, kind)]
    first = next(iter(found.values()))
    tokens = 16 if build is swin else 17
    assert (first.takes[1], first.heads, first.gives[2], first.keys) == (tokens, 3, tokens, tokens)
    for name in found:
        attend_by(net.get_submodule(name), "part", Told(met))
    torch.testing.assert_close(net(x), wanted)
    assert met == ["scores", "weights", "mix", "output"] * len(found)
    assert list(net.state_dict()) == names
    assert all(isinstance(net.get_submodule(name), kind) for name in found)
    assert {a.parts for a in attending(net, x).values()} == {("part",)}


def test_maps_and_parts_behind_parts():
    """What comes later meets what is there already, fused or not."""
    torch.manual_seed(0)
    module, x, met = SelfAttention(12, 3).eval(), torch.randn(2, 12, 2, 4), []
    wanted = module(x)
    assert attending(nn.Sequential(module), x)["0"].gives == (2, 3, 8, 4)

    class Halved(Attend):
        keeps_fused = True

        def output(self, x, prepared):
            return x / 2

    class Doubled(Attend):
        def mix(self, p, v):
            return 2 * (p @ v)

    attend_by(module, "halved", Halved())
    attend_by(module, "doubled", Doubled())
    attend_by(module, "told", Told(met))
    torch.testing.assert_close(module(x), wanted)
    assert met == ["scores", "weights", "mix", "output"]
    assert attending(module, x)[""].parts == ("halved", "doubled", "told")


def test_what_is_no_attention_is_left_alone():
    class Choosing(nn.Module):
        """Softmax over branches, and later a product that has nothing to do with it."""

        def forward(self, x):
            x = (x[:, None] * x.mean(2, keepdim=True).softmax(1)[:, None]).sum(1)
            return x @ x.mT

    assert attending(Choosing(), torch.randn(2, 3, 4)) == {}
    net = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Identity())
    [line] = cover_attention(net, {}, (), "part", "done")
    assert not line.changed
    assert "one function" in line.why
    with pytest.raises(FoveateError, match="skip names 'blocks'"):
        cover_attention(net, {}, ("blocks",), "part", "done")


FAMILIES = {
    "vit_tiny_patch16_224": 12,
    "deit_tiny_distilled_patch16_224": 12,
    "swin_tiny_patch4_window7_224": 12,
    "pvt_v2_b0": 8,
    "levit_128s": 11,
    "cait_xxs24_224": 26,
    "xcit_nano_12_p16_224": 14,
    "crossvit_9_240": 18,
    "twins_svt_small": 18,
    "efficientformer_l1": 1,
    "mvitv2_tiny": 10,
    "edgenext_xx_small": 3,
    "mobilevit_xxs": 9,
    "davit_tiny": 12,
    "eva02_tiny_patch14_224": 12,
    "visformer_tiny": 8,
    "convit_tiny": 12,
    "tnt_s_patch16_224": 24,
}
IN_BATCH_NORMS = ("levit_128s", "visformer_tiny")
"""Those that have no norm whose channels could be smoothed."""


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()  # LeViT keeps what its first pass computes from weights
def test_families_of_timm_attend_and_are_smoothed(name):
    """All that attend are found, and what is written out or smoothed computes what it did."""
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=4).eval()
    x = torch.randn(1, *net.default_cfg["input_size"])  # pyright: ignore
    assert len(attending(net, x)) == FAMILIES[name]
    wanted = net(x)
    ours, _ = ClipSoftmax(alpha=0.0).apply(net, x)
    torch.testing.assert_close(ours(x), wanted, atol=1e-4, rtol=1e-4)
    if name in IN_BATCH_NORMS:
        with pytest.raises(FoveateError, match="ShiftAndSmooth found nothing to change"):
            ShiftAndSmooth().apply(net, x)
    else:
        ours, _ = ShiftAndSmooth().apply(net, x)
        torch.testing.assert_close(ours(x), wanted, atol=1e-4, rtol=1e-4)
