"""PfNet-ResNet: bottlenecks whose 3x3 convolution is a parameter-free maximum.

Source: pflayer (arXiv 2202.02777, section 4). The authors' code is under Apache-2.0.
"""

from typing import Any

from torch import nn

from foveate.backbones.base import Size
from foveate.backbones.registry import register
from foveate.backbones.resnet import Bottleneck, ResNet
from foveate.catalog import implements
from foveate.ops.pflayer import MaxPoolMixer


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


SIZES = {
    "pf_resnet50_max": Size({}),
    "pf_resnet50_hybrid": Size({"hybrid": True}),
    "pf_resnet_mini32": Size(
        {"depths": (1, 1, 1), "dims": (32, 64, 128), "stem": "small"}, side=32, crop=1.0
    ),
}

register(PfResNet, SIZES)
