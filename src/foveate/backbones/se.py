"""SE-ResNet: ResNet with squeeze and excitation at the end of each branch.

Source: se (arXiv 1709.01507, section 3.3 and table 1); names of parameters are timm's.
"""

from typing import Any

from foveate.backbones.base import Size
from foveate.backbones.registry import register
from foveate.backbones.resnet import DEPTHS, MINI32, ResNet
from foveate.catalog import implements
from foveate.ops.se import SqueezeExcite


@implements("se")
class SeResNet(ResNet):
    """A `ResNet` whose branches end in `SqueezeExcite`.

    Args:
        num_classes, in_chans: outputs and input channels.
        kwargs: as `ResNet` takes them.
    """

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, **kwargs: Any) -> None:
        super().__init__(num_classes, in_chans, attention=SqueezeExcite, **kwargs)


SIZES = {
    **{
        f"seresnet{depth}": Size(
            config, weights={"ra2_in1k": "timm/seresnet50.ra2_in1k"} if depth == 50 else {}
        )
        for depth, config in DEPTHS.items()
    },
    "seresnet_mini32": Size(MINI32, side=32, crop=1.0),
}

register(SeResNet, SIZES)
