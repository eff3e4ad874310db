"""LSNet: static small kernels and dynamic ones in turn, attention on the coarsest maps.

Source: lsnet (arXiv 2503.23135, section 3.3). The authors' code states no licence; it
was read for names and order.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.backbones.base import ADAMW, Backbone, Size
from foveate.backbones.parts import (
    DropPath,
    NormHead,
    Stage,
    drop_path_rates,
    require_stages,
    stem_strides,
)
from foveate.backbones.registry import register
from foveate.catalog import implements
from foveate.ops.conv_norm import ConvNorm
from foveate.ops.levit import attend_with_bias, offset_bias
from foveate.ops.lsnet import LsConv
from foveate.ops.merge import merge
from foveate.ops.se import SqueezeExcite


class RepDepthwise(nn.Module):
    """A 3x3 and a 1x1 depthwise convolution and the input, which merging makes one 3x3.

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = ConvNorm(dim, dim, 3, groups=dim)
        self.conv1: ConvNorm | None = ConvNorm(dim, dim, 1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        return out if self.conv1 is None else out + self.conv1(x) + x

    @torch.no_grad()
    def merge_branches(self) -> None:
        """Fold the point and the input into the middle of the square."""
        if self.conv1 is None:
            return
        self.conv.merge_branches()
        self.conv1.merge_branches()
        whole, point = self.conv.conv, self.conv1.conv
        assert whole.bias is not None
        assert point.bias is not None
        whole.weight[..., 1, 1] += point.weight[..., 0, 0] + 1
        whole.bias += point.bias
        self.conv1 = None


class OffsetAttention(nn.Module):
    """Attention between all places, with a bias for each distance and queries that see 3x3.

    Args:
        dim: channels.
        key_dim, heads: channels of a head's keys, and how many heads.
        side: of the maps that the biases were made for; for others they are scaled.

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(self, dim: int, key_dim: int, heads: int, side: int) -> None:
        super().__init__()
        value_dim = dim // heads
        self.heads, self.side = heads, side
        self.parts = key_dim * heads, key_dim * heads, value_dim * heads
        self.qkv = ConvNorm(dim, sum(self.parts))
        self.dw = ConvNorm(key_dim * heads, key_dim * heads, 3, groups=key_dim * heads)
        self.proj = nn.Sequential(nn.ReLU(), ConvNorm(value_dim * heads, dim, gain=0.0))
        self.attention_biases = nn.Parameter(torch.zeros(heads, side * side))

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        q, k, v = self.qkv(x).split(self.parts, dim=1)
        q, k, v = (t.flatten(2).unflatten(1, (self.heads, -1)) for t in (self.dw(q), k, v))
        bias = offset_bias(self.attention_biases, self.side, size)
        return self.proj(attend_with_bias(q, k, v, bias).flatten(1, 2).unflatten(2, size))


class LsBlock(nn.Module):
    """A token mixer, squeeze and excitation after static ones, and a residual FFN.

    Args:
        dim: channels.
        mixer: with its own residual.
        static: whether the mixer is a `RepDepthwise`.
        drop_path: rate of stochastic depth.
    """

    def __init__(self, dim: int, mixer: nn.Module, static: bool, drop_path: float) -> None:
        super().__init__()
        self.mixer = mixer
        self.se = SqueezeExcite(dim, reduction=4) if static else nn.Identity()
        self.pw1 = ConvNorm(dim, 2 * dim)
        self.act = nn.ReLU(inplace=True)
        self.pw2 = ConvNorm(2 * dim, dim, gain=0.0)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mixer(x)
        if isinstance(self.mixer, OffsetAttention):
            y = x + self.drop_path(y)
        y = self.se(y)
        return y + self.drop_path(self.pw2(self.act(self.pw1(y))))


@implements("lsnet")
class LSNet(Backbone):
    """Stages in which static kernels, and dynamic ones or attention, take turns.

    Args:
        num_classes, in_chans: outputs and input channels.
        depths, dims: blocks and channels of each stage.
        key_dim, heads: of the last stage's attention.
        side: of the images that the attention's biases were made for.
        patch: stride of the stem: 8 as published, 1 to 4 for small images.
        deploy: build the merged form.
        drop_rate, drop_path_rate: dropout before the classifier, and the
            largest rate of stochastic depth.
    """

    recipe: ClassVar[dict[str, Any]] = ADAMW | {"weight_decay": 0.025}
    key_rules = (
        (r"^.*attention_bias_idxs$", ""),
        (r"^patch_embed\.", "stem."),
        *((rf"^blocks{i + 1}\.([01])\.", rf"stages.{i}.downsample.\1.") for i in range(1, 4)),
        *(
            (rf"^blocks{i + 1}\.{j}\.", f"stages.{i}.blocks.{j - (2 if i else 0)}.")
            for i in range(4)
            for j in range(12)
        ),
        *((rf"^blocks{i + 1}\.$", f"stages.{i}.") for i in range(4)),
        (r"\.mixer\.m\.", ".mixer."),
        (r"\.ffn\.m\.", "."),
        (r"\.lkp\.cv1\.", ".perceive.0."),
        (r"\.lkp\.cv2\.", ".perceive.2."),
        (r"\.lkp\.cv3\.", ".perceive.3."),
        (r"\.lkp\.cv4\.", ".perceive.5."),
        (r"\.lkp\.norm\.", ".perceive.6."),
        (r"\.mixer\.bn\.", ".mixer.norm."),
        (r"\.c\.", ".conv."),
        (r"^head\.bn\.", "head.norm."),
        (r"^head\.l\.", "head.fc."),
        (r"(?<!head)\.bn\.", ".norm."),
    )

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: tuple[int, ...] = (0, 2, 8, 10),
        dims: tuple[int, ...] = (64, 128, 256, 384),
        key_dim: int = 16,
        heads: int = 4,
        side: int = 224,
        patch: int = 8,
        deploy: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        require_stages(depths=depths, dims=dims)
        strides = stem_strides(patch, 3)
        widths = (in_chans, dims[0] // 4, dims[0] // 2, dims[0])
        stem: list[nn.Module] = []
        for i, stride in enumerate(strides):
            stem += [ConvNorm(widths[i], widths[i + 1], 3, stride), nn.ReLU(inplace=True)]
        self.stem = nn.Sequential(*stem[:-1])
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            down: nn.Module = nn.Identity()
            if i > 0:
                thin = ConvNorm(dims[i - 1], dims[i - 1], 3, 2, groups=dims[i - 1])
                down = nn.Sequential(thin, ConvNorm(dims[i - 1], dims[i]))
            last = i == len(dims) - 1
            reach = -(-side // (patch * 2**i))
            blocks: list[nn.Module] = []
            for j, rate in enumerate(rates):
                mixer: nn.Module
                if j % 2 == 0:
                    mixer = RepDepthwise(dims[i])
                elif last:
                    mixer = OffsetAttention(dims[i], key_dim, heads, reach)
                else:
                    mixer = LsConv(dims[i])
                blocks.append(LsBlock(dims[i], mixer, j % 2 == 0, rate))
            stages.append(Stage(down, blocks))
        self.stages = nn.Sequential(*stages)
        self.head = NormHead(dims[-1], num_classes, drop_rate, nn.BatchNorm1d(dims[-1]))
        if isinstance(self.head.fc, nn.Linear):
            nn.init.trunc_normal_(self.head.fc.weight, std=0.02)
            nn.init.zeros_(self.head.fc.bias)
        self._finish(num_classes, in_chans, list(dims), [patch * 2**i for i in range(len(dims))])
        self.default_cfg["first_conv"] = "stem.0.conv"
        if deploy:
            merge(self)


SIZES = {
    "lsnet_t": Size({}, top1=74.9),
    "lsnet_s": Size({"depths": (1, 2, 8, 10), "dims": (96, 192, 320, 448)}, top1=77.8),
    "lsnet_b": Size({"depths": (4, 6, 8, 10), "dims": (128, 256, 384, 512)}, top1=80.3),
    "lsnet_mini32": Size(
        {"depths": (2, 2, 2), "dims": (32, 64, 128), "side": 32, "patch": 1}, side=32, crop=1.0
    ),
}

register(LSNet, SIZES)
