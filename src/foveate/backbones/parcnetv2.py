"""ParCNetV2: kernels longer than the map at every stage, and gates instead of attention.

Source: parcnetv2 (arXiv 2211.07157, section 3). The authors' code is under MIT.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.backbones.base import ADAMW, Backbone, Size
from foveate.backbones.parts import (
    DropPath,
    NormHead,
    Stage,
    drop_path_rates,
    initialise,
    overlapping_patches,
    require_stages,
)
from foveate.backbones.registry import register
from foveate.catalog import implements
from foveate.ops.parcnetv2 import ChannelGate, SpatialGate

EPS = 1e-6
RATIO = 5
SCALED_FROM = 2  # the first of the stages whose residual paths are scaled


class UnitNorm2d(nn.Module):
    """Vectors of channels less their mean, at length 1, then scaled: layer norm without a spread.

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        dim = len(self.weight)
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, (dim,), self.weight * dim**-0.5, eps=EPS**2 / dim)
        return x.permute(0, 3, 1, 2)


class ParCNetV2Block(nn.Module):
    """A spatial and a channel gate, each with its norm and a residual path.

    Args:
        dim: channels.
        side: of the maps that the oversized kernels are made for.
        scaled: whether the residual paths have a scale for each channel.
        zoom: of `OversizedConv`.
        drop_path: rate of stochastic depth.

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(self, dim: int, side: int, scaled: bool, zoom: bool, drop_path: float) -> None:
        super().__init__()
        self.norm1 = UnitNorm2d(dim)
        self.token_mixer = SpatialGate(dim, side, zoom=zoom)
        self.norm2 = UnitNorm2d(dim)
        self.mlp = ChannelGate(dim, RATIO * dim)
        self.scale1, self.scale2 = (
            nn.Parameter(torch.ones(dim, 1, 1)) if scaled else None for _ in range(2)
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop_path(self.token_mixer(self.norm1(x)))
        x = y + (x if self.scale1 is None else x * self.scale1)
        y = self.drop_path(self.mlp(self.norm2(x)))
        return y + (x if self.scale2 is None else x * self.scale2)


@implements("parcnetv2")
class ParCNetV2(Backbone):
    """Stages of `SpatialGate` and `ChannelGate`, alike from the first to the last.

    Args:
        num_classes, in_chans: outputs and input channels.
        depths, dims: blocks and channels of each stage.
        side: of the images that the oversized kernels are made for.
        zoom: scale those kernels for images of other sizes, as the paper says;
            the authors' code for dense tasks leaves them as they are.
        patch: stride of the stem: 4 as published, 1 or 2 for small images.
        drop_rate, drop_path_rate: dropout before the classifier, and the
            largest rate of stochastic depth.
    """

    recipe: ClassVar[dict[str, Any]] = ADAMW
    key_rules = (
        (r"^downsample_layers\.0\.conv\.", "stem.0."),
        (r"^downsample_layers\.0\.post_norm\.", "stem.1."),
        (r"^downsample_layers\.(\d)\.pre_norm\.", r"stages.\1.downsample.0."),
        (r"^downsample_layers\.(\d)\.conv\.", r"stages.\1.downsample.1."),
        (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"\.res_scale([12])\.scale$", r".scale\1"),
        (r"^norm\.", "head.norm."),
        (r"^head\.(weight|bias|$)", r"head.fc.\1"),
    )

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: tuple[int, ...] = (3, 3, 12, 3),
        dims: tuple[int, ...] = (64, 128, 320, 512),
        side: int = 224,
        zoom: bool = True,
        patch: int = 4,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        require_stages(depths=depths, dims=dims)
        self.stem = nn.Sequential(
            overlapping_patches(in_chans, dims[0], patch), UnitNorm2d(dims[0])
        )
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            down: nn.Module = nn.Identity()
            if i > 0:
                conv = nn.Conv2d(dims[i - 1], dims[i], 3, stride=2, padding=1)
                down = nn.Sequential(UnitNorm2d(dims[i - 1]), conv)
            reach = side // (patch * 2**i)
            blocks: list[nn.Module] = [
                ParCNetV2Block(dims[i], reach, i >= SCALED_FROM, zoom, rate) for rate in rates
            ]
            stages.append(Stage(down, blocks))
        self.stages = nn.Sequential(*stages)
        self.head = NormHead(dims[-1], num_classes, drop_rate)
        initialise(self)
        self._finish(num_classes, in_chans, list(dims), [patch * 2**i for i in range(len(dims))])


_DEEP = (3, 9, 24, 3)

SIZES = {
    "parcnetv2_xt": Size({"depths": (3, 3, 9, 2), "dims": (48, 96, 192, 320)}, top1=79.4),
    "parcnetv2_tiny": Size({}, top1=83.5),
    "parcnetv2_small": Size({"depths": _DEEP}, top1=84.3),
    "parcnetv2_base": Size({"depths": _DEEP, "dims": (96, 192, 384, 576)}, top1=84.6),
    "parcnetv2_mini32": Size(
        {"depths": (1, 2, 2), "dims": (32, 64, 128), "side": 32, "patch": 1}, side=32, crop=1.0
    ),
}

register(ParCNetV2, SIZES)
