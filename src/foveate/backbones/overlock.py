"""OverLoCK: an overview of the whole first, then a closer look that it guides.

Source: overlock (arXiv 2502.20087, section 3). The authors' code is under Apache-2.0.
"""

import re
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.backbones.base import ADAMW, Backbone, Size
from foveate.backbones.parts import (
    DropPath,
    GlobalResponseNorm,
    PoolHead,
    Stage,
    drop_path_rates,
    initialise,
    require_stages,
    stem_strides,
)
from foveate.backbones.registry import register
from foveate.catalog import implements
from foveate.ops.conv_norm import ConvNorm
from foveate.ops.depthwise import ResidualDepthwise
from foveate.ops.layer_norm import LayerNorm2d
from foveate.ops.overlock import ContMix, LargeKernel
from foveate.ops.se import SqueezeExcite
from foveate.ops.unireplknet import DilatedReparam

SHARE = 4  # of the overview's channels, one in so many is the context
RATIO, DYNAMIC_RATIO = 4, 3  # of the FFNs' hidden width


class Affine(nn.Module):
    """A scale and a shift of each channel. Shapes: (B, dim, H, W) to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias.view(-1, 1, 1), x, self.weight.view(-1, 1, 1))


class Ffn(nn.Sequential):
    """1x1, GELU, residual 3x3 depthwise, global response norm, 1x1.

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__(
            nn.Conv2d(dim, hidden, 1),
            nn.GELU(),
            ResidualDepthwise(hidden),
            GlobalResponseNorm(hidden),
            nn.Conv2d(hidden, dim, 1),
        )


