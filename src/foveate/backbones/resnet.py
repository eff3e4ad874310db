"""ResNet, with slots for what papers put into it: another spatial operator, an attention.

Source: resnet (arXiv 1512.03385); names of parameters are torchvision's.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from foveate.backbones.base import Backbone, Size
from foveate.backbones.parts import DropPath, PoolHead, Stage, drop_path_rates, require_stages
from foveate.backbones.registry import register
from foveate.catalog import implements

SpatialOperator = Callable[[int, int, int], nn.Module]
"""Builds what stands for a 3x3 convolution from channels in, channels out and stride."""
Attention = Callable[[int], nn.Module]
"""Builds what ends a residual branch from its channels."""


def convolution(dim: int, dim_out: int, stride: int) -> nn.Module:
    """The plain 3x3."""
    return nn.Conv2d(dim, dim_out, 3, stride=stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Two spatial operators around a shortcut.

    Args:
        dim: channels of the input.
        inner: channels of the operators, and of the output.
        stride: of the first operator.
        operator, attention: what fills the slots.
        drop_path: rate of stochastic depth.
    """

    expansion = 1

    def __init__(
        self,
        dim: int,
        inner: int,
        stride: int,
        operator: SpatialOperator,
        attention: Attention,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.conv1 = operator(dim, inner, stride)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = operator(inner, inner, 1)
        self.bn2 = nn.BatchNorm2d(inner)
        self.attn = attention(inner)
        self.downsample = _shortcut(dim, inner, stride)
        self.relu = nn.ReLU(inplace=True)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.attn(self.bn2(self.conv2(y)))
        return self.relu(self.downsample(x) + self.drop_path(y))


class Bottleneck(nn.Module):
    """A spatial operator between 1x1 convolutions that narrow and widen, around a shortcut.

    Args:
        dim: channels of the input.
        inner: channels of the operator; four times as many come out.
        stride: of the operator.
        operator, attention: what fills the slots.
        drop_path: rate of stochastic depth.
    """

    expansion = 4

    def __init__(
        self,
        dim: int,
        inner: int,
        stride: int,
        operator: SpatialOperator,
        attention: Attention,
        drop_path: float,
    ) -> None:
        super().__init__()
        outer = self.expansion * inner
        self.conv1 = nn.Conv2d(dim, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = operator(inner, inner, stride)
        self.bn2: nn.Module = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outer, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outer)
        self.attn = attention(outer)
        self.downsample = _shortcut(dim, outer, stride)
        self.relu = nn.ReLU(inplace=True)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.attn(self.bn3(self.conv3(y)))
        return self.relu(self.downsample(x) + self.drop_path(y))


def _shortcut(dim: int, dim_out: int, stride: int) -> nn.Module:
    if stride == 1 and dim == dim_out:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(dim, dim_out, 1, stride=stride, bias=False), nn.BatchNorm2d(dim_out)
    )


def _no_attention(dim: int) -> nn.Module:
    return nn.Identity()


@implements("resnet")
class ResNet(Backbone):
    """Stages of residual blocks.

    Args:
        num_classes, in_chans: outputs and input channels.
        depths: blocks of each stage.
        dims: channels of each stage's operators.
        block: `basic` or `bottleneck`.
        operator: stands for the 3x3 convolutions.
        attention: ends the residual branches; one for all stages, or one for each.
        stem: `photo` halves twice, `small` not at all, for images of 32 pixels.
        drop_rate, drop_path_rate: dropout before the classifier, and the
            largest rate of stochastic depth.
    """

    recipe: ClassVar[dict[str, Any]] = {
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "batch_size": 128,
        "warmup": 0.1,
    }
    key_rules = (
        (r"^conv1\.", "stem.0."),
        (r"^bn1\.", "stem.1."),
        *((rf"^layer{i + 1}\.(\d+)\.", rf"stages.{i}.blocks.\1.") for i in range(4)),
        *((rf"^layer{i + 1}\.$", f"stages.{i}.") for i in range(4)),
        (r"\.(eca|se)\.", ".attn."),
        (r"^fc\.", "head.fc."),
    )

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: tuple[int, ...] = (3, 4, 6, 3),
        dims: tuple[int, ...] = (64, 128, 256, 512),
        block: Literal["basic", "bottleneck"] = "bottleneck",
        operator: SpatialOperator = convolution,
        attention: Attention | tuple[Attention, ...] = _no_attention,
        stem: Literal["photo", "small"] = "photo",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        require_stages(depths=depths, dims=dims)
        kind = {"basic": BasicBlock, "bottleneck": Bottleneck}[block]
        self.stem = self._stem(in_chans, dims[0], stem)
        patch = 4 if stem == "photo" else 1
        stages, dim = [], dims[0]
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            ending = attention[i] if isinstance(attention, tuple) else attention
            blocks: list[nn.Module] = []
            for j, rate in enumerate(rates):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(kind(dim, dims[i], stride, operator, ending, rate))
                dim = kind.expansion * dims[i]
            stages.append(Stage(nn.Identity(), blocks))
        self.stages = nn.Sequential(*stages)
        self.head = PoolHead(dim, num_classes, drop_rate)
        self._initialise()
        widths = [kind.expansion * width for width in dims]
        self._finish(num_classes, in_chans, widths, [patch * 2**i for i in range(len(dims))])

    def _stem(self, in_chans: int, dim: int, kind: str) -> nn.Sequential:
        if kind == "small":
            conv = nn.Conv2d(in_chans, dim, 3, padding=1, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(dim), nn.ReLU(inplace=True))
        return nn.Sequential(
            nn.Conv2d(in_chans, dim, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(dim),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )

    def _initialise(self) -> None:
        """He's normal for filters; every branch begins at zero (arXiv 1706.02677, section 5.1)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for module in self.modules():
            if isinstance(module, BasicBlock | Bottleneck):
                last = module.bn2 if isinstance(module, BasicBlock) else module.bn3
                nn.init.zeros_(last.weight)


DEPTHS = {
    18: {"block": "basic", "depths": (2, 2, 2, 2)},
    34: {"block": "basic", "depths": (3, 4, 6, 3)},
    50: {"block": "bottleneck", "depths": (3, 4, 6, 3)},
    101: {"block": "bottleneck", "depths": (3, 4, 23, 3)},
    152: {"block": "bottleneck", "depths": (3, 8, 36, 3)},
}
"""Published depths; papers that fill the slots have them too."""
MINI32 = {"block": "basic", "depths": (1, 1, 1), "dims": (32, 64, 128), "stem": "small"}
"""For images of 32 pixels."""

SIZES = {
    **{
        f"resnet{depth}": Size(
            config,
            weights={
                "tv_in1k": f"timm/resnet{depth}.tv_in1k",
                "a1_in1k": f"timm/resnet{depth}.a1_in1k",
            },
        )
        for depth, config in DEPTHS.items()
    },
    "resnet_mini32": Size(MINI32, side=32, crop=1.0),
}

register(ResNet, SIZES)
