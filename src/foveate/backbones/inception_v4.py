"""Inception-v4 and Inception-ResNet, their cells as data.

Source: inception_v4 (arXiv 1602.07261, section 3). `inception_resnet_v2` is as the authors
released it (TF-slim, Apache-2.0), deeper and thinner than in the paper's figures.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from foveate.backbones.base import ADAMW, Backbone, Size
from foveate.backbones.parts import PoolHead, Stage
from foveate.backbones.registry import register
from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.ops.inception_v4 import Cell, Conv, Layer, Pool, ScaledResidual, build

HALF = (0.5, 0.5, 0.5)
FORK = Cell(((Conv(256, (1, 3)),), (Conv(256, (3, 1)),)))


@dataclass(frozen=True)
class Plan:
    """A whole network.

    Args:
        stem: layers before the first stage.
        downs: layers before the blocks of each stage.
        cells: of each stage's blocks.
        depths: blocks of each stage.
        scales: of the residuals of each stage; None for cells alone.
        end: layers after the last block, which then ends without scale or ReLU.
    """

    stem: tuple[Layer, ...]
    downs: tuple[tuple[Layer, ...], ...]
    cells: tuple[Cell, ...]
    depths: tuple[int, ...]
    scales: tuple[float, ...] | None = (0.17, 0.1, 0.2)
    end: tuple[Layer, ...] = ()


def _shrink(k: int, middle: int, m: int, n: int) -> tuple[Layer, ...]:
    """Reduction-A (figure 7)."""
    return (Cell(((Conv(n, 3, 2),), (Conv(k), Conv(middle, 3), Conv(m, 3, 2)), (Pool(2),))),)


_ENTRY = Conv(32, 3, 2), Conv(32, 3, valid=True), Conv(64, 3)
_RESNET_ENTRY = *_ENTRY, Pool(2), Conv(80), Conv(192, 3, valid=True)

V4 = Plan(
    stem=(
        *_ENTRY,
        Cell(((Pool(2),), (Conv(96, 3, 2),))),
        Cell(
            (
                (Conv(64), Conv(96, 3, valid=True)),
                (Conv(64), Conv(64, (1, 7)), Conv(64, (7, 1)), Conv(96, 3, valid=True)),
            )
        ),
    ),
    downs=(
        (Cell(((Conv(192, 3, 2),), (Pool(2),))),),
        _shrink(192, 224, 256, 384),
        (
            Cell(
                (
                    (Conv(192), Conv(192, 3, 2)),
                    (Conv(256), Conv(256, (1, 7)), Conv(320, (7, 1)), Conv(320, 3, 2)),
                    (Pool(2),),
                )
            ),
        ),
    ),
    cells=(
        Cell(
            (
                (Conv(96),),
                (Conv(64), Conv(96, 3)),
                (Conv(64), Conv(96, 3), Conv(96, 3)),
                (Pool(), Conv(96)),
            )
        ),
        Cell(
            (
                (Conv(384),),
                (Conv(192), Conv(224, (1, 7)), Conv(256, (7, 1))),
                (
                    Conv(192),
                    Conv(192, (7, 1)),
                    Conv(224, (1, 7)),
                    Conv(224, (7, 1)),
                    Conv(256, (1, 7)),
                ),
                (Pool(), Conv(128)),
            )
        ),
        Cell(
            (
                (Conv(256),),
                (Conv(384), FORK),
                (Conv(384), Conv(448, (3, 1)), Conv(512, (1, 3)), FORK),
                (Pool(), Conv(256)),
            )
        ),
    ),
    depths=(4, 7, 3),
    scales=None,
)
RESNET_V1 = Plan(
    stem=_RESNET_ENTRY,
    downs=(
        (Conv(256, 3, 2),),
        _shrink(192, 192, 256, 384),
        (
            Cell(
                (
                    (Conv(256), Conv(384, 3, 2)),
                    (Conv(256), Conv(256, 3, 2)),
                    (Conv(256), Conv(256, 3), Conv(256, 3, 2)),
                    (Pool(2),),
                )
            ),
        ),
    ),
    cells=(
        Cell(((Conv(32),), (Conv(32), Conv(32, 3)), (Conv(32), Conv(32, 3), Conv(32, 3)))),
        Cell(((Conv(128),), (Conv(128), Conv(128, (1, 7)), Conv(128, (7, 1))))),
        Cell(((Conv(192),), (Conv(192), Conv(192, (1, 3)), Conv(192, (3, 1))))),
    ),
    depths=(5, 10, 5),
)
RESNET_V2 = Plan(
    stem=_RESNET_ENTRY,
    downs=(
        (
            Pool(2),
            Cell(
                (
                    (Conv(96),),
                    (Conv(48), Conv(64, 5)),
                    (Conv(64), Conv(96, 3), Conv(96, 3)),
                    (Pool(), Conv(64)),
                )
            ),
        ),
        _shrink(256, 256, 384, 384),
        (
            Cell(
                (
                    (Conv(256), Conv(384, 3, 2)),
                    (Conv(256), Conv(288, 3, 2)),
                    (Conv(256), Conv(288, 3), Conv(320, 3, 2)),
                    (Pool(2),),
                )
            ),
        ),
    ),
    cells=(
        Cell(((Conv(32),), (Conv(32), Conv(32, 3)), (Conv(32), Conv(48, 3), Conv(64, 3)))),
        Cell(((Conv(192),), (Conv(128), Conv(160, (1, 7)), Conv(192, (7, 1))))),
        Cell(((Conv(192),), (Conv(192), Conv(224, (1, 3)), Conv(256, (3, 1))))),
    ),
    depths=(10, 20, 10),
    end=(Conv(1536),),
)
SMALL = replace(RESNET_V1, stem=(Conv(64, 3),), depths=(2, 2, 1))
_STEM = {0: "1a", 1: "2a", 2: "2b", 4: "3b", 5: "4a"}
PLANS = {"v4": V4, "resnet_v1": RESNET_V1, "resnet_v2": RESNET_V2, "small": SMALL}


@implements("inception_v4")
class Inception(Backbone):
    """Three stages of Inception cells, with or without residuals.

    Args:
        num_classes, in_chans: outputs and input channels.
        plan: `v4`, `resnet_v1`, `resnet_v2`, or `small` for small images.
        width: share of the plan's channels.
        padded: pad the layers that the paper leaves unpadded, so that maps are
            as large as their strides say.
        shortcut: add the input to each cell of the residual plans.
        drop_rate: dropout before the classifier, 0.2 in the paper.
    """

    recipe: ClassVar[dict[str, Any]] = ADAMW
    timm_key_rules = (
        # Inception-v4
        (r"^features\.([0-2])\.", r"stem.\1."),
        (r"^features\.3\.conv\.", "stem.3.1.0."),
        (r"^features\.4\.", "stem.4."),
        (r"^features\.5\.conv\.", "stages.0.downsample.0.0.0."),
        *((rf"^features\.{6 + i}\.", f"stages.0.blocks.{i}.") for i in range(4)),
        (r"^features\.10\.", "stages.1.downsample.0."),
        *((rf"^features\.{11 + i}\.", f"stages.1.blocks.{i}.") for i in range(7)),
        (r"^features\.18\.", "stages.2.downsample.0."),
        *((rf"^features\.{19 + i}\.", f"stages.2.blocks.{i}.") for i in range(3)),
        (r"\.branch(\d)_(\d)\.", r".\1.\2."),
        (r"\.branch(\d)_(\d)a\.", r".\1.\2.0.0."),
        (r"\.branch(\d)_(\d)b\.", r".\1.\2.1.0."),
        # Inception-ResNet-v2
        *((rf"^conv2d_{name}\.", f"stem.{i}.") for i, name in _STEM.items()),
        (r"^mixed_5b\.", "stages.0.downsample.1."),
        (r"^block8\.", "repeat_2.9."),
        (r"^repeat(_\d)?\.(\d+)\.branch", r"repeat\1.\2.cell.branch"),
        (r"^repeat\.", "stages.0.blocks."),
        (r"^mixed_6a\.", "stages.1.downsample.0."),
        (r"^repeat_1\.", "stages.1.blocks."),
        (r"^mixed_7a\.", "stages.2.downsample.0."),
        (r"^repeat_2\.", "stages.2.blocks."),
        (r"^conv2d_7b\.", "stages.2.norm.0."),
        (r"\.conv2d\.", ".up."),
        # both
        (r"branch(\d)\.(\d)\.", r"\1.\2."),
        (r"branch(\d)\.", r"\1.0."),
        (r"\.bn\.", ".norm."),
        (r"^(last_linear|classif)\.", "head.fc."),
    )

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        plan: str = "v4",
        width: float = 1.0,
        padded: bool = False,
        shortcut: bool = True,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if plan not in PLANS:
            raise FoveateError(f"plan is {plan!r}: give one of {', '.join(PLANS)}")
        of = PLANS[plan]
        self.stem, dim = build(of.stem, in_chans, width, padded)
        stages, widths = [], []
        for i, (down, cell, depth) in enumerate(zip(of.downs, of.cells, of.depths, strict=True)):
            before, dim = build(down, dim, width, padded)
            blocks: list[nn.Module] = []
            for j in range(depth):
                if of.scales is None:
                    blocks.append(build((cell,), dim, width)[0][0])
                    continue
                bare = bool(of.end) and (i, j) == (len(of.depths) - 1, depth - 1)
                scale = 1.0 if bare else of.scales[i]
                blocks.append(ScaledResidual(dim, cell, scale, width, not bare, shortcut))
            after = None
            if of.end and i == len(of.depths) - 1:
                after, dim = build(of.end, dim, width, padded)
            stages.append(Stage(before, blocks, after))
            widths.append(dim)
        self.stages = nn.Sequential(*stages)
        self.head = PoolHead(dim, num_classes, drop_rate)
        first = 2 if plan == "small" else 8
        self._finish(num_classes, in_chans, widths, [first, 2 * first, 4 * first])
        self.least_side = 4 * first if padded else 75
        self.default_cfg |= {"first_conv": "stem.0.conv", "mean": HALF, "std": HALF}


def _size(plan: str, top1: float | None, hub: str | None = None, **more: Any) -> Size:
    weights = {hub.split(".")[1]: f"timm/{hub}"} if hub else {}
    return Size({"plan": plan}, side=299, weights=weights, top1=top1, **more)


SIZES = {
    "inception_v4": _size("v4", 80.0, "inception_v4.tf_in1k"),
    "inception_resnet_v1": _size("resnet_v1", 78.7),
    "inception_resnet_v2": _size("resnet_v2", 80.1, "inception_resnet_v2.tf_in1k", crop=0.8975),
    "inception_mini32": Size({"plan": "small", "width": 0.25, "padded": True}, side=32, crop=1.0),
}

register(Inception, SIZES)
