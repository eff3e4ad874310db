"""LeViT: a pyramid of attention with batch norms, behind a convolutional stem.

Source: levit (arXiv 2104.01136, section 4 and table 1). The authors' code is under Apache-2.0.
"""

from typing import Any, ClassVar

from torch import Tensor, nn

from foveate.backbones.base import ADAMW, Backbone, Size
from foveate.backbones.parts import (
    DropPath,
    Stage,
    TwinHead,
    initialise,
    require_stages,
)
from foveate.backbones.registry import register
from foveate.catalog import implements
from foveate.ops.conv_norm import ConvNorm
from foveate.ops.levit import LevitAttention
from foveate.ops.merge import merge


class Residual(nn.Module):
    """The input and, but for stochastic depth, what a module makes of it."""

    def __init__(self, module: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.m = module
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.m(x))


@implements("levit")
class LeViT(Backbone):
    """Attention and channel mixers in turn; between stages attention that shrinks the map.

    Args:
        num_classes, in_chans: outputs and input channels.
        depths, dims, heads: pairs of blocks, channels and heads of each stage.
        key_dim: channels of a head's keys.
        steps: strides of the stem's convolutions.
        side: of the images that the attention's biases are made for.
        deploy: build the merged form.
        drop_rate, drop_path_rate: dropout before the classifier, and the rate
            of stochastic depth, which is the same for all blocks.
    """

    recipe: ClassVar[dict[str, Any]] = ADAMW | {"learning_rate": 1e-3, "weight_decay": 0.025}
    timm_key_rules = (
        *((rf"^stem\.conv{i + 1}\.", f"stem.{2 * i}.") for i in range(4)),
        *((rf"\.blocks\.{i}\.attn\.", f".blocks.{2 * i}.m.") for i in reversed(range(5))),
        *((rf"\.blocks\.{i}\.mlp\.", f".blocks.{2 * i + 1}.m.") for i in reversed(range(5))),
        (r"\.attn_downsample\.", ".0."),
        (r"\.downsample\.mlp\.", ".downsample.1.m."),
        (r"\.ln1\.", ".0."),
        (r"\.ln2\.", ".2."),
        (r"\.proj\.ln\.", ".proj.1."),
        (r"\.q\.ln\.", ".q."),
        (r"^head(_dist)?\.bn\.", r"head.norm\1."),
        (r"^head(_dist)?\.linear\.", r"head.fc\1."),
        (r"\.linear\.", ".conv."),
        (r"\.bn\.", ".norm."),
    )

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: tuple[int, ...] = (2, 3, 4),
        dims: tuple[int, ...] = (128, 256, 384),
        heads: tuple[int, ...] = (4, 6, 8),
        key_dim: int = 16,
        steps: tuple[int, ...] = (2, 2, 2, 2),
        side: int = 224,
        deploy: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        require_stages(depths=depths, dims=dims, heads=heads)
        stem: list[nn.Module] = []
        stride, before = 1, in_chans
        for i, step in enumerate(steps):
            width = dims[0] // 2 ** (len(steps) - 1 - i)
            stem += [ConvNorm(before, width, 3, step), nn.Hardswish()]
            stride, before = stride * step, width
        self.stem = nn.Sequential(*stem[:-1])

        def residual(module: nn.Module) -> nn.Module:
            return Residual(module, drop_path_rate)

        stages, strides = [], []
        for i, dim in enumerate(dims):
            reach = -(-side // stride)
            down: nn.Module = nn.Identity()
            if i > 0:
                # keys of 16 or more channels, as many heads as the width before holds
                shrink = LevitAttention(
                    dims[i - 1], key_dim, dims[i - 1] // key_dim, 4, reach, 2, dim
                )
                down = nn.Sequential(shrink, residual(_mlp(dim)))
                stride, reach = 2 * stride, -(-reach // 2)
            blocks: list[nn.Module] = []
            for _ in range(depths[i]):
                attention = LevitAttention(dim, key_dim, heads[i], 2, reach)
                blocks += [residual(attention), residual(_mlp(dim))]
            stages.append(Stage(down, blocks))
            strides.append(stride)
        self.stages = nn.Sequential(*stages)
        self.head = TwinHead(dims[-1], num_classes, drop_rate)
        initialise(self.head)
        self._finish(num_classes, in_chans, list(dims), strides, self.head.second)
        self.default_cfg["first_conv"] = "stem.0.conv"
        self.key_rules = _key_rules(depths)
        if deploy:
            merge(self)


def _mlp(dim: int) -> nn.Module:
    return nn.Sequential(ConvNorm(dim, 2 * dim), nn.Hardswish(), ConvNorm(2 * dim, dim, gain=0.0))


def _key_rules(depths: tuple[int, ...]) -> tuple[tuple[str, str], ...]:
    """The authors number all blocks in one row, so how many there are decides."""
    rules: list[tuple[str, str]] = []
    block = 0
    for i, depth in enumerate(depths):
        for j in range(2 if i else 0):
            rules.append((rf"^blocks\.{block}\.", f"stages.{i}.downsample.{j}."))
            block += 1
        for j in range(2 * depth):
            rules.append((rf"^blocks\.{block}\.", f"stages.{i}.blocks.{j}."))
            block += 1
    return (
        *rules,
        (r"^.*attention_bias_idxs$", ""),
        (r"^patch_embed\.", "stem."),
        (r"^head(_dist)?\.bn\.", r"head.norm\1."),
        (r"^head(_dist)?\.l\.", r"head.fc\1."),
        (r"\.q\.1\.", ".q."),
        (r"\.c\.", ".conv."),
        (r"\.bn\.", ".norm."),
    )


def _size(name: str, top1: float, **config: Any) -> Size:
    hub = {"fb_dist_in1k": f"timm/levit_{name}.fb_dist_in1k"}
    return Size(config, weights=hub, crop=0.9, top1=top1)


_FOUR = (4, 4, 4)

SIZES = {
    "levit_128s": _size("128s", 76.6),
    "levit_128": _size("128", 78.6, depths=_FOUR, heads=(4, 8, 12)),
    "levit_192": _size(
        "192", 80.0, depths=_FOUR, dims=(192, 288, 384), heads=(3, 5, 6), key_dim=32
    ),
    "levit_256": _size(
        "256", 81.6, depths=_FOUR, dims=(256, 384, 512), heads=(4, 6, 8), key_dim=32
    ),
    "levit_384": _size(
        "384", 82.6, depths=_FOUR, dims=(384, 512, 768), heads=(6, 9, 12), key_dim=32
    ),
    "levit_mini32": Size(
        {
            "depths": (2, 2),
            "dims": (96, 160),
            "heads": (3, 5),
            "steps": (2, 2),
            "side": 32,
        },
        side=32,
        crop=1.0,
    ),
}

register(LeViT, SIZES)
