"""SpaRTAN: few parameters, near and far looks with gates, channels mixed as waves.

Source: spartan (arXiv 2507.10999, section III). The authors' code is under Apache-2.0.
"""

from typing import Any, ClassVar

from torch import nn

from foveate.backbones.base import ADAMW, Backbone, Size
from foveate.backbones.parts import (
    MetaBlock,
    PoolHead,
    Stage,
    drop_path_rates,
    initialise,
    require_stages,
    stem_strides,
)
from foveate.backbones.registry import register
from foveate.catalog import implements
from foveate.ops.conv_norm import ConvNorm
from foveate.ops.spartan import EPS, MultiOrderMixer, WaveMixer


@implements("spartan")
class SpaRTAN(Backbone):
    """Stages of `MultiOrderMixer` and `WaveMixer`, dense in the first half and thin in the other.

    Args:
        num_classes, in_chans: outputs and input channels.
        depths, dims, ratios: blocks, channels, and hidden width over channels of
            each stage.
        patch: stride of the stem: 4 as published, 1 or 2 for small images.
        drop_rate, drop_path_rate: dropout before the classifier, and the
            largest rate of stochastic depth.
    """

    recipe: ClassVar[dict[str, Any]] = ADAMW

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: tuple[int, ...] = (3, 3, 12, 2),
        dims: tuple[int, ...] = (32, 64, 128, 256),
        ratios: tuple[int, ...] = (4, 4, 2, 2),
        patch: int = 4,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        require_stages(depths=depths, dims=dims, ratios=ratios)
        first, second = stem_strides(patch)
        self.stem = nn.Sequential(
            ConvNorm(in_chans, dims[0] // 2, 3, first, eps=EPS),
            nn.GELU(),
            ConvNorm(dims[0] // 2, dims[0], 3, second, eps=EPS),
            nn.GELU(),
        )
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            down: nn.Module = nn.Identity()
            if i > 0:
                down = nn.Sequential(
                    ConvNorm(dims[i - 1], dims[i], 2, 2, eps=EPS, pad=0), nn.SiLU()
                )
            dense = i < len(depths) // 2
            blocks: list[nn.Module] = [
                MetaBlock(
                    dims[i],
                    mixer=("smixer", MultiOrderMixer(dims[i], dense)),
                    norm=_norm,
                    mlp=WaveMixer(dims[i], ratios[i], grouped=not dense),
                    scale=1e-5,
                    drop_path=rate,
                )
                for rate in rates
            ]
            stages.append(Stage(down, blocks))
        self.stages = nn.Sequential(*stages)
        self.head = PoolHead(dims[-1], num_classes, drop_rate)
        initialise(self, by_fan=True)
        self._finish(num_classes, in_chans, list(dims), [patch * 2**i for i in range(len(dims))])
        self.default_cfg["first_conv"] = "stem.0.conv"
        self.key_rules = _key_rules(depths)


def _norm(dim: int) -> nn.Module:
    return nn.GroupNorm(1, dim, eps=EPS)


def _key_rules(depths: tuple[int, ...]) -> tuple[tuple[str, str], ...]:
    """The authors number blocks and halvings in one row, so how many there are decides."""
    rules: list[tuple[str, str]] = []
    layer = 0
    for i, depth in enumerate(depths):
        if i > 0:
            rules.append((rf"^layers\.{layer}\.(conv|norm)\.", rf"stages.{i}.downsample.0.\1."))
            layer += 1
        for j in range(depth):
            rules.append((rf"^layers\.{layer}\.", f"stages.{i}.blocks.{j}."))
            layer += 1
    return (
        *rules,
        (r"^conv\.0\.", "stem.0."),
        (r"^conv\.1\.", "stem.2."),
        (r"^linear\.", "head.fc."),
        (r"\.scale_([12])$", r".gamma\1"),
        (r"\.norm_([12])\.", r".norm\1."),
        (r"\.h_conv\.", ".near."),
        (r"\.l_conv\.0\.conv\.", ".far.0."),
        (r"\.l_conv\.1\.", ".far.1."),
        (r"\.h_attn\.", ".near_gate."),
        (r"\.l_attn\.", ".far_gate."),
        (r"\.cmixer\.attn\.", ".mlp.gate."),
        (r"\.squeeze\.", ".fc1."),
        (r"\.expand\.", ".fc2."),
        (r"\.cmixer\.complex$", ".mlp.waves"),
        (r"\.cmixer\.", ".mlp."),
    )


SIZES = {
    "spartan_t": Size({}, top1=77.7),
    "spartan_mini32": Size(
        {"depths": (1, 2, 2), "dims": (32, 64, 128), "ratios": (4, 4, 2), "patch": 1},
        side=32,
        crop=1.0,
    ),
}

register(SpaRTAN, SIZES)
