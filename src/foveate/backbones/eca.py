"""ECA-Net: ResNet with channel attention by a 1-D convolution at the end of each branch.

Source: eca (arXiv 1910.03151, section 3.4). The authors' code is under MIT; it gives
each stage of the deep ones a width of its own, 3, 5, 5 and 7.
"""

from functools import partial

from foveate.backbones.base import Size
from foveate.backbones.registry import register
from foveate.backbones.resnet import DEPTHS, MINI32, ResNet
from foveate.catalog import implements
from foveate.ops.eca import EfficientChannelAttention


@implements("eca")
class EcaResNet(ResNet):
    """A `ResNet` whose branches end in `EfficientChannelAttention`.

    Args:
        num_classes, in_chans: outputs and input channels.
        widths: of each stage's attention, in channels.
        kwargs: as `ResNet` takes them.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        widths: tuple[int, ...] = (3, 5, 5, 7),
        **kwargs,
    ) -> None:
        endings = tuple(partial(EfficientChannelAttention, kernel_size=k) for k in widths)
        super().__init__(num_classes, in_chans, attention=endings, **kwargs)


_TOP1 = {50: 77.48, 101: 78.65, 152: 78.92}

SIZES = {
    **{
        f"eca_resnet{depth}": Size(
            config | ({"widths": (3, 3, 3, 3)} if depth < 50 else {}), top1=_TOP1.get(depth)
        )
        for depth, config in DEPTHS.items()
    },
    "eca_resnet_mini32": Size(MINI32 | {"widths": (3, 3, 3)}, side=32, crop=1.0),
}

register(EcaResNet, SIZES)
