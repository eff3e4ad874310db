"""HorNet: gated convolutions whose order grows from stage to stage.

Source: hornet (arXiv 2207.14284, section 3.2). The authors' code is under MIT.
"""

from functools import partial
from typing import Any, ClassVar

from torch import nn

from foveate.backbones.base import ADAMW, Backbone, Size
from foveate.backbones.parts import (
    ConvMlp,
    MetaBlock,
    NormHead,
    Stage,
    drop_path_rates,
    initialise,
    patch_stem,
    require_stages,
)
from foveate.backbones.registry import register
from foveate.catalog import implements
from foveate.ops.hornet import GlobalLocalFilter, RecursiveGatedConv
from foveate.ops.layer_norm import LayerNorm2d


@implements("hornet")
class HorNet(Backbone):
    """Stages of `RecursiveGatedConv` of order 2, 3, 4, 5 and an inverted bottleneck.

    Args:
        num_classes, in_chans: outputs and input channels.
        depths, dims, orders: blocks, channels and order of each stage.
        filters: height and width of the global filters in frequencies, for each
            stage that has them; None for 7x7 depthwise convolutions.
        patch: stride of the stem: 4 as published, 1 or 2 for small images.
        drop_rate, drop_path_rate: dropout before the classifier, and the
            largest rate of stochastic depth.
    """

    recipe: ClassVar[dict[str, Any]] = ADAMW
    key_rules = (
        (r"^downsample_layers\.0\.", "stem."),
        (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
        (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"\.pwconv([12])\.", r".mlp.fc\1."),
        (r"^norm\.", "head.norm."),
        (r"^head\.(weight|bias|$)", r"head.fc.\1"),
    )

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: tuple[int, ...] = (2, 3, 18, 2),
        dims: tuple[int, ...] = (64, 128, 256, 512),
        orders: tuple[int, ...] = (2, 3, 4, 5),
        filters: tuple[tuple[int, int] | None, ...] = (None, None, None, None),
        patch: int = 4,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        require_stages(depths=depths, dims=dims, orders=orders, filters=filters)
        self.stem = patch_stem(in_chans, dims[0], patch, LayerNorm2d)
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            down: nn.Module = nn.Identity()
            if i > 0:
                conv = nn.Conv2d(dims[i - 1], dims[i], 2, stride=2)
                down = nn.Sequential(LayerNorm2d(dims[i - 1]), conv)
            size = filters[i]
            wide = size and partial(GlobalLocalFilter, height=size[0], width=size[1])
            blocks: list[nn.Module] = [
                MetaBlock(
                    dims[i],
                    mixer=("gnconv", RecursiveGatedConv(dims[i], orders[i], wide)),
                    norm=LayerNorm2d,
                    mlp=ConvMlp(dims[i], 4 * dims[i]),
                    scale=1e-6,
                    drop_path=rate,
                )
                for rate in rates
            ]
            stages.append(Stage(down, blocks))
        self.stages = nn.Sequential(*stages)
        self.head = NormHead(dims[-1], num_classes, drop_rate)
        initialise(self)
        strides = [patch * 2**i for i in range(len(dims))]
        self._finish(num_classes, in_chans, list(dims), strides)


def _widths(first: int) -> dict[str, Any]:
    return {"dims": tuple(first * 2**i for i in range(4))}


_AT_224 = {"filters": (None, None, (14, 8), (7, 4))}
_AT_384 = {"filters": (None, None, (24, 13), (12, 7))}
_NAMED = {"tiny": 64, "small": 96, "base": 128, "large": 192}

_TOP1 = {"tiny": (82.8, 83.0), "small": (84.0, 84.2), "base": (84.3, 84.5), "large": (None, None)}

SIZES = {
    **{
        f"hornet_{name}_7x7": Size(_widths(dim), top1=_TOP1[name][0])
        for name, dim in _NAMED.items()
    },
    **{
        f"hornet_{name}_gf": Size(_widths(dim) | _AT_224, top1=_TOP1[name][1])
        for name, dim in _NAMED.items()
    },
    **{
        f"hornet_{name}_gf_img384": Size(_widths(_NAMED[name]) | _AT_384, 384, crop=1.0)
        for name in ("base", "large")
    },
    "hornet_mini32": Size(
        {
            "depths": (1, 2, 2),
            "dims": (32, 64, 128),
            "orders": (2, 3, 4),
            "filters": (None, None, None),
            "patch": 1,
        },
        side=32,
        crop=1.0,
    ),
}

register(HorNet, SIZES)
