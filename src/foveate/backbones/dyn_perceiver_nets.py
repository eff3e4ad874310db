"""Dynamic Perceivers beside MobileNetV3, RegNetY and ResNet.

Source: dyn_perceiver (arXiv 2306.11248, section 4.1). The authors' code is under MIT.
"""

import itertools
import math
from typing import Any

from torch import nn
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3
from torchvision.models.regnet import BlockParams, RegNet

from foveate.backbones.base import Size
from foveate.backbones.dyn_perceiver import DynamicPerceiver
from foveate.backbones.parts import require_stages
from foveate.backbones.registry import register
from foveate.backbones.resnet import DEPTHS, ResNet
from foveate.catalog import implements


def _entry(old: nn.Conv2d, in_chans: int, stride: int) -> nn.Conv2d:
    """The first convolution for other channels and another stride."""
    new = nn.Conv2d(in_chans, old.out_channels, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(new.weight, mode="fan_out")
    return new


LARGE = (
    (3, 16, 16, 0, 0, 1),
    (3, 64, 24, 0, 0, 2),
    (3, 72, 24, 0, 0, 1),
    (5, 72, 40, 1, 0, 2),
    (5, 120, 40, 1, 0, 1),
    (5, 120, 40, 1, 0, 1),
    (3, 240, 80, 0, 1, 2),
    (3, 200, 80, 0, 1, 1),
    (3, 184, 80, 0, 1, 1),
    (3, 184, 80, 0, 1, 1),
    (3, 480, 112, 1, 1, 1),
    (3, 672, 112, 1, 1, 1),
    (5, 672, 160, 1, 1, 2),
    (5, 960, 160, 1, 1, 1),
    (5, 960, 160, 1, 1, 1),
)
"""MobileNetV3-Large: kernel, hidden and output channels, squeezed, hard-swish, stride."""


@implements("dyn_perceiver")
class MobileNetPerceiver(DynamicPerceiver):
    """A latent code beside MobileNetV3 (arXiv 1905.02244).

    Args:
        num_classes, in_chans: outputs and input channels.
        blocks: as `LARGE` lists them.
        cuts: with which block each stage begins; those before are of the stem.
        width: factor on all channels.
        hidden: width before the last two classifiers, before that factor.
        patch: stride of the first convolution: 2 as published, 1 for small images.
        drop_rate, thoughts, options: dropout of the last two exits, and more of a
            `DynamicPerceiver`: `latents`, `widening`, `side`.
    """

    key_rules = (
        *DynamicPerceiver.common_rules,
        *((rf"^classifier_merge\.{i + 1}\.", f"head.hidden.{i}.") for i in range(3)),
        (r"^classifier_merge\.4\.", "head.fc."),
    )

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        blocks: tuple[tuple[int, ...], ...] = LARGE,
        cuts: tuple[int, ...] = (2, 4, 7, 13),
        width: float = 1.0,
        hidden: int = 1280,
        patch: int = 2,
        drop_rate: float = 0.2,
        thoughts: tuple[int, ...] = (3, 3, 9, 9),
        **options: Any,
    ) -> None:
        befores = [LARGE[0][2], *(block[2] for block in blocks[:-1])]
        configs = [
            InvertedResidualConfig(
                before, kernel, inner, after, bool(se), "HS" if hard else "RE", stride, 1, width
            )
            for before, (kernel, inner, after, se, hard, stride) in zip(
                befores, blocks, strict=True
            )
        ]
        hidden = InvertedResidualConfig.adjust_channels(hidden, width)
        net = MobileNetV3(configs, hidden, num_classes=1)
        layers: Any = net.features
        layers[0][0] = _entry(layers[0][0], in_chans, patch)
        starts = [cut + 1 for cut in cuts] + [len(layers)]
        spans = list(itertools.pairwise(starts))
        dims = [configs[cut].input_channels for cut in cuts]
        last: Any = net.classifier[0]
        strides = [patch * math.prod(block[5] for block in blocks[: end - 1]) for _, end in spans]
        super().__init__(
            num_classes,
            in_chans,
            nn.Sequential(*layers[: starts[0]]),
            [nn.Sequential(*layers[start:end]) for start, end in spans],
            [*dims, last.in_features],
            strides,
            hidden=hidden,
            drop_rate=drop_rate,
            thoughts=thoughts,
            **options,
        )


