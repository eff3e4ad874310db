"""VoVNet: stages of one-shot aggregation.

Source: vovnet (arXiv 1904.09730, section 4 and table 2). The authors' code is under MIT.
"""

from typing import Any, ClassVar

from torch import nn

from foveate.backbones.base import Backbone, Size
from foveate.backbones.parts import PoolHead, Stage, require_stages, stem_strides
from foveate.backbones.registry import register
from foveate.catalog import implements
from foveate.ops.vovnet import OneShotAggregation


@implements("vovnet")
class VoVNet(Backbone):
    """A stem of three convolutions, and stages of `OneShotAggregation` halved by max pools.

    Args:
        num_classes, in_chans: outputs and input channels.
        depths: aggregations of each stage.
        inner, dims: channels of each stage's convolutions and of its output.
        stem: channels of the stem's convolutions.
        patch: stride of the stem: 4 as published, 1 or 2 for small images.
        drop_rate: dropout before the classifier.
        drop_path_rate: accepted like every family's; the first aggregation of a
            stage has no residual to drop.
    """

    recipe: ClassVar[dict[str, Any]] = {
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "batch_size": 128,
        "warmup": 0.1,
    }
    key_rules = (
        *(
            (rf"^stem\.stem_{i + 1}/{part}\.", f"stem.{3 * i + j}.")
            for i in range(3)
            for j, part in enumerate(("conv", "norm"))
        ),
        *(
            (rf"^stage{i + 2}\.OSA{i + 2}_{j + 1}\.", f"stages.{i}.blocks.{j}.")
            for i in range(4)
            for j in range(9)
        ),
        *((rf"^stage{i + 2}\.Pooling\.", f"stages.{i}.downsample.") for i in range(4)),
        *((rf"^stage{i + 2}\.$", f"stages.{i}.") for i in range(4)),
        (r"\.layers\.(\d+)\.[^.]+/conv\.", r".convs.\1.0."),
        (r"\.layers\.(\d+)\.[^.]+/norm\.", r".convs.\1.1."),
        (r"\.concat\.[^.]+/conv\.", ".join.0."),
        (r"\.concat\.[^.]+/norm\.", ".join.1."),
        (r"^classifier\.", "head.fc."),
    )

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: tuple[int, ...] = (1, 1, 2, 2),
        inner: tuple[int, ...] = (128, 160, 192, 224),
        dims: tuple[int, ...] = (256, 512, 768, 1024),
        stem: tuple[int, int, int] = (64, 64, 128),
        patch: int = 4,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        require_stages(depths=depths, inner=inner, dims=dims)
        first, last = stem_strides(patch)
        self.stem = nn.Sequential(
            *_unit(in_chans, stem[0], first),
            *_unit(stem[0], stem[1], 1),
            *_unit(stem[1], stem[2], last),
        )
        stages, dim = [], stem[2]
        for i, depth in enumerate(depths):
            down = nn.MaxPool2d(3, stride=2, ceil_mode=True) if i else nn.Identity()
            blocks: list[nn.Module] = []
            for j in range(depth):
                blocks.append(OneShotAggregation(dim, dims[i], inner[i], residual=j > 0))
                dim = dims[i]
            stages.append(Stage(down, blocks))
        self.stages = nn.Sequential(*stages)
        self.head = PoolHead(dim, num_classes, drop_rate)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        self._finish(num_classes, in_chans, list(dims), [patch * 2**i for i in range(len(dims))])


def _unit(dim: int, dim_out: int, stride: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(dim, dim_out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(dim_out),
        nn.ReLU(inplace=True),
    )


SIZES = {
    "vovnet27_slim": Size(
        {"depths": (1, 1, 1, 1), "inner": (64, 80, 96, 112), "dims": (128, 256, 384, 512)}
    ),
    "vovnet39": Size({}),
    "vovnet57": Size({"depths": (1, 1, 4, 3)}),
    "vovnet_mini32": Size(
        {
            "depths": (1, 1, 1),
            "inner": (16, 32, 48),
            "dims": (32, 64, 128),
            "stem": (16, 16, 32),
            "patch": 1,
        },
        side=32,
        crop=1.0,
    ),
}

register(VoVNet, SIZES)
