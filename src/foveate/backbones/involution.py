"""RedNet: ResNet's bottlenecks with involution in the place of 3x3 convolutions.

Source: involution (arXiv 2103.06255, section 4). The authors' code is under MIT.
"""

from typing import Any

from torch import nn

from foveate.backbones.base import Size
from foveate.backbones.registry import register
from foveate.backbones.resnet import ResNet
from foveate.catalog import implements
from foveate.ops.involution import Involution


def _involution(dim: int, dim_out: int, stride: int) -> nn.Module:
    return Involution(dim, stride=stride)


@implements("involution")
class RedNet(ResNet):
    """A `ResNet` of involutions behind a stem of a convolution, an involution and a convolution.

    Args:
        num_classes, in_chans: outputs and input channels.
        kwargs: as `ResNet` takes them.
    """

    key_rules = (
        (r"^stem\.4\.conv\.", "stem.6."),
        (r"^stem\.4\.bn\.", "stem.7."),
        (r"^stem\.2\.", "stem.4."),
        (r"^stem\.1\.", "stem.3."),
        (r"^stem\.0\.conv\.", "stem.0."),
        (r"^stem\.0\.bn\.", "stem.1."),
        (r"\.conv1\.conv\.", ".reduce.0."),
        (r"\.conv1\.bn\.", ".reduce.1."),
        (r"\.conv2\.conv\.", ".span."),
        *ResNet.key_rules[2:],
    )

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, **kwargs: Any) -> None:
        super().__init__(num_classes, in_chans, operator=_involution, **kwargs)

    def _stem(self, in_chans: int, dim: int, kind: str) -> nn.Sequential:
        half, stride = dim // 2, 2 if kind == "photo" else 1
        layers: list[nn.Module] = [
            nn.Conv2d(in_chans, half, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            Involution(half, 3),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, dim, 3, padding=1, bias=False),
            nn.BatchNorm2d(dim),
            nn.ReLU(inplace=True),
        ]
        if kind == "photo":
            layers.append(nn.MaxPool2d(3, stride=2, padding=1))
        return nn.Sequential(*layers)


_DEPTHS = {26: (1, 2, 4, 1), 38: (2, 3, 5, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}

SIZES = {
    **{f"rednet{n}": Size({"depths": depths}) for n, depths in _DEPTHS.items()},
    "rednet152": Size({"depths": (3, 8, 36, 3)}),
    "rednet_mini32": Size(
        {"depths": (1, 1, 1), "dims": (32, 64, 128), "stem": "small"}, side=32, crop=1.0
    ),
}

register(RedNet, SIZES)
