"""SVT: a pyramid that scatters where maps are large and attends where they are small.

Source: svt (arXiv 2311.01310, section 3.3). The authors' repository states no licence.
"""

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.backbones.base import ADAMW, Backbone, Size
from foveate.backbones.parts import (
    ConvMlp,
    MetaBlock,
    Stage,
    drop_path_rates,
    initialise,
    require_stages,
    stem_strides,
)
from foveate.backbones.registry import register
from foveate.catalog import implements
from foveate.ops.attention import attend, require_heads
from foveate.ops.conv_norm import ConvNorm
from foveate.ops.layer_norm import LayerNorm2d
from foveate.ops.pvt import SpatialReductionAttention
from foveate.ops.svt import ScatteringMixer

NORM_EPS = 1e-5  # of the norms after strides; the blocks' and stages' have 1e-6


class ClassAttention(nn.Module):
    """Attention of the first token to all. Shapes: (B, dim, 1 + N, 1) to (B, dim, 1, 1)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        require_heads(dim, heads)
        self.heads = heads
        self.kv = nn.Conv2d(dim, 2 * dim, 1)
        self.q = nn.Conv2d(dim, dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.kv(x).chunk(2, dim=1)
        return self.proj(attend(self.q(x[:, :, :1]), k, v, self.heads))


class ClassBlock(nn.Module):
    """Class attention and a channel mixer, on the first token alone.

    Shapes: (B, dim, 1 + N, 1) to (B, dim, 1, 1).
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm2d(dim), LayerNorm2d(dim)
        self.attn = ClassAttention(dim, heads)
        self.mlp = ConvMlp(dim, mlp_ratio * dim)

    def forward(self, x: Tensor) -> Tensor:
        first = x[:, :, :1] + self.attn(self.norm1(x))
        return first + self.mlp(self.norm2(first))


class ClassBlockHead(nn.Module):
    """The mean of the map asks the map once more; then norm, dropout, linear.

    Args:
        dim, num_classes, heads, mlp_ratio: channels, outputs, and of the block.
        drop: rate of dropout.
        dense: a second linear layer classifies each place, as token labelling trains it; half of
            each class's highest logit is added.

    Shapes: (B, dim, H, W) to (B, num_classes).
    """

    def __init__(
        self, dim: int, num_classes: int, heads: int, mlp_ratio: int, drop: float, dense: bool
    ) -> None:
        super().__init__()
        self.block = ClassBlock(dim, heads, mlp_ratio)
        self.norm = LayerNorm2d(dim)
        self.drop = nn.Dropout(drop)
        self.fc = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        places = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        self.aux = places if dense else None

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.flatten(2).unsqueeze(3)
        first = self.block(torch.cat((x.mean(2, keepdim=True), x), dim=2))
        first = self.drop(self.norm(first).flatten(1))
        if pre_logits:
            return first
        if self.aux is None or isinstance(self.fc, nn.Identity):
            return self.fc(first)
        places = self.aux(self.norm(x).squeeze(3).mT)
        return self.fc(first) + places.amax(1) / 2


