"""PfNets: a ResNet whose 3x3 convolutions, and a ViT half of whose attentions, are maxima.

Source: pflayer (arXiv 2202.02777, section 4). The authors' code is under Apache-2.0.
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
)
from foveate.backbones.registry import register
from foveate.backbones.resnet import Bottleneck, ResNet
from foveate.catalog import implements
from foveate.ops.attention import SelfAttention
from foveate.ops.layer_norm import LayerNorm2d
from foveate.ops.pflayer import ExpandedMaxMixer, MaxPoolMixer


def _maximum(dim: int, dim_out: int, stride: int) -> nn.Module:
    return MaxPoolMixer(dim, 3, stride)


def _hybrid(dim: int, dim_out: int, stride: int) -> nn.Module:
    if stride == 1:
        return MaxPoolMixer(dim, 3)
    return nn.Sequential(
        nn.AvgPool2d(stride, stride, ceil_mode=True),
        nn.Sequential(
            nn.Conv2d(dim, dim_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(dim_out),
            nn.ReLU(inplace=True),
        ),
    )


@implements("pflayer")
class PfResNet(ResNet):
    """A `ResNet` of `MaxPoolMixer`s, which have no norm after them.

    Args:
        num_classes, in_chans: outputs and input channels.
        hybrid: average and convolve where the map is halved.
        kwargs: as `ResNet` takes them.
    """

    key_rules = (
        (r"^conv1\.0\.", "stem.0."),
        (r"^conv1\.1\.", "stem.1."),
        (r"\.reduction_block\.0\.", ".conv1."),
        (r"\.reduction_block\.1\.", ".bn1."),
        (r"\.conv_block\.", ".conv2."),
        (r"\.expansion_block\.0\.", ".conv3."),
        (r"\.expansion_block\.1\.", ".bn3."),
        *ResNet.key_rules[2:],
    )

    def __init__(
        self, num_classes: int = 1000, in_chans: int = 3, *, hybrid: bool = False, **kwargs: Any
    ) -> None:
        operator = _hybrid if hybrid else _maximum
        super().__init__(num_classes, in_chans, operator=operator, block="bottleneck", **kwargs)
        for block in self.modules():
            if isinstance(block, Bottleneck):
                block.bn2 = nn.Identity()


@implements("pflayer")
class PfViT(Backbone):
    """A vision transformer without class token, every second block of which pools.

    Args:
        num_classes, in_chans: outputs and input channels.
        depth, dim, heads: blocks, their channels, heads of those that attend.
        patch: side of the patches.
        side: of the images that places are learnt for; others get them scaled.
        drop_rate, drop_path_rate: dropout before the classifier, and the
            largest rate of stochastic depth.
    """

    recipe: ClassVar[dict[str, Any]] = ADAMW | {"learning_rate": 1e-3}
    key_rules = (
        (r"^patch_embed\.(proj\.)?", "stem.0."),
        (r"^pos_embed$", "stem.1.embedding"),
        (r"^pos_drop\.$", "stem."),
        (r"^blocks\.(\d+)\.", r"stages.0.blocks.\1."),
        (r"^norm\.", "stages.0.norm."),
        (r"^gap\.$", "head.drop."),
        (r"^head\.(weight|bias)$", r"head.fc.\1"),
        (r"^head\.$", "head.fc."),
    )

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depth: int = 12,
        dim: int = 192,
        heads: int = 3,
        patch: int = 16,
        side: int = 224,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, dim, patch, stride=patch),
            PositionEmbedding(side // patch, dim, "bicubic", flat=True),
        )
        blocks: list[nn.Module] = []
        for i, rate in enumerate(drop_path_rates(drop_path_rate, (depth,))[0]):
            mixer = ExpandedMaxMixer(dim) if i % 2 else SelfAttention(dim, heads)
            mlp = ConvMlp(dim, 4 * dim)
            blocks.append(MetaBlock(dim, ("attn", mixer), LayerNorm2d, mlp, None, rate))
        self.stages = nn.Sequential(Stage(nn.Identity(), blocks, LayerNorm2d(dim)))
        self.head = PoolHead(dim, num_classes, drop_rate)
        initialise(self)
        self._finish(num_classes, in_chans, [dim], [patch])


SIZES = {
    "pf_resnet50_max": Size({}, top1=74.3),
    "pf_resnet50_hybrid": Size({"hybrid": True}, top1=77.1),
    "pf_resnet_mini32": Size(
        {"depths": (1, 1, 1), "dims": (32, 64, 128), "stem": "small"}, side=32, crop=1.0
    ),
}

register(PfResNet, SIZES)
register(
    PfViT,
    {
        "pf_vit_ti_max": Size({}),
        "pf_vit_s_max": Size({"dim": 384, "heads": 6}, top1=80.0),
        "pf_vit_b_max": Size({"dim": 768, "heads": 12}),
        "pf_vit_mini32": Size({"depth": 6, "dim": 96, "patch": 4, "side": 32}, side=32, crop=1.0),
    },
)
