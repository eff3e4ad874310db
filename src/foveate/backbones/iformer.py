"""Inception Transformer: from mostly high to mostly low frequencies, stage by stage.

Source: iformer (arXiv 2205.12956, section 3.2 and appendix A). The authors' code is under
Apache-2.0.
"""

from typing import Any, ClassVar

from torch import nn

from foveate.backbones.base import ADAMW, Backbone, Size
from foveate.backbones.parts import (
    ConvMlp,
    MetaBlock,
    PoolHead,
    PositionEmbedding,
    Stage,
    drop_path_rates,
    initialise,
    require_stages,
    stem_strides,
)
from foveate.backbones.registry import register
from foveate.catalog import implements
from foveate.ops.iformer import InceptionMixer
from foveate.ops.layer_norm import LayerNorm2d


@implements("iformer")
class IFormer(Backbone):
    """Stages of `InceptionMixer` and an inverted bottleneck, with learnt positions.

    Args:
        num_classes, in_chans: outputs and input channels.
        dims, heads: channels of each stage, and into how many parts they are divided.
        attending: parts of each block that attend, stage by stage.
        pools: by how much smaller the maps are that each stage's attention sees.
        scaled: stages with layer scale.
        side: of the images that positions are learnt for.
        patch: stride of the stem: 4 as published, 1 or 2 for small images.
        drop_rate, drop_path_rate: dropout before the classifier, and the
            largest rate of stochastic depth.
    """

    recipe: ClassVar[dict[str, Any]] = ADAMW | {"learning_rate": 1e-3}
    key_rules = (
        (r"^patch_embed\.proj1\.", "stem.0."),
        (r"^patch_embed\.norm1\.", "stem.1."),
        (r"^patch_embed\.proj2\.", "stem.3."),
        (r"^patch_embed\.norm2\.", "stem.4."),
        (r"^pos_embed1$", "stem.5.embedding"),
        *((rf"^patch_embed{i + 1}\.proj\.", f"stages.{i}.downsample.0.") for i in range(1, 4)),
        *((rf"^patch_embed{i + 1}\.norm\.", f"stages.{i}.downsample.1.") for i in range(1, 4)),
        *((rf"^pos_embed{i + 1}$", f"stages.{i}.downsample.2.embedding") for i in range(1, 4)),
        *((rf"^blocks{i + 1}\.(\d+)\.", rf"stages.{i}.blocks.\1.") for i in range(4)),
        (r"\.layer_scale_([12])$", r".gamma\1"),
        (r"^norm\.", "stages.3.norm."),
        (r"^head\.(weight|bias|$)", r"head.fc.\1"),
    )

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        dims: tuple[int, ...] = (96, 192, 320, 384),
        heads: tuple[int, ...] = (3, 6, 10, 12),
        attending: tuple[tuple[int, ...], ...] = (
            (1,) * 3,
            (3,) * 3,
            (7,) * 4 + (9,) * 5,
            (11,) * 3,
        ),
        pools: tuple[int, ...] = (2, 2, 1, 1),
        scaled: tuple[bool, ...] = (False, False, True, True),
        side: int = 224,
        patch: int = 4,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        require_stages(dims=dims, heads=heads, attending=attending, pools=pools, scaled=scaled)
        first, second = stem_strides(patch)
        half = dims[0] // 2
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, half, 3, stride=first, padding=1),
            nn.BatchNorm2d(half),
            nn.GELU(),
            nn.Conv2d(half, dims[0], 3, stride=second, padding=1),
            nn.BatchNorm2d(dims[0]),
            PositionEmbedding(side // patch, dims[0]),
        )
        rates = drop_path_rates(drop_path_rate, tuple(map(len, attending)))
        stages = []
        for i, parts in enumerate(attending):
            down: nn.Module = nn.Identity()
            if i > 0:
                down = nn.Sequential(
                    nn.Conv2d(dims[i - 1], dims[i], 3, stride=2, padding=1),
                    nn.BatchNorm2d(dims[i]),
                    PositionEmbedding(side // (patch * 2**i), dims[i]),
                )
            blocks: list[nn.Module] = [
                MetaBlock(
                    dims[i],
                    mixer=("attn", InceptionMixer(dims[i], heads[i], part, pools[i])),
                    norm=LayerNorm2d,
                    mlp=ConvMlp(dims[i], 4 * dims[i]),
                    scale=1e-6 if scaled[i] else None,
                    drop_path=rate,
                )
                for part, rate in zip(parts, rates[i], strict=True)
            ]
            last = i == len(dims) - 1
            stages.append(Stage(down, blocks, LayerNorm2d(dims[i]) if last else None))
        self.stages = nn.Sequential(*stages)
        self.head = PoolHead(dims[-1], num_classes, drop_rate)
        initialise(self)
        self._finish(num_classes, in_chans, list(dims), [patch * 2**i for i in range(len(dims))])

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(".embedding")}


_BASE = {
    "dims": (96, 192, 384, 512),
    "heads": (3, 6, 12, 16),
    "attending": ((1,) * 4, (3,) * 6, (8,) * 7 + (10,) * 7, (15,) * 6),
}
_LARGE = {
    "dims": (96, 192, 448, 640),
    "heads": (3, 6, 14, 20),
    "attending": ((1,) * 4, (3,) * 6, (10,) * 9 + (12,) * 9, (19,) * 8),
}
_NAMED: dict[str, dict[str, Any]] = {"small": {}, "base": _BASE, "large": _LARGE}
_TOP1 = {"small": 83.4, "base": 84.6, "large": 84.8}

SIZES = {
    **{
        f"iformer_{name}": Size(config, crop=0.9, top1=_TOP1[name])
        for name, config in _NAMED.items()
    },
    **{f"iformer_{name}_384": Size(config, 384, crop=1.0) for name, config in _NAMED.items()},
    "iformer_mini32": Size(
        {
            "dims": (32, 64, 128),
            "heads": (4, 4, 8),
            "attending": ((1,), (2, 2), (6, 6)),
            "pools": (2, 2, 1),
            "scaled": (False, True, True),
            "side": 32,
            "patch": 1,
        },
        side=32,
        crop=1.0,
    ),
}

register(IFormer, SIZES)
