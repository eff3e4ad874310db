"""PVT: a pyramid of transformers with spatial-reduction attention and a class token at the top.

Source: pvt (arXiv 2102.12122, section 3 and table 1). The authors' code is under Apache-2.0.
"""

from typing import Any, ClassVar

from torch import nn

from foveate.backbones.base import ADAMW, Backbone, Size
from foveate.backbones.parts import (
    ClassTokenStage,
    ConvMlp,
    MetaBlock,
    PositionEmbedding,
    Stage,
    TokenHead,
    drop_path_rates,
    initialise,
    require_stages,
)
from foveate.backbones.registry import register
from foveate.catalog import implements
from foveate.ops.layer_norm import LayerNorm2d
from foveate.ops.pvt import SpatialReductionAttention


@implements("pvt")
class PyramidVisionTransformer(Backbone):
    """Patches, learnt places and transformer blocks, in stages that halve the map.

    Args:
        num_classes, in_chans: outputs and input channels.
        depths, dims, heads: blocks, channels and heads of each stage.
        mlp_ratios: hidden width of the channel mixers over their channels.
        ratios: by how much each stage's keys and values are reduced.
        patch: side of the first stage's patches.
        side: of the images that places are learnt for; others get them scaled.
        drop_rate, drop_path_rate: dropout before the classifier, and the
            largest rate of stochastic depth.
    """

    recipe: ClassVar[dict[str, Any]] = ADAMW | {"learning_rate": 1e-3}
    key_rules = (
        (r"^cls_token$", "stages.3.class_token"),
        (r"^patch_embed1\.proj\.", "stem.0."),
        (r"^patch_embed1\.norm\.", "stem.1."),
        (r"^pos_embed1$", "stem.2.embedding"),
        (r"^pos_embed4$", "stages.3.positions.embedding"),
        (r"^pos_drop1\.$", "stem."),
        *((rf"^patch_embed{i + 1}\.proj\.", f"stages.{i}.downsample.0.") for i in (1, 2, 3)),
        *((rf"^patch_embed{i + 1}\.norm\.", f"stages.{i}.downsample.1.") for i in (1, 2, 3)),
        *((rf"^pos_embed{i + 1}$", f"stages.{i}.downsample.2.embedding") for i in (1, 2)),
        *((rf"^pos_drop{i + 1}\.$", f"stages.{i}.downsample.") for i in (1, 2)),
        *((rf"^block{i + 1}\.(\d+)\.", rf"stages.{i}.blocks.\1.") for i in range(4)),
        (r"^norm\.", "stages.3.norm."),
        (r"^head\.(weight|bias)$", r"head.fc.\1"),
        (r"^head\.$", "head.fc."),
    )

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: tuple[int, ...] = (2, 2, 2, 2),
        dims: tuple[int, ...] = (64, 128, 320, 512),
        heads: tuple[int, ...] = (1, 2, 5, 8),
        mlp_ratios: tuple[int, ...] = (8, 8, 4, 4),
        ratios: tuple[int, ...] = (8, 4, 2, 1),
        patch: int = 4,
        side: int = 224,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        require_stages(depths=depths, dims=dims, heads=heads, mlp_ratios=mlp_ratios, ratios=ratios)
        last = len(depths) - 1
        strides = [patch * 2**i for i in range(len(depths))]
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            places = PositionEmbedding(
                side // strides[i], dims[i], flat=True, prefix=int(i == last)
            )
            before, step = (dims[i - 1], 2) if i else (in_chans, patch)
            down = nn.Sequential(
                nn.Conv2d(before, dims[i], step, stride=step),
                LayerNorm2d(dims[i], eps=1e-5),
                *([places] if i < last else []),
            )
            blocks: list[nn.Module] = [
                MetaBlock(
                    dims[i],
                    mixer=("attn", SpatialReductionAttention(dims[i], heads[i], ratios[i])),
                    norm=LayerNorm2d,
                    mlp=ConvMlp(dims[i], mlp_ratios[i] * dims[i]),
                    scale=None,
                    drop_path=rate,
                )
                for rate in rates
            ]
            if i == last:
                stages.append(ClassTokenStage(down, blocks, LayerNorm2d(dims[i]), dims[i], places))
            elif i:
                stages.append(Stage(down, blocks))
            else:
                self.stem = down
                stages.append(Stage(nn.Identity(), blocks))
        self.stages = nn.Sequential(*stages)
        self.head = TokenHead(dims[-1], num_classes, drop_rate)
        initialise(self)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
                module.reset_parameters()
        self._finish(num_classes, in_chans, list(dims), strides)


SIZES = {
    "pvt_tiny": Size({}, top1=75.1),
    "pvt_small": Size({"depths": (3, 4, 6, 3)}, top1=79.8),
    "pvt_medium": Size({"depths": (3, 4, 18, 3)}, top1=81.2),
    "pvt_large": Size({"depths": (3, 8, 27, 3)}, top1=81.7),
    "pvt_mini32": Size(
        {
            "depths": (1, 2, 2),
            "dims": (48, 96, 192),
            "heads": (1, 2, 4),
            "mlp_ratios": (4, 4, 4),
            "ratios": (4, 2, 1),
            "patch": 2,
            "side": 32,
        },
        side=32,
        crop=1.0,
    ),
}

register(PyramidVisionTransformer, SIZES)
