"""L2ViT: attention in windows and linear attention over the map, in turn.

Source: l2vit (arXiv 2501.16182, section 3.3). The authors' code is under MIT.
"""

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from foveate.backbones.base import ADAMW, Backbone, Size
from foveate.backbones.parts import (
    ConvMlp,
    DropPath,
    PoolHead,
    Stage,
    drop_path_rates,
    initialise,
    require_stages,
    stem_strides,
)
from foveate.backbones.registry import register
from foveate.catalog import implements
from foveate.ops.l2vit import LinearAttention, LocalConcentration, WindowAttention
from foveate.ops.layer_norm import LayerNorm2d

EPS = 1e-5


class PositionConv(nn.Conv2d):
    """A residual 3x3 depthwise convolution, which tells places apart."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 3, padding=1, groups=dim)

    def forward(self, input: Tensor) -> Tensor:
        return input + super().forward(input)


class Halve(nn.Module):
    """Layer norm and a 2x2 convolution of stride 2; odd sides are padded."""

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(dim, EPS)
        self.proj = nn.Conv2d(dim, dim_out, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        high, wide = x.shape[2:]
        return self.proj(F.pad(self.norm(x), (0, wide % 2, 0, high % 2)))


class L2Block(nn.Module):
    """A position convolution, attention, and an inverted bottleneck; all residual.

    Args:
        dim: channels.
        heads: of the attention.
        window: side of its windows, or None for linear attention over the map,
            followed by its concentration.
        drop_path: rate of stochastic depth.
    """

    def __init__(self, dim: int, heads: int, window: int | None, drop_path: float) -> None:
        super().__init__()
        self.position = PositionConv(dim)
        self.norm1 = LayerNorm2d(dim, EPS)
        self.position2: nn.Module = nn.Identity()
        self.local: nn.Module | None = None
        if window is None:
            self.attn: nn.Module = LinearAttention(dim, heads)
            self.norm3 = LayerNorm2d(dim, EPS)
            self.local = LocalConcentration(dim)
        else:
            self.attn = WindowAttention(dim, heads, window)
            self.position2 = PositionConv(dim)
        self.norm2 = LayerNorm2d(dim, EPS)
        self.mlp = ConvMlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.position(x)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = self.position2(x)
        if self.local is not None:
            x = x + self.drop_path(self.local(self.norm3(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


@implements("l2vit")
class L2ViT(Backbone):
    """Stages in which windows and linear attention take turns.

    Args:
        num_classes, in_chans: outputs and input channels.
        depths, dims, heads: blocks, channels and attention heads of each stage.
        window: side of the windows.
        patch: stride of the stem: 4 as published, 1 or 2 for small images.
        drop_rate, drop_path_rate: dropout before the classifier, and the
            largest rate of stochastic depth.
    """

    recipe: ClassVar[dict[str, Any]] = ADAMW | {"learning_rate": 1e-3}
    key_rules = (
        (r"^downsample_layers\.0\.proj\.proj\.", "stem."),
        (r"^downsample_layers\.0\.norm\.", "stem.5."),
        (r"^downsample_layers\.0\.$", "stem."),
        (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
        (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"\.cpe\.0\.proj\.", ".position."),
        (r"\.cpe\.1\.proj\.", ".position2."),
        (r"\.local_mp\.bn\.", ".local.norm."),
        (r"\.local_mp\.", ".local."),
        (r"^norm\.", "stages.3.norm."),
        (r"^head\.(weight|bias|$)", r"head.fc.\1"),
    )

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        dims: tuple[int, ...] = (96, 192, 384, 768),
        heads: tuple[int, ...] = (3, 6, 12, 24),
        window: int = 7,
        patch: int = 4,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        require_stages(depths=depths, dims=dims, heads=heads)
        first, second = stem_strides(patch)
        half = dims[0] // 2
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, half, 3, stride=first, padding=1),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, dims[0], 3, stride=second, padding=1),
            nn.BatchNorm2d(dims[0]),
            LayerNorm2d(dims[0], EPS),
        )
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            down = Halve(dims[i - 1], dims[i]) if i else nn.Identity()
            blocks: list[nn.Module] = [
                L2Block(dims[i], heads[i], None if j % 2 else window, rate)
                for j, rate in enumerate(rates)
            ]
            last = i == len(dims) - 1
            stages.append(Stage(down, blocks, LayerNorm2d(dims[i], EPS) if last else None))
        self.stages = nn.Sequential(*stages)
        self.head = PoolHead(dims[-1], num_classes, drop_rate)
        initialise(self)
        self._finish(num_classes, in_chans, list(dims), [patch * 2**i for i in range(len(dims))])

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(".temperature")}


_DEEP = {"depths": (2, 2, 18, 2)}
_BASE = {**_DEEP, "dims": (128, 256, 512, 1024), "heads": (4, 8, 16, 32)}

SIZES = {
    "l2vit_tiny": Size({}),
    "l2vit_small": Size(_DEEP),
    "l2vit_base": Size(_BASE),
    "l2vit_base_384": Size(_BASE | {"window": 12}, 384, crop=1.0),
    "l2vit_mini32": Size(
        {
            "depths": (2, 2, 2),
            "dims": (32, 64, 128),
            "heads": (2, 4, 8),
            "window": 4,
            "patch": 1,
        },
        side=32,
        crop=1.0,
    ),
}

register(L2ViT, SIZES)
