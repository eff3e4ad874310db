"""LeViT: a pyramid of attention with batch norms, behind a convolutional stem.

Source: levit (arXiv 2104.01136, section 4 and table 1). The authors' code is under Apache-2.0.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.backbones.base import ADAMW, Backbone, Size
from foveate.backbones.parts import DropPath, Stage, require_stages
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


class LevitHead(nn.Module):
    """Average pool, then batch norm and linear twice: the second learnt from a teacher.

    Shapes: (B, dim, H, W) to (B, num_classes), the mean of both.
    """

    def __init__(self, dim: int, num_classes: int, drop: float) -> None:
        super().__init__()
        self.norm: nn.Module = nn.BatchNorm1d(dim)
        self.norm_dist: nn.Module | None = nn.BatchNorm1d(dim)
        self.drop = nn.Dropout(drop)
        self.fc = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        self.fc_dist = nn.Linear(dim, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.mean((2, 3))
        if pre_logits or self.norm_dist is None:
            return x if pre_logits else self.fc(x)
        told, taught = (self.drop(norm(x)) for norm in (self.norm, self.norm_dist))
        return (self.fc(told) + self.fc_dist(taught)) / 2

    @torch.no_grad()
    def merge_branches(self) -> None:
        """Fold both norms and both layers into one: a mean of affine maps is affine."""
        if self.norm_dist is None or isinstance(self.fc, nn.Identity):
            return
        weight, bias = torch.zeros_like(self.fc.weight), torch.zeros_like(self.fc.bias)
        pairs: Any = (self.norm, self.fc), (self.norm_dist, self.fc_dist)
        for norm, layer in pairs:
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            weight += layer.weight * scale / 2
            bias += (layer.bias + layer.weight @ (norm.bias - norm.running_mean * scale)) / 2
        self.fc.weight.copy_(weight)
        self.fc.bias.copy_(bias)
        self.norm, self.norm_dist, self.fc_dist = nn.Identity(), None, nn.Identity()


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
        self.head = LevitHead(dims[-1], num_classes, drop_rate)
        self._initialise_classifiers()
        self._finish(num_classes, in_chans, list(dims), strides)
        self.default_cfg["first_conv"] = "stem.0.conv"
        self.default_cfg["classifier"] = ("head.fc", "head.fc_dist")
        self.key_rules = _key_rules(depths)
        if deploy:
            merge(self)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New classifiers, of labels and of the teacher's; 0 classes leave features."""
        super().reset_classifier(num_classes, global_pool)
        if self.head.norm_dist is not None:
            fc: Any = self.head.fc
            plain = nn.Linear(fc.in_features, num_classes) if num_classes else nn.Identity()
            self.head.fc_dist = plain.to(next(self.parameters()))
            self._initialise_classifiers()

    def _initialise_classifiers(self) -> None:
        for layer in (self.head.fc, self.head.fc_dist):
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)


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