@implements("dyn_perceiver")
class RegNetPerceiver(DynamicPerceiver):
    """A latent code beside RegNetY (arXiv 2003.13678).

    Args:
        num_classes, in_chans: outputs and input channels.
        depths, dims: blocks and channels of each stage.
        group: channels that a group of the 3x3 convolutions has.
        stem_dim: channels of the stem.
        patch: stride of the stem: 2 as published, 1 for small images.
        drop_rate, thoughts, options: dropout of the last two exits, and more of a
            `DynamicPerceiver`: `latents`, `widening`, `side`.
    """

    key_rules = (
        *DynamicPerceiver.common_rules,
        (r"^classifier_merge\.1\.", "head.fc."),
    )

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: tuple[int, ...] = (1, 3, 8, 2),
        dims: tuple[int, ...] = (64, 144, 320, 784),
        group: int = 16,
        stem_dim: int = 32,
        patch: int = 2,
        drop_rate: float = 0.0,
        thoughts: tuple[int, ...] = (3, 3, 9, 6),
        **options: Any,
    ) -> None:
        require_stages(depths=depths, dims=dims)
        n = len(depths)
        shape = BlockParams(list(depths), list(dims), [group] * n, [1.0] * n, [2] * n, 0.25)
        net = RegNet(shape, num_classes=1, stem_width=stem_dim)
        stem: Any = net.stem
        stem[0] = _entry(stem[0], in_chans, patch)
        super().__init__(
            num_classes,
            in_chans,
            nn.Sequential(stem[0], stem[1], stem[2]),
            list(net.trunk_output),
            [stem_dim, *dims],
            [patch * 2 ** (i + 1) for i in range(n)],
            drop_rate=drop_rate,
            first="stem.0",
            thoughts=thoughts,
            **options,
        )


@implements("dyn_perceiver")
class ResNetPerceiver(DynamicPerceiver):
    """A latent code beside ResNet.

    Args:
        num_classes, in_chans: outputs and input channels.
        width: factor on all channels.
        dims: channels of each stage's 3x3 convolutions, before that factor.
        net: `depths`, `block` and `stem` of a `ResNet`.
        drop_rate, drop_path_rate: dropout of the last two exits, and the network's
            largest rate of stochastic depth.
        options: more of a `DynamicPerceiver`: `latents`, `thoughts`, `widening`, `side`.
    """

    key_rules = (
        *DynamicPerceiver.common_rules,
        (r"^classifier_merge\.1\.", "head.fc."),
    )

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        width: float = 1.0,
        dims: tuple[int, ...] = (64, 128, 256, 512),
        net: dict[str, Any] | None = None,
        drop_rate: float = 0.2,
        drop_path_rate: float = 0.2,
        **options: Any,
    ) -> None:
        dims = tuple(int(width * dim) for dim in dims)
        whole = ResNet(1, in_chans, dims=dims, drop_path_rate=drop_path_rate, **(net or {}))
        super().__init__(
            num_classes,
            in_chans,
            nn.Sequential(*whole.stem.children()),
            [stage.get_submodule("blocks") for stage in whole.stages],
            [dims[0], *(info["num_chs"] for info in whole.feature_info)],
            [info["reduction"] for info in whole.feature_info],
            drop_rate=drop_rate,
            first="stem.0",
            **options,
        )


_MINI = {"latents": 32, "thoughts": (1, 1, 2), "side": 4, "drop_rate": 0.0}
_MINI_BLOCKS = (
    (3, 16, 16, 0, 0, 1),
    (3, 64, 32, 0, 0, 2),
    (3, 96, 32, 0, 0, 1),
    (5, 96, 48, 1, 0, 2),
    (5, 144, 48, 1, 1, 1),
    (3, 240, 80, 1, 1, 2),
    (3, 240, 80, 1, 1, 1),
)

MOBILENETS = {
    "050": Size({"width": 0.5}),
    "075": Size({"width": 0.75}, top1=74.59),
    "100": Size({}),
    "125": Size({"width": 1.25}),
    "150": Size({"width": 1.5}),
    "200": Size({"width": 2.0}),
    "mini32": Size(
        {"blocks": _MINI_BLOCKS, "cuts": (1, 3, 5), "hidden": 256, "patch": 1, **_MINI},
        side=32,
        crop=1.0,
    ),
}
REGNETS = {
    "400mf": Size({"depths": (1, 3, 6, 6), "dims": (48, 104, 208, 440), "group": 8}),
    "800mf": Size({}, top1=79.86),
    "1_6gf": Size({"depths": (2, 6, 17, 2), "dims": (48, 120, 336, 888), "group": 24}),
    "3_2gf": Size({"depths": (2, 5, 13, 1), "dims": (72, 216, 576, 1512), "group": 24}),
    "mini32": Size(
        {"depths": (1, 2, 1), "dims": (32, 64, 128), "group": 8, "patch": 1, **_MINI},
        side=32,
        crop=1.0,
    ),
}
RESNETS = {
    "18": Size({"net": DEPTHS[18]}),
    "34": Size({"net": DEPTHS[34]}),
    "50": Size({}),
    "50_0375": Size({"width": 0.375}, top1=77.70),
    "50_050": Size({"width": 0.5}),
    "50_0625": Size({"width": 0.625}),
    "50_075": Size({"width": 0.75}),
    "_mini32": Size(
        {
            "net": {"block": "basic", "depths": (1, 1, 1), "stem": "small"},
            "dims": (32, 64, 128),
            "drop_path_rate": 0.0,
            **_MINI,
        },
        side=32,
        crop=1.0,
    ),
}

register(MobileNetPerceiver, {f"dyn_perceiver_mobilenetv3_{k}": v for k, v in MOBILENETS.items()})
register(RegNetPerceiver, {f"dyn_perceiver_regnety_{k}": v for k, v in REGNETS.items()})
register(ResNetPerceiver, {f"dyn_perceiver_resnet{k}": v for k, v in RESNETS.items()})
