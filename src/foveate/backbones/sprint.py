"""Sprint: a plain convolutional net that learns much in a few minutes.

Six 3x3 convolutions in three stages, each halved by a max pool, behind a thin
stem; no residuals, no depthwise kernels, nothing that an ordinary CPU does
slowly. The shape, the identity initialisation, the frozen scales of the norms
and the small output scale follow "94% on CIFAR-10 in 3.29 seconds on a single
GPU" (arXiv 2404.00498, section 3); its code, by the same author, is under MIT.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.backbones.base import Backbone, Size
from foveate.backbones.registry import register
from foveate.errors import FoveateError


class Sprint(Backbone):
    """A stem and three or more stages of two 3x3 convolutions each.

    Args:
        num_classes, in_chans: outputs and input channels.
        dims: channels of each stage.
        stem_dim: channels of the stem.
        patch: stride of the stem: 1 for small images, 4 for photographs.
        output_scale: factor on the logits, which keeps early gradients tame.
        drop_path_rate: accepted like every family's; there are no residuals to drop.
    """

    recipe: ClassVar[dict[str, Any]] = {
        "optimizer": "sgd",
        "learning_rate": 0.4,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "batch_size": 256,
        "warmup": 0.2,
        "schedule": "linear",
        "label_smoothing": 0.1,
    }

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        dims: tuple[int, ...] = (64, 128, 256),
        stem_dim: int = 24,
        patch: int = 1,
        output_scale: float = 1 / 9,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if not dims:
            raise FoveateError("dims is empty: give the channels of at least one stage")
        kernel = 3 if patch == 1 else 2 * patch - 1
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, stem_dim, kernel, stride=patch, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(stem_dim),
            nn.SiLU(),
        )
        inputs = (stem_dim, *dims)
        self.stages = nn.Sequential(
            *(SprintStage(i, o) for i, o in zip(inputs, dims, strict=False))
        )
        self.head = MaxHead(dims[-1], num_classes, output_scale)
        strides = [patch * 2 ** (i + 1) for i in range(len(dims))]
        self._finish(num_classes, in_chans, list(dims), strides)


class SprintStage(nn.Module):
    """Convolution, max pool, convolution, each with batch norm and SiLU.

    Shapes: (B, dim_in, H, W) to (B, dim_out, H // 2, W // 2).
    """

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim_in, dim_out, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.norm1 = nn.BatchNorm2d(dim_out)
        self.conv2 = nn.Conv2d(dim_out, dim_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(dim_out)
        self.act = nn.SiLU()
        for conv in (self.conv1, self.conv2):
            begin_as_identity(conv)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(self.pool(self.conv1(x))))
        return self.act(self.norm2(self.conv2(x)))


class MaxHead(nn.Module):
    """Max pool, linear, constant scale. Shapes: (B, dim, H, W) to (B, num_classes)."""

    def __init__(self, dim: int, num_classes: int, scale: float) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, num_classes, bias=False) if num_classes else nn.Identity()
        self.scale = scale

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.amax((2, 3))
        return x if pre_logits else self.fc(x) * self.scale


@torch.no_grad()
def begin_as_identity(conv: nn.Conv2d) -> None:
    """Let the first filters pass the input's channels on; the others stay random."""
    same = min(conv.in_channels, conv.out_channels)
    nn.init.dirac_(conv.weight[:same])


_PHOTO = {"patch": 4, "stem_dim": 32}
SIZES = {
    "sprint_s": Size({"dims": (32, 64, 128)}, side=32, crop=1.0, races=(8, 80), rank=2),
    "sprint_m": Size({"dims": (48, 128, 192)}, side=32, crop=1.0, races=(8, 80), rank=0),
    "sprint_l": Size({"dims": (64, 128, 256)}, side=32, crop=1.0, races=(8, 80), rank=1),
    "sprint_xl": Size({"dims": (64, 256, 256)}, side=32, crop=1.0),
    "sprint_photo_m": Size({"dims": (64, 128, 256), **_PHOTO}, 160, races=(80, 4096), rank=0),
    "sprint_photo_l": Size({"dims": (96, 192, 384), **_PHOTO}, 160, races=(80, 4096), rank=1),
}

register(Sprint, SIZES)
