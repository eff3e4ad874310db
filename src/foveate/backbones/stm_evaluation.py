"""One skeleton for every token mixer, so that mixers are compared and nothing else.

Source: stm_evaluation (arXiv 2211.05781, section 3): stem, stages, channel
mixer and norms are fixed, and only the spatial token mixer is exchanged.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn

from foveate.backbones.base import ADAMW, Backbone
from foveate.backbones.parts import (
    Block,
    ConvMlp,
    NormHead,
    Stage,
    drop_path_rates,
    initialise,
    patch_stem,
)
from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.measure import count
from foveate.ops.layer_norm import LayerNorm2d

Mixer = Callable[[int], nn.Module]
"""Builds a token mixer for so many channels: (B, dim, H, W) to the same."""


def depthwise(kernel: int, dim: int) -> nn.Module:
    """The plainest token mixer that learns: a depthwise convolution."""
    return nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)


@implements("stm_evaluation")
class Skeleton(Backbone):
    """Stages of blocks that mix tokens in any way and channels in one way.

    Args:
        mixer: builds each block's token mixer from its number of channels.
        num_classes, in_chans: outputs and input channels.
        depths, dims: blocks and channels of each stage.
        mlp_ratio: hidden width of the channel mixer over its channels.
        patch: stride of the stem.
        drop_path_rate: the largest rate of stochastic depth.
    """

    recipe: ClassVar[dict[str, Any]] = ADAMW

    def __init__(
        self,
        mixer: Mixer,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: tuple[int, ...] = (2, 2, 2),
        dims: tuple[int, ...] = (32, 64, 128),
        mlp_ratio: int = 3,
        patch: int = 1,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.stem = patch_stem(in_chans, dims[0], patch, LayerNorm2d)
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            down: nn.Module = nn.Identity()
            if i > 0:
                down = nn.Sequential(
                    LayerNorm2d(dims[i - 1]), nn.Conv2d(dims[i - 1], dims[i], 2, stride=2)
                )
            blocks: list[nn.Module] = [
                Block(
                    dims[i],
                    mixer=("token_mixer", mixer(dims[i])),
                    norm=LayerNorm2d(dims[i]),
                    mlp=ConvMlp(dims[i], mlp_ratio * dims[i]),
                    scale=None,
                    drop_path=rate,
                )
                for rate in rates
            ]
            stages.append(Stage(down, blocks))
        self.stages = nn.Sequential(*stages)
        self.head = NormHead(dims[-1], num_classes)
        initialise(self)
        strides = [patch * 2**i for i in range(len(dims))]
        self._finish(num_classes, in_chans, list(dims), strides)


def at_equal(
    mixer: Mixer,
    budget: int,
    what: str = "macs",
    *,
    size: int = 32,
    num_classes: int = 10,
    multiple: int = 8,
    **kwargs: Any,
) -> Skeleton:
    """The skeleton whose width brings it nearest to a budget.

    Args:
        mixer: as `Skeleton` takes it.
        budget: parameters, or multiply-adds of one image.
        what: `params` or `macs`.
        size: side of the image.
        multiple: widths of the first stage are multiples of this.
        kwargs: for the skeleton.

    Widths that the mixer does not allow are passed over.

    Raises: FoveateError if `what` is neither, or no width comes within a quarter of the budget.
    """
    if what not in ("params", "macs"):
        raise FoveateError(f"cannot equalise {what!r}: choose params or macs")
    errors: dict[int, float] = {}
    for width in range(multiple, 64 * multiple, multiple):
        try:
            found = _cost(mixer, width, what, size, num_classes, kwargs)
        except FoveateError:
            continue
        errors[width] = abs(found - budget) / budget
        if found > budget:
            break
    width = min(errors, key=lambda w: errors[w], default=0)
    if not width or errors[width] > 0.25:
        raise FoveateError(
            f"no width brings this mixer within a quarter of {budget:,} {what}: give another budget"
        )
    return Skeleton(mixer, num_classes, dims=_dims(width), **kwargs)


def _cost(
    mixer: Mixer, width: int, what: str, size: int, num_classes: int, kwargs: dict[str, Any]
) -> int:
    net = Skeleton(mixer, num_classes, dims=_dims(width), **kwargs)
    if what == "params":
        return sum(p.numel() for p in net.parameters())
    return count(net, torch.zeros(1, 3, size, size)).macs


def _dims(width: int) -> tuple[int, ...]:
    return width, 2 * width, 4 * width
