"""TransNeXt: foveal attention and convolutional gates in a pyramid.

Source: transnext (arXiv 2311.17132, section 3.5). The authors' code is under Apache-2.0.
"""

from typing import Any, ClassVar

from torch import nn

from foveate.backbones.base import ADAMW, Backbone, Size
from foveate.backbones.parts import (
    MetaBlock,
    PoolHead,
    Stage,
    drop_path_rates,
    initialise,
    require_stages,
)
from foveate.backbones.registry import register
from foveate.catalog import implements
from foveate.ops.layer_norm import LayerNorm2d
from foveate.ops.transnext import AggregatedAttention, ConvGlu, CosineAttention

NORM_EPS = 1e-5  # of the norms inside patch embeddings; the blocks' have 1e-6


@implements("transnext")
class TransNeXt(Backbone):
    """Stages of `AggregatedAttention`, the last of `CosineAttention`, each with `ConvGlu`.

    Args:
        num_classes, in_chans: outputs and input channels.
        depths, dims, heads: blocks, channels and attention heads of each stage.
        mlp_ratios: hidden width of each stage's channel mixer over its channels.
        ratios: by how much each stage pools for its far look; 1 for attention between all.
        pooled: side of the pooled maps, for the linear mode.
        side: of the images that position biases are trained for.
        patch: stride of the stem: 4 as published, 1 or 2 for small images.
        drop_rate, drop_path_rate: dropout before the classifier, and the
            largest rate of stochastic depth.
    """

    recipe: ClassVar[dict[str, Any]] = ADAMW | {"learning_rate": 1e-3}
    key_rules = (
        (r"^patch_embed1\.proj\.", "stem.0."),
        (r"^patch_embed1\.norm\.", "stem.1."),
        *((rf"^patch_embed{i + 1}\.proj\.", f"stages.{i}.downsample.0.") for i in range(1, 4)),
        *((rf"^patch_embed{i + 1}\.norm\.", f"stages.{i}.downsample.1.") for i in range(1, 4)),
        *((rf"^block{i + 1}\.(\d+)\.", rf"stages.{i}.blocks.\1.") for i in range(4)),
        *((rf"^norm{i + 1}\.", f"stages.{i}.norm.") for i in range(4)),
        (r"\.dwconv\.dwconv\.", ".dwconv."),
        (r"^head\.(weight|bias|$)", r"head.fc.\1"),
    )

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: tuple[int, ...] = (2, 2, 15, 2),
        dims: tuple[int, ...] = (48, 96, 192, 384),
        heads: tuple[int, ...] = (2, 4, 8, 16),
        mlp_ratios: tuple[int, ...] = (8, 8, 4, 4),
        ratios: tuple[int, ...] = (8, 4, 2, 1),
        pooled: int | None = None,
        side: int = 224,
        patch: int = 4,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        require_stages(depths=depths, dims=dims, heads=heads, mlp_ratios=mlp_ratios, ratios=ratios)
        kernel = max(2 * patch - 1, 3)
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, dims[0], kernel, stride=patch, padding=kernel // 2),
            LayerNorm2d(dims[0], NORM_EPS),
        )
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            down: nn.Module = nn.Identity()
            if i > 0:
                conv = nn.Conv2d(dims[i - 1], dims[i], 3, stride=2, padding=1)
                down = nn.Sequential(conv, LayerNorm2d(dims[i], NORM_EPS))
            reach = (side // (patch * 2**i),) * 2
            blocks: list[nn.Module] = []
            for rate in rates:
                mixer: nn.Module
                if ratios[i] == 1:
                    mixer = CosineAttention(dims[i], heads[i], reach)
                else:
                    mixer = AggregatedAttention(
                        dims[i], heads[i], ratios[i], pooled=pooled, pretrain=reach
                    )
                blocks.append(
                    MetaBlock(
                        dims[i],
                        mixer=("attn", mixer),
                        norm=LayerNorm2d,
                        mlp=ConvGlu(dims[i], mlp_ratios[i] * dims[i]),
                        scale=None,
                        drop_path=rate,
                    )
                )
            stages.append(Stage(down, blocks, LayerNorm2d(dims[i])))
        self.stages = nn.Sequential(*stages)
        self.head = PoolHead(dims[-1], num_classes, drop_rate)
        initialise(self, by_fan=True)
        self._finish(num_classes, in_chans, list(dims), [patch * 2**i for i in range(len(dims))])

    def no_weight_decay(self) -> set[str]:
        words = ("query_embedding", "relative_pos_bias_local", "cpb", "temperature")
        return {n for n, _ in self.named_parameters() if any(word in n for word in words)}


_DEEP = (5, 5, 22, 5)
_TINY = {"dims": (72, 144, 288, 576), "heads": (3, 6, 12, 24)}

SIZES = {
    "transnext_micro": Size({}, top1=82.5),
    "transnext_tiny": Size(_TINY, top1=84.0),
    "transnext_small": Size(_TINY | {"depths": _DEEP}, top1=84.7),
    "transnext_base": Size(
        {"dims": (96, 192, 384, 768), "heads": (4, 8, 16, 32), "depths": (5, 5, 23, 5)},
        top1=84.8,
    ),
    "transnext_mini32": Size(
        {
            "depths": (1, 2, 2),
            "dims": (24, 48, 96),
            "heads": (1, 2, 4),
            "mlp_ratios": (4, 4, 4),
            "ratios": (4, 2, 1),
            "side": 32,
            "patch": 1,
        },
        side=32,
        crop=1.0,
    ),
}

register(TransNeXt, SIZES)
