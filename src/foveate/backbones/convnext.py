"""ConvNeXt: a ResNet brought step by step to the shape of a Swin Transformer, and its V2.

Sources: arXiv 2201.03545 (ConvNeXt), arXiv 2301.00808 (ConvNeXt V2). Sizes below
tiny, and their overlapping stems, are timm's.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

from torch import nn

from foveate.backbones.base import ADAMW, Backbone, Size
from foveate.backbones.parts import (
    Block,
    ConvMlp,
    NormHead,
    Stage,
    drop_path_rates,
    initialise,
    patch_stem,
    require_stages,
)
from foveate.backbones.registry import register
from foveate.ops.layer_norm import LayerNorm2d


def depthwise(dim: int) -> nn.Module:
    """The 7x7 depthwise convolution of the paper."""
    return nn.Conv2d(dim, dim, 7, padding=3, groups=dim)


class ConvNeXt(Backbone):
    """Blocks of a 7x7 depthwise convolution, layer norm and an inverted bottleneck.

    Args:
        num_classes, in_chans: outputs and input channels.
        depths, dims: blocks and channels of each stage.
        patch: stride of the stem: 4 as published, 1 or 2 for small images.
        stem: `patch`, or two overlapping 3x3 convolutions of stride 2,
            `overlap` with full or `overlap_tiered` with half width between.
        grn: global response norm in the channel mixer, and no layer scale: V2.
        mixer: builds each block's token mixer from its channels; by default a
            7x7 depthwise convolution.
        drop_rate, drop_path_rate: dropout before the classifier, and the
            largest rate of stochastic depth.
    """

    recipe: ClassVar[dict[str, Any]] = ADAMW
    key_rules = (
        (r"^downsample_layers\.0\.", "stem."),
        (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
        (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"\.dwconv\.", ".conv_dw."),
        (r"\.pwconv([12])\.", r".mlp.fc\1."),
        (r"\.grn\.beta$", ".mlp.grn.bias"),
        (r"\.grn\.gamma$", ".mlp.grn.weight"),
        (r"^norm\.", "head.norm."),
        (r"^head\.(weight|bias)$", r"head.fc.\1"),
    )

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: tuple[int, ...] = (3, 3, 9, 3),
        dims: tuple[int, ...] = (96, 192, 384, 768),
        patch: int = 4,
        stem: Literal["patch", "overlap", "overlap_tiered"] = "patch",
        grn: bool = False,
        mixer: Callable[[int], nn.Module] = depthwise,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        require_stages(depths=depths, dims=dims)
        if stem == "patch":
            self.stem = patch_stem(in_chans, dims[0], patch, LayerNorm2d)
        else:
            between = dims[0] if stem == "overlap" else max(8, (dims[0] // 2 + 4) // 8 * 8)
            self.stem = nn.Sequential(
                nn.Conv2d(in_chans, between, 3, stride=2, padding=1),
                nn.Conv2d(between, dims[0], 3, stride=2, padding=1),
                LayerNorm2d(dims[0]),
            )
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            down: nn.Module = nn.Identity()
            if i > 0:
                conv = nn.Conv2d(dims[i - 1], dims[i], 2, stride=2)
                down = nn.Sequential(LayerNorm2d(dims[i - 1]), conv)
            make = partial(_block, dims[i], grn, mixer)
            stages.append(Stage(down, [make(rate) for rate in rates]))
        self.stages = nn.Sequential(*stages)
        self.head = NormHead(dims[-1], num_classes, drop_rate)
        initialise(self)
        strides = [patch * 2**i for i in range(len(dims))]
        self._finish(num_classes, in_chans, list(dims), strides)


def _block(dim: int, grn: bool, mixer: Callable[[int], nn.Module], drop_path: float) -> Block:
    return Block(
        dim,
        mixer=("conv_dw", mixer(dim)),
        norm=LayerNorm2d(dim),
        mlp=ConvMlp(dim, 4 * dim, grn),
        scale=None if grn else 1e-6,
        drop_path=drop_path,
    )


def _widths(first: int) -> tuple[int, ...]:
    return tuple(first * 2**i for i in range(4))


_SHORT, _NANO, _TINY, _DEEP = (2, 2, 6, 2), (2, 2, 8, 2), (3, 3, 9, 3), (3, 3, 27, 3)
_PUBLISHED = {
    "atto": (_SHORT, 40, ("d2_in1k",)),
    "femto": (_SHORT, 48, ("d1_in1k",)),
    "pico": (_SHORT, 64, ("d1_in1k",)),
    "nano": (_NANO, 80, ("in12k_ft_in1k", "d1h_in1k")),
    "tiny": (_TINY, 96, ("fb_in1k", "fb_in22k_ft_in1k", "in12k_ft_in1k", "fb_in22k")),
    "small": (_DEEP, 96, ("fb_in1k", "fb_in22k_ft_in1k", "in12k_ft_in1k", "fb_in22k")),
    "base": (_DEEP, 128, ("fb_in1k", "fb_in22k_ft_in1k", "fb_in22k")),
    "large": (_DEEP, 192, ("fb_in1k", "fb_in22k_ft_in1k", "fb_in22k")),
    "xlarge": (_DEEP, 256, ("fb_in22k_ft_in1k", "fb_in22k")),
}
_OVERLAPPING = {
    "atto_ols": (_SHORT, 40, "overlap_tiered", ("a2_in1k",)),
    "femto_ols": (_SHORT, 48, "overlap_tiered", ("d1_in1k",)),
    "pico_ols": (_SHORT, 64, "overlap_tiered", ("d1_in1k",)),
    "nano_ols": (_NANO, 80, "overlap", ("d1h_in1k",)),
}
_SECOND = {
    "atto": (_SHORT, 40),
    "femto": (_SHORT, 48),
    "pico": (_SHORT, 64),
    "nano": (_NANO, 80),
    "tiny": (_TINY, 96),
    "small": (_DEEP, 96),
    "base": (_DEEP, 128),
    "large": (_DEEP, 192),
    "huge": (_DEEP, 352),
}
_FOR_SMALL_IMAGES = {
    "convnext_mini32": {"depths": (1, 2, 2), "dims": (32, 64, 128), "patch": 1},
    "convnext_mini64": {"depths": (2, 2, 4), "dims": (40, 80, 160), "patch": 2},
}


def _hub(name: str, tags: tuple[str, ...]) -> dict[str, str]:
    return {tag: f"timm/{name}.{tag}" for tag in tags}


SIZES = {
    **{
        f"convnext_{name}": Size(
            {"depths": depths, "dims": _widths(first)},
            weights=_hub(f"convnext_{name}", tags),
            races=(80, 4096) if name == "atto" else None,
            top1={"tiny": 82.1, "small": 83.1, "base": 83.8, "large": 84.3}.get(name),
        )
        for name, (depths, first, tags) in _PUBLISHED.items()
    },
    **{
        f"convnext_{name}": Size(
            {"depths": depths, "dims": _widths(first), "stem": stem},
            weights=_hub(f"convnext_{name}", tags),
        )
        for name, (depths, first, stem, tags) in _OVERLAPPING.items()
    },
    **{
        f"convnextv2_{name}": Size(
            {"depths": depths, "dims": _widths(first), "grn": True},
            weights=_hub(f"convnextv2_{name}", ("fcmae_ft_in1k", "fcmae"))
            if name != "small"
            else {},
        )
        for name, (depths, first) in _SECOND.items()
    },
    **{
        name: Size(
            config, side=int(name[-2:]), crop=1.0, races=(8, 40) if "32" in name else (40, 80)
        )
        for name, config in _FOR_SMALL_IMAGES.items()
    },
}

register(ConvNeXt, SIZES)
