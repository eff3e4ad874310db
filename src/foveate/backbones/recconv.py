"""RecNeXt: MetaNeXt blocks whose token mixer is a recursive convolution.

Source: recconv (arXiv 2412.19628, section 3.3). The authors' code is under Apache-2.0.
"""

from typing import Any, ClassVar

from torch import Tensor, nn

from foveate.backbones.base import ADAMW, Backbone, Size
from foveate.backbones.parts import (
    Block,
    ConvNormMlp,
    Stage,
    TwinHead,
    drop_path_rates,
    initialise,
    require_stages,
    stem_strides,
)
from foveate.backbones.registry import register
from foveate.catalog import implements
from foveate.ops.conv_norm import ConvNorm
from foveate.ops.merge import merge
from foveate.ops.recconv import RecConv


class Downsample(nn.Module):
    """A strided 7x7 depthwise convolution that doubles the channels, norm, residual channel mixer.

    Shapes: (B, dim, H, W) to (B, 2 dim, H / 2, W / 2).
    """

    def __init__(self, dim: int, mlp_ratio: int) -> None:
        super().__init__()
        self.token_mixer = nn.Conv2d(dim, 2 * dim, 7, stride=2, padding=3, groups=dim)
        self.norm = nn.BatchNorm2d(2 * dim)
        self.mlp = ConvNormMlp(2 * dim, 2 * dim * mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.token_mixer(x))
        return x + self.mlp(x)


@implements("recconv")
class RecNeXt(Backbone):
    """Stages of `RecConv`, batch norm and an inverted bottleneck.

    Args:
        num_classes, in_chans: outputs and input channels.
        depths, dims, levels: blocks, channels and recursions of each stage.
        mlp_ratio: hidden width of the channel mixers over their channels.
        patch: stride of the stem: 4 as published, 1 or 2 for small images.
        deploy: build the merged form, for checkpoints that hold it.
        drop_rate, drop_path_rate: dropout before the classifier, and the
            largest rate of stochastic depth.
    """

    recipe: ClassVar[dict[str, Any]] = ADAMW | {"weight_decay": 0.025}
    key_rules = (
        (r"^stem\.stem\.", "stem."),
        (r"\.channel_mixer\.0\.", ".mlp.fc1."),
        (r"\.channel_mixer\.2\.", ".mlp.fc2."),
        (r"(^stem\.\d|\.fc\d)\.(weight|bias)$", r"\1.conv.\2"),
        (r"^head\.head\.norm\.", "head.norm."),
        (r"^head\.head\.linear\.", "head.fc."),
        (r"^head\.head_dist\.norm\.", "head.norm_dist."),
        (r"^head\.head_dist\.linear\.", "head.fc_dist."),
        (r"^head\.(weight|bias)$", r"head.fc.\1"),
    )

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: tuple[int, ...] = (2, 2, 9, 1),
        dims: tuple[int, ...] = (40, 80, 160, 320),
        levels: tuple[int, ...] = (4, 3, 2, 1),
        mlp_ratio: int = 2,
        patch: int = 4,
        deploy: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        require_stages(depths=depths, dims=dims, levels=levels)
        first, second = stem_strides(patch)
        self.stem = nn.Sequential(
            ConvNorm(in_chans, dims[0] // 2, 3, first),
            nn.GELU(),
            ConvNorm(dims[0] // 2, dims[0], 3, second),
        )
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            down = Downsample(dims[i - 1], mlp_ratio) if i else nn.Identity()
            blocks: list[nn.Module] = [
                Block(
                    dims[i],
                    mixer=("token_mixer", RecConv(dims[i], 5, levels[i])),
                    norm=nn.BatchNorm2d(dims[i]),
                    mlp=ConvNormMlp(dims[i], mlp_ratio * dims[i]),
                    scale=None,
                    drop_path=rate,
                )
                for rate in rates
            ]
            stages.append(Stage(down, blocks))
        self.stages = nn.Sequential(*stages)
        self.head = TwinHead(dims[-1], num_classes, drop_rate)
        initialise(self.head)
        strides = [patch * 2**i for i in range(len(dims))]
        self._finish(num_classes, in_chans, list(dims), strides, self.head.second)
        self.default_cfg["first_conv"] = "stem.0.conv"
        if deploy:
            merge(self)


_NAMED = {
    "m0": (40, (2, 2, 9, 1)),
    "m1": (48, (3, 3, 15, 2)),
    "m2": (56, (3, 3, 15, 2)),
    "m3": (64, (3, 3, 13, 2)),
    "m4": (64, (5, 5, 25, 4)),
    "m5": (80, (7, 7, 35, 2)),
}
_TOP1 = {"m0": 73.2, "m1": 78.0, "m2": 79.2, "m3": 79.6, "m4": 81.1, "m5": 81.6}

SIZES = {
    **{
        f"recnext_{name}": Size(
            {"dims": tuple(dim * 2**i for i in range(4)), "depths": depths}, top1=_TOP1[name]
        )
        for name, (dim, depths) in _NAMED.items()
    },
    "recnext_mini32": Size(
        {"depths": (1, 2, 2), "dims": (32, 64, 128), "levels": (3, 2, 1), "patch": 1},
        side=32,
        crop=1.0,
    ),
}

register(RecNeXt, SIZES)
