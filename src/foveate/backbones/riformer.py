"""RIFormer: a MetaFormer whose token mixers exist in training only.

Source: riformer (arXiv 2304.05659, section 3). The authors' code is under Apache-2.0.
"""

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
    overlapping_patches,
    require_stages,
)
from foveate.backbones.registry import register
from foveate.catalog import implements
from foveate.ops.merge import merge


@implements("riformer")
class ReparamIdentity(nn.Module):
    """A scale and shift of each channel, less the input: it mixes nothing, and folds into the norm
    before it.

    Args:
        dim: channels of the input.

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.weight - 1).view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


class RIFormerBlock(MetaBlock):
    """A `MetaBlock` around a `ReparamIdentity`, which merging folds into the first norm."""

    def __init__(self, dim: int, mlp_ratio: int, drop_path: float) -> None:
        super().__init__(
            dim,
            mixer=("token_mixer", ReparamIdentity(dim)),
            norm=_norm,
            mlp=ConvMlp(dim, mlp_ratio * dim),
            scale=1e-5,
            drop_path=drop_path,
        )

    @torch.no_grad()
    def merge_branches(self) -> None:
        """Fold the affine into the norm: scale and shift of a scale and shift."""
        affine: Any = self.token_mixer
        if isinstance(affine, ReparamIdentity):
            norm: Any = self.norm1
            norm.weight.mul_(affine.weight - 1)
            norm.bias.mul_(affine.weight - 1).add_(affine.bias)
            self.token_mixer = nn.Identity()


def _norm(dim: int) -> nn.Module:
    return nn.GroupNorm(1, dim)


class GroupNormHead(nn.Module):
    """Group norm, average pool, dropout, linear. Shapes: (B, dim, H, W) to (B, num_classes)."""

    def __init__(self, dim: int, num_classes: int, drop: float) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, dim)
        self.drop = nn.Dropout(drop)
        self.fc = nn.Linear(dim, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.drop(self.norm(x).mean((2, 3)))
        return x if pre_logits else self.fc(x)


@implements("riformer")
class RIFormer(Backbone):
    """PoolFormer's stages with `ReparamIdentity` in the place of pooling.

    Args:
        num_classes, in_chans: outputs and input channels.
        depths, dims: blocks and channels of each stage.
        mlp_ratio: hidden width of the channel mixers over their channels.
        patch: stride of the stem: 4 as published, 1 or 2 for small images.
        deploy: build the merged form, for checkpoints that hold it.
        drop_rate, drop_path_rate: dropout before the classifier, and the
            largest rate of stochastic depth.
    """

    recipe: ClassVar[dict[str, Any]] = ADAMW
    key_rules = (
        (r"^patch_embed\.proj\.", "stem.0."),
        (r"^patch_embed\.$", "stem."),
        *((rf"^network\.{2 * i}\.(\d+)\.", rf"stages.{i}.blocks.\1.") for i in range(4)),
        *((rf"^network\.{2 * i + 1}\.proj\.", f"stages.{i + 1}.downsample.") for i in range(3)),
        *((rf"^network\.{2 * i + 1}\.$", f"stages.{i + 1}.downsample.") for i in range(3)),
        *((rf"^network\.{2 * i}\.$", f"stages.{i}.") for i in range(4)),
        (r"\.layer_scale_([12])$", r".gamma\1"),
        (r"\.token_mixer\.affine\.", ".token_mixer."),
        (r"\.norm_reparam\.", ".norm1."),
        (r"^(norm6|norm)\.", "head.norm."),
        (r"^head\.(weight|bias)$", r"head.fc.\1"),
    )

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        dims: tuple[int, ...] = (64, 128, 320, 512),
        mlp_ratio: int = 4,
        patch: int = 4,
        deploy: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        require_stages(depths=depths, dims=dims)
        self.stem = nn.Sequential(overlapping_patches(in_chans, dims[0], patch))
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            down: nn.Module = nn.Identity()
            if i > 0:
                down = nn.Conv2d(dims[i - 1], dims[i], 3, stride=2, padding=1)
            stages.append(Stage(down, [RIFormerBlock(dims[i], mlp_ratio, rate) for rate in rates]))
        self.stages = nn.Sequential(*stages)
        self.head = GroupNormHead(dims[-1], num_classes, drop_rate)
        initialise(self)
        self._finish(num_classes, in_chans, list(dims), [patch * 2**i for i in range(len(dims))])
        if deploy:
            merge(self)


_WIDE = (96, 192, 384, 768)

SIZES = {
    "riformer_s12": Size({}, top1=76.9),
    "riformer_s24": Size({"depths": (4, 4, 12, 4)}, top1=80.3),
    "riformer_s36": Size({"depths": (6, 6, 18, 6)}, top1=81.3),
    "riformer_m36": Size({"depths": (6, 6, 18, 6), "dims": _WIDE}, crop=0.95, top1=82.6),
    "riformer_m48": Size({"depths": (8, 8, 24, 8), "dims": _WIDE}, crop=0.95, top1=82.8),
    "riformer_mini32": Size(
        {"depths": (1, 2, 2), "dims": (32, 64, 128), "patch": 1}, side=32, crop=1.0
    ),
}

register(RIFormer, SIZES)
