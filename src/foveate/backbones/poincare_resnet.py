"""Poincaré ResNet: a residual network all of whose layers live in hyperbolic space.

Source: poincare_resnet (arXiv 2303.14027, sections 3 to 5). The authors' code is under Apache-2.0.
Its shortcuts add rows of the map where the paper adds the pixels' vectors; `as_released` does the
same, and what else the code does differently (see `foveate.ops.poincare_resnet`).

All parameters are plain vectors and matrices, tangent ones where points are meant, so that
ordinary optimisers train them; no Riemannian one is needed.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.backbones.base import Backbone, Size
from foveate.backbones.parts import Stage, require_stages
from foveate.backbones.registry import register
from foveate.catalog import implements
from foveate.ops.poincare_ball import expmap0, logmap0, mobius_add, precise
from foveate.ops.poincare_resnet import (
    CURVATURE,
    PoincareBatchNorm2d,
    PoincareConv2d,
    PoincareLinear,
)


class PoincareBlock(nn.Module):
    """Two convolutions and norms, Möbius addition of the shortcut, ReLU of tangent vectors.

    Args:
        dim, dim_out, stride: channels of the input and output, stride of the first convolution.
        options: of the layers.

    Shapes: (B, dim, H, W) to (B, dim_out, H / stride, W / stride).
    """

    curvature: Tensor

    def __init__(self, dim: int, dim_out: int, stride: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.conv1 = PoincareConv2d(dim, dim_out, 3, stride, **options)
        norms = {name: value for name, value in options.items() if name != "identity"}
        self.norm1 = PoincareBatchNorm2d(dim_out, **norms)
        self.conv2 = PoincareConv2d(dim_out, dim_out, 3, **options)
        self.norm2 = PoincareBatchNorm2d(dim_out, **norms)
        self.norm2.curvature = self.norm1.curvature
        self.downsample = (
            PoincareConv2d(dim, dim_out, 1, stride, **options) if stride > 1 else nn.Identity()
        )
        self.register_buffer("curvature", torch.tensor(options["curvature"]), persistent=False)
        self.axis = 3 if options["as_released"] else 1

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        c = precise(self.curvature)
        branch, shortcut = (expmap0(precise(t), c, self.axis) for t in (y, self.downsample(x)))
        joined = logmap0(mobius_add(branch, shortcut, c, self.axis), c, self.axis)
        return torch.relu(joined.to(x.dtype))


class PoincareHead(nn.Module):
    """Average pool and dropout of tangent vectors, distances to hyperplanes.

    Shapes: (B, dim, H, W) to (B, num_classes).
    """

    def __init__(self, dim: int, num_classes: int, drop: float, options: dict[str, Any]) -> None:
        super().__init__()
        self.drop = nn.Dropout(drop)
        self.fc = PoincareLinear(dim, num_classes, **options) if num_classes else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.drop(x.mean((2, 3)))
        return x if pre_logits else self.fc(x)


@implements("poincare_resnet")
class PoincareResNet(Backbone):
    """Three stages of residual blocks in the Poincaré ball, with a classifier in it.

    Args:
        num_classes, in_chans: outputs and input channels.
        depths, dims: blocks and channels of each stage.
        curvature: c of the curvature -c.
        identity: begin with half the identity in every layer, as published; else with normal
            numbers, with which the signal dies away.
        as_released: compute as the authors' code, not their paper, does.
        drop_rate: dropout before the classifier.
    """

    recipe: ClassVar[dict[str, Any]] = {
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "weight_decay": 1e-4,
        "batch_size": 128,
        "label_smoothing": 0.0,
    }
    key_rules = (
        (r"^(conv|bn|linear)_ball\.", r"\1.ball."),
        (r"^conv\.", "stem.0."),
        (r"^bn\.", "stem.1."),
        (r"^act\.", "stem.2."),
        (r"^(linear|fc)\.", "head.fc."),
        *((rf"^group{i + 1}\.(\d+)\.", rf"stages.{i}.blocks.\1.") for i in range(3)),
        *((rf"^group{i + 1}\.$", f"stages.{i}.") for i in range(3)),
        (r"\.bn([12])\.", r".norm\1."),
        (r"\.norm\.(mean|var|running|ball)", r".\1"),
        (r"\.ball\.isp_c$", ".curvature"),
        (r"\.var$", ".variance"),
        (r"\.(weights|z)$", ".weight"),
    )

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: tuple[int, ...] = (3, 3, 3),
        dims: tuple[int, ...] = (8, 16, 32),
        curvature: float = CURVATURE,
        identity: bool = True,
        as_released: bool = False,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        require_stages(depths=depths, dims=dims)
        norms = {"curvature": curvature, "as_released": as_released}
        self._options = {**norms, "identity": identity}
        self.stem = nn.Sequential(
            PoincareConv2d(in_chans, dims[0], 3, **self._options),
            PoincareBatchNorm2d(dims[0], **norms),
            nn.ReLU(),
        )
        stages, dim = [], dims[0]
        for i, depth in enumerate(depths):
            blocks: list[nn.Module] = []
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(PoincareBlock(dim, dims[i], stride, self._options))
                dim = dims[i]
            stages.append(Stage(nn.Identity(), blocks))
        self.stages = nn.Sequential(*stages)
        self.head = PoincareHead(dim, num_classes, drop_rate, self._options)
        self._finish(num_classes, in_chans, list(dims), [2**i for i in range(len(dims))])

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier in the ball; 0 classes leave features. `global_pool` can be `avg`."""
        super().reset_classifier(0, global_pool)
        if num_classes > 0:
            fresh = PoincareLinear(self.num_features, num_classes, **self._options)
            reference = next(self.parameters())
            self.head.fc = fresh.to(reference.device, reference.dtype)
        self.num_classes = num_classes


SIZES = {
    "poincare_resnet20": Size({}, side=32, crop=1.0),
    "poincare_resnet32": Size({"depths": (5, 5, 5)}, side=32, crop=1.0),
    "poincare_mini32": Size({"depths": (1, 1, 1)}, side=32, crop=1.0),
}

register(PoincareResNet, SIZES)
