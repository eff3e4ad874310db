"""EMOv2: one block, an inverted bottleneck that convolves in two stages and attends in two.

Source: emov2 (arXiv 2412.06674, section 3.4 and table 2). The authors' code states no
licence; it was read for names and order.
"""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from foveate.backbones.base import ADAMW, Backbone, Size
from foveate.backbones.parts import (
    DropPath,
    PoolHead,
    Stage,
    drop_path_rates,
    require_stages,
    stem_strides,
)
from foveate.backbones.registry import register
from foveate.catalog import implements
from foveate.ops.conv_norm import ConvNorm
from foveate.ops.emov2 import SpannedAttention
from foveate.ops.layer_norm import LayerNorm2d

EPS = 1e-6


class Expand(nn.Module):
    """A 1x1 convolution and its activation. Shapes: (B, dim, H, W) to (B, hidden, H, W)."""

    def __init__(self, dim: int, hidden: int, act: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, hidden, 1)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class MetaMobileBlock(nn.Module):
    """Norm, expansion (which may attend), depthwise convolution, reduction, layer scale.

    Args:
        dim, dim_out: input and output channels.
        ratio: of the expansion.
        kind: `conv` for batch norm, SiLU and a 1x1, `attend` for layer norm and
            `SpannedAttention`, `reduce` for layer norm, GELU and a 1x1.
        head_dim, window: of the attention.
        stride: of the depthwise convolution.
        residual: whether the input is added, inside and outside.
        scale: initial layer scale.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        ratio: float,
        kind: Literal["conv", "attend", "reduce"],
        head_dim: int,
        window: int,
        stride: int,
        residual: bool,
        scale: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        self.residual = residual
        self.norm = nn.BatchNorm2d(dim, eps=EPS) if kind == "conv" else LayerNorm2d(dim)
        if kind == "attend":
            self.expand: nn.Module = SpannedAttention(dim, hidden, head_dim, window)
        else:
            self.expand = Expand(dim, hidden, nn.SiLU() if kind == "conv" else nn.GELU())
        self.local = ConvNorm(hidden, hidden, 5, stride, groups=hidden, eps=EPS)
        self.act = nn.SiLU()
        self.proj = nn.Conv2d(hidden, dim_out, 1, bias=False)
        self.gamma = nn.Parameter(torch.full((dim_out,), scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(self.norm(x))
        near = self.act(self.local(y))
        y = self.proj(y + near if self.residual else near) * self.gamma.view(1, -1, 1, 1)
        return x + self.drop_path(y) if self.residual else y


@implements("emov2")
class EMOv2(Backbone):
    """Stages of `MetaMobileBlock`; the last two attend.

    Args:
        num_classes, in_chans: outputs and input channels.
        depths, dims, ratios, head_dims: blocks, channels, expansions and
            attention heads' channels of each stage.
        attend: stages whose blocks, but the first, attend.
        window: side of the attention's windows.
        patch: stride of the stem and the first stage: 4 as published, 1 or 2 for small images.
        scale: initial layer scale, which the first block of a stage has without a
            residual; short trainings need more than the published one.
        drop_rate, drop_path_rate: dropout before the classifier, and the
            largest rate of stochastic depth.
    """

    recipe: ClassVar[dict[str, Any]] = ADAMW
    key_rules = (
        (r"^stage0\.", "stem."),
        (r"^stem\.2\.conv\.", "stem.4."),
        (r"^stem\.1\.", "stem.2."),
        *((rf"^stage{i + 1}\.(\d+)\.", rf"stages.{i}.blocks.\1.") for i in range(4)),
        (r"\.eops\.0\.net\.", ".expand."),
        (r"\.eops\.0\.(qk|v)\.conv\.", r".expand.\1."),
        (r"\.conv_local\.", ".local."),
        (r"\.proj\.conv\.", ".proj."),
        (r"\.ls\.gamma$", ".gamma"),
        (r"\.norm\.norm\.", ".norm."),
        (r"^norm\.(norm\.)?", "stages.3.norm."),
        (r"^head\.(weight|bias|$)", r"head.fc.\1"),
    )

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: tuple[int, ...] = (3, 3, 9, 3),
        dims: tuple[int, ...] = (48, 72, 160, 288),
        ratios: tuple[float, ...] = (2.0, 3.0, 4.0, 4.0),
        head_dims: tuple[int, ...] = (16, 24, 32, 32),
        attend: tuple[bool, ...] = (False, False, True, True),
        window: int = 7,
        patch: int = 4,
        scale: float = 1e-6,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        require_stages(depths=depths, dims=dims, ratios=ratios, head_dims=head_dims, attend=attend)
        first, second = stem_strides(patch)
        dim = dims[0] // 2
        self.stem = nn.Sequential(
            ConvNorm(in_chans, dim, 3, first, bias=True, eps=EPS),
            nn.SiLU(),
            ConvNorm(dim, dim, 3, groups=dim, eps=EPS),
            nn.SiLU(),
            nn.Conv2d(dim, dim, 1, bias=False),
        )
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            plain, mixing = ("reduce", "attend") if attend[i] else ("conv", "conv")
            blocks: list[nn.Module] = []
            for j, rate in enumerate(rates):
                stride = (second if i == 0 else 2) if j == 0 else 1
                blocks.append(
                    MetaMobileBlock(
                        dim,
                        dims[i],
                        ratios[i] * (2 if j == 0 else 1),
                        plain if j == 0 else mixing,
                        head_dims[i],
                        window,
                        stride,
                        residual=j > 0,
                        scale=scale,
                        drop_path=rate,
                    )
                )
                dim = dims[i]
            last = i == len(dims) - 1
            stages.append(Stage(nn.Identity(), blocks, LayerNorm2d(dim) if last else None))
        self.stages = nn.Sequential(*stages)
        self.head = PoolHead(dim, num_classes, drop_rate)
        if isinstance(self.head.fc, nn.Linear):
            nn.init.trunc_normal_(self.head.fc.weight, std=0.02)
            nn.init.zeros_(self.head.fc.bias)
        self._finish(num_classes, in_chans, list(dims), [patch * 2**i for i in range(len(dims))])
        self.default_cfg["first_conv"] = "stem.0.conv"


_SLIM = {"ratios": (2.0, 2.5, 3.0, 3.5), "head_dims": (16, 16, 20, 20)}
_WIDE = {"head_dims": (16, 32, 32, 32)}
_NAMED: dict[str, dict[str, Any]] = {
    "1m": {**_SLIM, "depths": (2, 2, 8, 3), "dims": (32, 48, 80, 180)},
    "2m": {**_SLIM, "dims": (32, 48, 120, 200)},
    "5m": {},
    "20m": {**_WIDE, "depths": (3, 3, 13, 3), "dims": (64, 128, 320, 448)},
    "50m": {**_WIDE, "depths": (5, 8, 20, 7), "dims": (64, 128, 384, 512)},
}
_TOP1 = {"1m": 72.3, "2m": 75.8, "5m": 79.4}

SIZES = {
    **{f"emov2_{name}": Size(config, top1=_TOP1.get(name)) for name, config in _NAMED.items()},
    **{
        f"emov2_{name}_{side}": Size(config | {"window": 8}, side, crop=1.0)
        for name, config in _NAMED.items()
        for side in (256, 512)
        if (name, side) not in (("20m", 512), ("50m", 256), ("50m", 512))
    },
    "emov2_mini32": Size(
        {
            "depths": (1, 2, 3),
            "dims": (24, 48, 96),
            "ratios": (2.0, 3.0, 3.0),
            "head_dims": (16, 16, 24),
            "attend": (False, True, True),
            "window": 4,
            "patch": 1,
            "scale": 1.0,
        },
        side=32,
        crop=1.0,
    ),
}

register(EMOv2, SIZES)