@implements("svt")
class ScatteringTransformer(Backbone):
    """Stages that scatter, then stages that attend, all with depthwise channel mixers.

    Args:
        num_classes, in_chans: outputs and input channels.
        depths, dims, heads, mlp_ratios: blocks, channels, heads and hidden width over channels
            of each stage.
        scatter: how many stages scatter.
        stem_dim: channels of the stem's convolutions.
        patch: stride of the stem: 4 as published, 1 or 2 for small images.
        side: of the images that scales of low frequencies are learnt for.
        dense: classify places too, as checkpoints trained by token labelling do.
        drop_rate, drop_path_rate: dropout before the classifier, and the
            largest rate of stochastic depth.
    """

    recipe: ClassVar[dict[str, Any]] = ADAMW | {"learning_rate": 1e-3}
    key_rules = (
        *((rf"^patch_embed1\.conv\.{3 * i}\.", f"stem.{2 * i}.conv.") for i in range(3)),
        *((rf"^patch_embed1\.conv\.{3 * i + 1}\.", f"stem.{2 * i}.norm.") for i in range(3)),
        (r"^patch_embed1\.proj\.", "stem.6."),
        (r"^patch_embed1\.norm\.", "stem.7."),
        (r"^patch_embed1\.$", "stem."),
        *((rf"^patch_embed{i + 1}\.proj\.", f"stages.{i}.downsample.0.") for i in (1, 2, 3)),
        *((rf"^patch_embed{i + 1}\.norm\.", f"stages.{i}.downsample.1.") for i in (1, 2, 3)),
        *((rf"^patch_embed{i + 1}\.$", f"stages.{i}.downsample.") for i in (1, 2, 3)),
        *((rf"^block{i + 1}\.(\d+)\.", rf"stages.{i}.blocks.\1.") for i in range(4)),
        *((rf"^norm{i + 1}\.", f"stages.{i}.norm.") for i in range(3)),
        (r"^norm4\.", "head.norm."),
        (r"\.complex_weight_ll$", ".low"),
        (r"\.complex_weight_lh_([12])$", r".high.weight\1"),
        (r"\.complex_weight_lh_b([12])$", r".high.bias\1"),
        (r"\.dwconv\.dwconv\.", ".dwconv."),
        (r"^post_network\.0\.", "head.block."),
        (r"^aux_head\.", "head.aux."),
        (r"^head\.(weight|bias|$)", r"head.fc.\1"),
    )

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: tuple[int, ...] = (3, 4, 6, 3),
        dims: tuple[int, ...] = (64, 128, 320, 448),
        heads: tuple[int, ...] = (2, 4, 10, 14),
        mlp_ratios: tuple[int, ...] = (8, 8, 4, 4),
        scatter: int = 1,
        stem_dim: int = 32,
        patch: int = 4,
        side: int = 224,
        dense: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        require_stages(depths=depths, dims=dims, heads=heads, mlp_ratios=mlp_ratios)
        first, second = stem_strides(patch)
        self.stem = nn.Sequential(
            ConvNorm(in_chans, stem_dim, 7 if patch > 1 else 3, first),
            nn.ReLU(inplace=True),
            ConvNorm(stem_dim, stem_dim, 3),
            nn.ReLU(inplace=True),
            ConvNorm(stem_dim, stem_dim, 3),
            nn.ReLU(inplace=True),
            nn.Conv2d(stem_dim, dims[0], 3, stride=second, padding=1),
            LayerNorm2d(dims[0], NORM_EPS),
        )
        strides = [patch * 2**i for i in range(len(depths))]
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            down: nn.Module = nn.Identity()
            if i > 0:
                conv = nn.Conv2d(dims[i - 1], dims[i], 3, stride=2, padding=1)
                down = nn.Sequential(conv, LayerNorm2d(dims[i], NORM_EPS))
            blocks: list[nn.Module] = []
            for rate in rates:
                mixer: nn.Module
                if i < scatter:
                    mixer = ScatteringMixer(dims[i], -(-side // strides[i]))
                else:
                    mixer = SpatialReductionAttention(dims[i], heads[i])
                blocks.append(
                    MetaBlock(
                        dims[i],
                        mixer=("attn", mixer),
                        norm=LayerNorm2d,
                        mlp=ConvMlp(dims[i], mlp_ratios[i] * dims[i], depthwise=True),
                        scale=None,
                        drop_path=rate,
                    )
                )
            norm = LayerNorm2d(dims[i]) if i + 1 < len(depths) else None
            stages.append(Stage(down, blocks, norm))
        self.stages = nn.Sequential(*stages)
        self.head = ClassBlockHead(
            dims[-1], num_classes, heads[-1], mlp_ratios[-1], drop_rate, dense
        )
        initialise(self, by_fan=True)
        places = {"head.aux": partial(nn.Linear, dims[-1])} if dense else {}
        self._finish(num_classes, in_chans, list(dims), strides, places)
        self.default_cfg["first_conv"] = "stem.0.conv"


SIZES = {
    "svt_s": Size({}),
    "svt_b": Size(
        {
            "depths": (3, 4, 12, 3),
            "dims": (64, 128, 320, 512),
            "heads": (2, 4, 10, 16),
            "stem_dim": 64,
        }
    ),
    "svt_l": Size(
        {
            "depths": (3, 6, 18, 3),
            "dims": (96, 192, 384, 512),
            "heads": (3, 6, 12, 16),
            "stem_dim": 64,
        }
    ),
    "svt_mini32": Size(
        {
            "depths": (1, 2, 2),
            "dims": (32, 64, 128),
            "heads": (1, 2, 4),
            "mlp_ratios": (4, 4, 4),
            "stem_dim": 16,
            "patch": 2,
            "side": 32,
        },
        side=32,
        crop=1.0,
    ),
}

register(ScatteringTransformer, SIZES)
