"""InceptionNeXt: ConvNeXt's block with the large depthwise kernel split into Inception branches.

Source: inceptionnext (arXiv 2303.16900, section 3 and table 1).
"""

from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from foveate.backbones.base import ADAMW, Backbone, Size
from foveate.backbones.parts import (
    Block,
    ConvMlp,
    Stage,
    drop_path_rates,
    initialise,
    patch_stem,
    require_stages,
)
from foveate.backbones.registry import register
from foveate.catalog import implements
from foveate.ops.inceptionnext import InceptionDepthwise


@implements("inceptionnext")
class InceptionNeXt(Backbone):
    """Blocks of an Inception depthwise mixer, batch norm and an inverted bottleneck.

    Args:
        num_classes, in_chans: outputs and input channels.
        depths, dims: blocks and channels of each stage.
        mlp_ratios: hidden width of each stage's channel mixer over its channels.
        patch: stride of the stem: 4 as published, 1 or 2 for small images.
        band_kernel, branch_ratio: of `InceptionDepthwise`.
        scale: initial layer scale.
        drop_rate, drop_path_rate: dropout before the classifier, and the
            largest rate of stochastic depth.
    """

    recipe: ClassVar[dict[str, Any]] = ADAMW

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: tuple[int, ...] = (3, 3, 9, 3),
        dims: tuple[int, ...] = (96, 192, 384, 768),
        mlp_ratios: tuple[int, ...] = (4, 4, 4, 3),
        patch: int = 4,
        band_kernel: int = 11,
        branch_ratio: float = 1 / 8,
        scale: float = 1e-6,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        require_stages(depths=depths, dims=dims, mlp_ratios=mlp_ratios)
        mixer = partial(InceptionDepthwise, band_kernel=band_kernel, branch_ratio=branch_ratio)
        self.stem = patch_stem(in_chans, dims[0], patch, nn.BatchNorm2d)
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            down: nn.Module = nn.Identity()
            if i > 0:
                conv = nn.Conv2d(dims[i - 1], dims[i], 2, stride=2)
                down = nn.Sequential(nn.BatchNorm2d(dims[i - 1]), conv)
            blocks: list[nn.Module] = [
                Block(
                    dims[i],
                    mixer=("token_mixer", mixer(dims[i])),
                    norm=nn.BatchNorm2d(dims[i]),
                    mlp=ConvMlp(dims[i], mlp_ratios[i] * dims[i]),
                    scale=scale,
                    drop_path=rate,
                )
                for rate in rates
            ]
            stages.append(Stage(down, blocks))
        self.stages = nn.Sequential(*stages)
        self.head = MlpHead(dims[-1], num_classes, drop_rate)
        initialise(self)
        strides = [patch * 2**i for i in range(len(dims))]
        self._finish(num_classes, in_chans, list(dims), strides)

    @property
    def classifier_name(self) -> str:
        return "head.fc2"


class MlpHead(nn.Module):
    """Average pool, linear to three times the width, GELU, layer norm, dropout, linear.

    Shapes: (B, dim, H, W) to (B, num_classes).
    """

    def __init__(self, dim: int, num_classes: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 3 * dim)
        self.act = nn.GELU()
        self.norm = nn.LayerNorm(3 * dim, eps=1e-6)
        self.drop = nn.Dropout(drop)
        self.fc2 = nn.Linear(3 * dim, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.drop(self.norm(self.act(self.fc1(x.mean((2, 3))))))
        return x if pre_logits else self.fc2(x)


def _hub(name: str, tag: str = "sail_in1k") -> dict[str, str]:
    return {tag: f"timm/inception_next_{name}.{tag}"}


_DEEP = {"depths": (3, 3, 27, 3)}
_BASE = {**_DEEP, "dims": (128, 256, 512, 1024)}

SIZES = {
    "inception_next_atto": Size(
        {
            "depths": (2, 2, 6, 2),
            "dims": (40, 80, 160, 320),
            "band_kernel": 9,
            "branch_ratio": 1 / 4,
        },
        weights=_hub("atto"),
        races=(80, 4096),
    ),
    "inception_next_tiny": Size({}, weights=_hub("tiny"), top1=82.3),
    "inception_next_small": Size(_DEEP, weights=_hub("small"), top1=83.5),
    "inception_next_base": Size(_BASE, weights=_hub("base"), crop=0.95, top1=84.0),
    "inception_next_base_384": Size(_BASE, 384, _hub("base", "sail_in1k_384"), crop=1.0, top1=85.2),
    "inception_next_mini32": Size(
        {
            "depths": (1, 2, 2),
            "dims": (32, 64, 128),
            "mlp_ratios": (4, 4, 3),
            "patch": 1,
            "band_kernel": 7,
            "branch_ratio": 1 / 4,
        },
        side=32,
        crop=1.0,
        races=(8, 40),
    ),
    "inception_next_mini64": Size(
        {
            "depths": (2, 2, 4),
            "dims": (40, 80, 160),
            "mlp_ratios": (4, 4, 3),
            "patch": 2,
            "band_kernel": 9,
            "branch_ratio": 1 / 4,
        },
        side=64,
        crop=1.0,
        races=(40, 80),
    ),
}

register(InceptionNeXt, SIZES)
