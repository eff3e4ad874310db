"""ConvNeXt with learnable spacings in the place of its depthwise 7x7.

Source: dcls (arXiv 2112.03740, section 4.1). The authors' code is under MIT.
"""

from functools import partial
from typing import Any

from torch import nn

from foveate.backbones.base import Size
from foveate.backbones.convnext import ConvNeXt
from foveate.backbones.registry import register
from foveate.catalog import implements
from foveate.ops.dcls import DepthwiseDcls


@implements("dcls")
class ConvNeXtDcls(ConvNeXt):
    """A `ConvNeXt` of `DepthwiseDcls`; the blocks of a stage share their positions.

    Args:
        num_classes, in_chans: outputs and input channels.
        kernel_count, dilated_kernel_size: of the operator.
        kwargs: as `ConvNeXt` takes them.
    """

    key_rules = (*ConvNeXt.key_rules, (r"\.conv_dw\.P$", ".conv_dw.positions"))

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        kernel_count: int = 34,
        dilated_kernel_size: int = 17,
        **kwargs: Any,
    ) -> None:
        mixer = partial(
            DepthwiseDcls, kernel_count=kernel_count, dilated_kernel_size=dilated_kernel_size
        )
        super().__init__(num_classes, in_chans, mixer=mixer, **kwargs)
        for stage in self.stages:
            ops = [m for m in stage.modules() if isinstance(m, DepthwiseDcls)]
            for op in ops:
                op.positions = ops[0].positions
                nn.init.trunc_normal_(op.weight, std=0.02)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(".positions")}


_DEEP = {"depths": (3, 3, 27, 3), "kernel_count": 40}

SIZES = {
    "convnext_dcls_tiny": Size({}),
    "convnext_dcls_small": Size(_DEEP),
    "convnext_dcls_base": Size(_DEEP | {"dims": (128, 256, 512, 1024)}),
    "convnext_dcls_mini32": Size(
        {
            "depths": (1, 2, 2),
            "dims": (32, 64, 128),
            "patch": 1,
            "kernel_count": 16,
            "dilated_kernel_size": 11,
        },
        side=32,
        crop=1.0,
    ),
}

register(ConvNeXtDcls, SIZES)