class BasicBlock(nn.Module):
    """A static large kernel, squeeze and excitation and an FFN, as base and overview have them.

    Args:
        dim: channels.
        kernel_size: side of the kernel.
        scaled: whether the residual path is scaled and shifted.
        drop_path: rate of stochastic depth.

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(self, dim: int, kernel_size: int, scaled: bool, drop_path: float) -> None:
        super().__init__()
        self.dwconv, self.norm = ResidualDepthwise(dim), LayerNorm2d(dim)
        self.large = LargeKernel(dim, kernel_size)
        self.se = _squeeze(dim)
        self.mlp = Ffn(dim, RATIO * dim)
        self.ls = Affine(dim) if scaled else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dwconv(x)
        y = self.mlp(self.se(self.large(self.norm(x))))
        return self.ls(x) + self.drop_path(y)


class DynamicBlock(nn.Module):
    """`ContMix` beside a static large kernel, gated, then an FFN, on a map with its context.

    Args:
        dim, context: channels of the map, and of the context behind them.
        mixer: dynamic, of `dim` channels.
        first: the context is the overview's still, which is not added again.
        drop_path: rate of stochastic depth.

    Shapes: (B, dim + context, H, W) to the same; the overview is (B, context, H, W).
    """

    def __init__(
        self, dim: int, context: int, mixer: ContMix, first: bool, drop_path: float
    ) -> None:
        super().__init__()
        both = dim + context
        self.parts = dim, context
        self.x_scale, self.h_scale = (None if first else Affine(context) for _ in range(2))
        self.dwconv1, self.norm1 = ResidualDepthwise(both), LayerNorm2d(both)
        self.fusion = nn.Sequential(
            nn.Conv2d(both, both, 3, padding=1, groups=both),
            nn.BatchNorm2d(both),
            nn.GELU(),
            nn.Conv2d(both, dim, 1),
            GlobalResponseNorm(dim),
        )
        self.mixer = mixer
        self.lepe = LargeKernel(dim, mixer.kernels[1])
        self.se = _squeeze(dim)
        self.gate = ConvNorm(dim, dim)
        self.proj = nn.Sequential(nn.BatchNorm2d(dim), nn.Conv2d(dim, both, 1))
        self.dwconv2, self.norm2 = ResidualDepthwise(both), LayerNorm2d(both)
        self.mlp = Ffn(both, DYNAMIC_RATIO * dim)
        self.ls1, self.ls2 = Affine(both), Affine(both)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, overview: Tensor) -> Tensor:
        if self.x_scale is not None and self.h_scale is not None:
            x, context = x.split(self.parts, dim=1)
            x = torch.cat((x, self.x_scale(context) + self.h_scale(overview)), dim=1)
        x = self.dwconv1(x)
        y = self.norm1(x)
        query, context = y.split(self.parts, dim=1)
        y = self.fusion(y)
        mixed = self.se(self.mixer(y, query, context) + self.lepe(y))
        y = self.proj(F.silu(self.gate(y)) * mixed)
        x = self.dwconv2(self.ls1(x) + self.drop_path(y))
        return self.ls2(x) + self.drop_path(self.mlp(self.norm2(x)))


def _squeeze(dim: int) -> SqueezeExcite:
    return SqueezeExcite(dim, hidden=max(16, dim // 8), act=nn.GELU())


class OverviewStage(Stage):
    """Blocks of the base, an overview of them at half the size, and blocks that it guides.

    Args:
        base: a stage whose halving and blocks become this one's.
        overview: a stage that halves once more.
        dim: channels of the overview.
        focus: dynamic blocks.
        auxiliary: classifies the overview alone, in training.

    Shapes: (B, C, H, W) to the map with its context, and the overview that guided it.
    """

    def __init__(
        self,
        base: Stage,
        overview: Stage,
        dim: int,
        focus: list[nn.Module],
        auxiliary: nn.Sequential | None,
    ) -> None:
        super().__init__(base.downsample, list(base.blocks))
        self.overview = overview
        self.narrow = nn.Conv2d(dim, dim // SHARE, 1)
        self.auxiliary = auxiliary
        self.focus = nn.ModuleList(focus)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore
        x = super().forward(x)
        overview = self.narrow(self.overview(x))
        near = F.interpolate(overview, x.shape[2:], mode="bilinear")
        x = torch.cat((x, near), dim=1)
        for block in self.focus:
            x = block(x, near)
        return x, overview


class FocusStage(nn.Module):
    """Halves a map and its context, and looks at them by the same overview once more.

    Args:
        dim, dim_out, context: channels before and after, and of the context.
        blocks: dynamic blocks.

    Shapes: what `OverviewStage` gives to (B, dim_out + context, H / 2, W / 2).
    """

    def __init__(self, dim: int, dim_out: int, context: int, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.parts = dim, context
        self.downsample = nn.ModuleDict(
            {
                "x_proj": ConvNorm(dim, dim_out, 3, stride=2),
                "h_proj": ConvNorm(context, context, 3, stride=2),
            }
        )
        self.blocks = nn.ModuleList(blocks)

    def forward(self, seen: tuple[Tensor, Tensor]) -> Tensor:
        both, overview = seen
        parts = zip(self.downsample.values(), both.split(self.parts, dim=1), strict=True)
        x = torch.cat([halve(part) for halve, part in parts], dim=1)
        for block in self.blocks:
            x = block(x, overview)
        return x


class WideHead(nn.Module):
    """1x1, batch norm, SiLU, average pool, dropout, linear.

    Shapes: (B, dim, H, W) to (B, num_classes).
    """

    def __init__(self, dim: int, hidden: int, num_classes: int, drop: float) -> None:
        super().__init__()
        self.proj = ConvNorm(dim, hidden)
        self.drop = nn.Dropout(drop)
        self.fc = nn.Linear(hidden, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.drop(F.silu(self.proj(x)).mean((2, 3)))
        return x if pre_logits else self.fc(x)


_PLACES = {
    "patch_embed1": "stem",
    "patch_embed2": "stages.1.downsample",
    "patch_embed3": "stages.2.downsample",
    "patch_embed4": "stages.2.overview.downsample",
    "patch_embedx": "stages.3.downsample",
    "high_level_proj": "stages.2.narrow",
    "blocks1": "stages.0.blocks",
    "blocks2": "stages.1.blocks",
    "blocks3": "stages.2.blocks",
    "blocks4": "stages.2.overview.blocks",
    "sub_blocks3": "stages.2.focus",
    "sub_blocks4": "stages.3.blocks",
    "aux_head": "stages.2.auxiliary",
    "head.4": "head.fc",
    r"head(?=\.conv|\.norm)": "head.proj",
}
_BASIC = ("norm", "large.0", "large.1", "se", "mlp.0", "mlp.1", "mlp.2", "mlp.3", "mlp.4")
_PAIRS = r"^(patch_embed[234]|.*\.(?:x_proj|h_proj|weight_query|dyconv_proj|gate)|head)"


@implements("overlock")
class OverLoCK(Backbone):
    """A base of two stages and a half, a light overview of it, and dynamic blocks that focus.

    The maps of the third and fourth stage carry their context behind them.

    Args:
        num_classes, in_chans: outputs and input channels.
        depths, dims, kernels: blocks, channels and side of the large kernel of the
            base's three stages and of the overview.
        focus_depths, heads: blocks and heads of the two focussing stages.
        small, regions: of `ContMix`.
        hidden: width that the head's 1x1 convolution gives.
        patch: stride of the stem: 4 as published, 1 or 2 for small images.
        auxiliary: whether the overview has a classifier of its own, for training.
        deploy: build the authors' deployed form, for checkpoints that hold it.
        drop_rate, drop_path_rate: dropout before the classifier, and the
            largest rate of stochastic depth.
    """

    recipe: ClassVar[dict[str, Any]] = ADAMW | {"learning_rate": 1e-3}
    key_rules = (
        *((rf"^(blocks\d\.\d+)\.proj\.{i}\.", rf"\1.{n}.") for i, n in enumerate(_BASIC)),
        (r"\.gamma$", ".weight"),
        (r"\.beta$", ".bias"),
        (r"\.se(_layer)?\.proj\.1\.", ".se.fc1."),
        (r"\.se(_layer)?\.proj\.3\.", ".se.fc2."),
        (r"\.rpb1$", ".mixer.bias_small"),
        (r"\.rpb2$", ".mixer.bias_large"),
        (r"\.weight_key\.1\.", ".weight_key.conv."),
        (r"\.weight_key\.2\.", ".weight_key.norm."),
        (r"^aux_head\.2\.", "aux_head.1.fc."),
        (_PAIRS + r"\.0\.", r"\1.conv."),
        (_PAIRS + r"\.1\.", r"\1.norm."),
        (r"\.weight_(query|key)\.", r".mixer.\1."),
        (r"\.weight_proj\.", ".mixer.weights."),
        (r"\.dyconv_proj\.", ".mixer.proj."),
        *((rf"^{theirs}\.", f"{ours}.") for theirs, ours in _PLACES.items()),
    )

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: tuple[int, ...] = (2, 2, 3, 2),
        dims: tuple[int, ...] = (56, 112, 256, 336),
        kernels: tuple[int, ...] = (17, 15, 13, 7),
        focus_depths: tuple[int, int] = (6, 2),
        heads: tuple[int, int] = (8, 12),
        small: int = 5,
        regions: int = 7,
        hidden: int = 1024,
        patch: int = 4,
        auxiliary: bool = True,
        deploy: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        require_stages(depths=depths, dims=dims, kernels=kernels, stages=(1, 2, 3, 4))
        rates = drop_path_rates(drop_path_rate, depths + focus_depths)
        context = dims[3] // SHARE

        def basic(i: int) -> Stage:
            down = ConvNorm(dims[i - 1], dims[i], 3, stride=2) if i else nn.Identity()
            return Stage(down, [BasicBlock(dims[i], kernels[i], i > 1, rate) for rate in rates[i]])

        def dynamic(i: int) -> list[nn.Module]:
            shape = dims[i], kernels[i], heads[i - 2], context, small, regions
            return [
                DynamicBlock(dims[i], context, ContMix(*shape), i == 2 and j == 0, rate)
                for j, rate in enumerate(rates[i + 2])
            ]

        self.stem = _stem(in_chans, dims[0], patch)
        aux = nn.Sequential(nn.BatchNorm2d(dims[3]), PoolHead(dims[3], num_classes))
        third = OverviewStage(basic(2), basic(3), dims[3], dynamic(2), aux if auxiliary else None)
        fourth = FocusStage(dims[2], dims[3], context, dynamic(3))
        self.stages = nn.Sequential(basic(0), basic(1), third, fourth)
        self.head = WideHead(dims[3] + context, hidden, num_classes, drop_rate)
        initialise(self)
        self.head_width = hidden
        told = {"stages.2.auxiliary.1.fc": partial(nn.Linear, dims[3])} if auxiliary else {}
        widths = [dims[0], dims[1], dims[2] + context, dims[3] + context]
        self._finish(num_classes, in_chans, widths, [patch * 2**i for i in range(4)], told)
        if deploy:
            for module in self.eval().modules():
                if isinstance(module, DilatedReparam):
                    module.merge_branches()

    @property
    def classifier_in_features(self) -> int:
        return self.head_width

    def layer_groups(self) -> list[list[str]]:
        """As of any backbone; the overview and what it guides follow the base that they see."""
        groups = [g for g in super().layer_groups() if not g[0].startswith("stages.2.")]
        third: dict[str, list[str]] = {}
        for name, _ in self.named_parameters():
            for part in re.findall(r"^stages\.2\.(?:overview\.)?\w+(?:\.\d+)?", name):
                third.setdefault(part, []).append(name)
        at = next(i for i, group in enumerate(groups) if group[0].startswith("stages.3."))
        return groups[:at] + list(third.values()) + groups[at:]

    def _as_map(self, index: int, x: Any, images: Tensor) -> Tensor:
        return x[0] if index == 2 else x


def _stem(in_chans: int, dim: int, patch: int) -> nn.Sequential:
    """Four 3x3 convolutions, the first and the third of which stride, with norms and GELU."""
    layers: list[nn.Module] = []
    widths = (in_chans, dim // 2, dim // 2, dim, dim)
    first, second = stem_strides(patch)
    for i, stride in enumerate((first, 1, second, 1)):
        conv = nn.Conv2d(widths[i], widths[i + 1], 3, stride=stride, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(widths[i + 1]), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def _config(*four: tuple[int, ...]) -> dict[str, Any]:
    return dict(zip(("depths", "dims", "focus_depths", "heads"), four, strict=True))


_MINI = {"kernels": (7, 7, 7, 3), "small": 3, "regions": 4, "hidden": 256, "patch": 1}

SIZES = {
    "overlock_xt": Size({}, top1=82.7),
    "overlock_t": Size(_config((4, 4, 6, 2), (64, 128, 256, 512), (12, 2), (8, 16)), top1=84.2),
    "overlock_s": Size(_config((6, 6, 8, 3), (64, 128, 320, 512), (16, 3), (16, 32)), top1=84.8),
    "overlock_b": Size(_config((8, 8, 10, 4), (80, 160, 384, 576), (20, 4), (12, 18)), top1=85.1),
    "overlock_mini32": Size(
        _config((1, 1, 1, 1), (24, 48, 64, 96), (2, 1), (4, 4)) | _MINI | {"auxiliary": False},
        side=32,
        crop=1.0,
    ),
}

register(OverLoCK, SIZES)
