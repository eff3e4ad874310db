"""ViG: gated linear attention at one resolution, and ViG-H in a pyramid.

Source: vig_gla (arXiv 2405.18425, section 3.4).
"""

from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from foveate.backbones.base import ADAMW, Backbone, Size
from foveate.backbones.parts import (
    MetaBlock,
    PoolHead,
    PositionEmbedding,
    Stage,
    drop_path_rates,
    initialise,
    require_stages,
    stem_strides,
)
from foveate.backbones.registry import register
from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.ops.layer_norm import LayerNorm2d
from foveate.ops.vig_gla import EPS, BidirectionalGla

GROUPS = 4  # of blocks, after each of which there is a map to be had
HIERARCHICAL_EPS = 1e-5


class RMSNorm2d(nn.RMSNorm):
    """Root mean square norm over the channels of maps. Shapes: (B, C, H, W) to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SwiGlu(nn.Module):
    """A gated channel mixer, two thirds as wide as a plain one.

    Args:
        dim: channels.
        multiple: to which the width is rounded up.

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(self, dim: int, multiple: int = 256) -> None:
        super().__init__()
        hidden = multiple * -(-(8 * dim // 3) // multiple)
        self.fc1 = nn.Conv2d(dim, 2 * hidden, 1, bias=False)
        self.fc2 = nn.Conv2d(hidden, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=1)
        return self.fc2(F.silu(gate) * value)


@implements("vig_gla")
class ViG(Backbone):
    """Blocks of `BidirectionalGla` and a gated channel mixer at one resolution.

    Args:
        num_classes, in_chans: outputs and input channels.
        depth, dim, heads: blocks, channels and attention heads.
        side: of the images that positions are learnt for.
        patch: stride of the stem: 16 as published, 4 for small images.
        drop_rate, drop_path_rate: dropout before the classifier, and the
            largest rate of stochastic depth.
    """

    recipe: ClassVar[dict[str, Any]] = ADAMW | {"learning_rate": 1e-3}
    key_rules = (
        (r"^patch_embed\.proj\.", "stem."),
        (r"^pos_embed$", "stem.5.embedding"),
        *(
            (rf"^blocks\.{3 * i + j}\.", f"stages.{i}.blocks.{j}.")
            for i in range(GROUPS)
            for j in range(3)
        ),
        (r"\.attn_norm\.", ".norm1."),
        (r"\.mlp_norm\.", ".norm2."),
        (r"\.in_proj\.0\.", ".local."),
        (r"\.gate_proj\.", ".fc1."),
        (r"\.down_proj\.", ".fc2."),
        (r"^norm\.", "stages.3.norm."),
        (r"^head\.(weight|bias|$)", r"head.fc.\1"),
    )

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depth: int = 12,
        dim: int = 192,
        heads: int = 3,
        side: int = 224,
        patch: int = 16,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if depth % GROUPS:
            raise FoveateError(f"depth is {depth}: give a multiple of {GROUPS}")
        stride = patch // 2
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, dim // 2, stride + 1, stride=stride, padding=1),
            LayerNorm2d(dim // 2, 1e-5),
            nn.SiLU(),
            nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1),
            LayerNorm2d(dim, 1e-5),
            PositionEmbedding(side // patch, dim, "bicubic", flat=True),
        )
        each = depth // GROUPS
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, (each,) * GROUPS)):
            blocks: list[nn.Module] = [
                MetaBlock(
                    dim,
                    mixer=("attn", BidirectionalGla(dim, heads)),
                    norm=RMSNorm2d,
                    mlp=SwiGlu(dim),
                    scale=None,
                    drop_path=rate,
                )
                for rate in rates
            ]
            last = i == GROUPS - 1
            stages.append(Stage(nn.Identity(), blocks, RMSNorm2d(dim) if last else None))
        self.stages = nn.Sequential(*stages)
        self.head = PoolHead(dim, num_classes, drop_rate)
        for module in self.modules():
            if isinstance(module, SwiGlu):
                nn.init.normal_(module.fc1.weight, std=0.02)
                nn.init.normal_(module.fc2.weight, std=0.02)
        if isinstance(self.head.fc, nn.Linear):
            nn.init.normal_(self.head.fc.weight, std=0.02)
            nn.init.zeros_(self.head.fc.bias)
        self._finish(num_classes, in_chans, [dim] * GROUPS, [patch] * GROUPS)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(".embedding")}


@implements("vig_gla")
class HierarchicalViG(Backbone):
    """Four stages of `BidirectionalGla` without its activations, and a gated channel mixer.

    Args:
        num_classes, in_chans: outputs and input channels.
        depths, dims, heads: blocks, channels and attention heads of each stage.
        patch: stride of the stem: 4 as published, 1 or 2 for small images.
        drop_rate, drop_path_rate: dropout before the classifier, and the
            largest rate of stochastic depth.
    """

    recipe: ClassVar[dict[str, Any]] = ADAMW | {"learning_rate": 1e-3}
    key_rules = (
        *((rf"^patch_embed\.{i}\.", f"stem.{j}.") for i, j in ((0, 0), (2, 1), (5, 3), (7, 4))),
        *((rf"^layers\.{i}\.downsample\.1\.", f"stages.{i + 1}.downsample.0.") for i in range(3)),
        *((rf"^layers\.{i}\.downsample\.3\.", f"stages.{i + 1}.downsample.1.") for i in range(3)),
        (r"^layers\.", "stages."),
        (r"^(stages\.\d\.blocks\.\d+)\.norm\.", r"\1.norm1."),
        (r"\.op\.", ".attn."),
        (r"\.in_proj\.0\.", ".local."),
        (r"^classifier\.norm\.", "stages.3.norm."),
        (r"^classifier\.head\.", "head.fc."),
    )

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: tuple[int, ...] = (2, 2, 5, 2),
        dims: tuple[int, ...] = (96, 192, 384, 768),
        heads: tuple[int, ...] = (3, 6, 12, 24),
        patch: int = 4,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        require_stages(depths=depths, dims=dims, heads=heads)
        norm = partial(LayerNorm2d, eps=HIERARCHICAL_EPS)
        first, second = stem_strides(patch)
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, dims[0] // 2, 3, stride=first, padding=1),
            norm(dims[0] // 2),
            nn.GELU(),
            nn.Conv2d(dims[0] // 2, dims[0], 3, stride=second, padding=1),
            norm(dims[0]),
        )
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            down: nn.Module = nn.Identity()
            if i > 0:
                conv = nn.Conv2d(dims[i - 1], dims[i], 3, stride=2, padding=1)
                down = nn.Sequential(conv, norm(dims[i]))
            blocks: list[nn.Module] = [
                MetaBlock(
                    dims[i],
                    mixer=("attn", BidirectionalGla(dims[i], heads[i], act=False)),
                    norm=norm,
                    mlp=SwiGlu(dims[i], multiple=32),
                    scale=None,
                    drop_path=rate,
                )
                for rate in rates
            ]
            stages.append(Stage(down, blocks, norm(dims[i]) if i == len(dims) - 1 else None))
        self.stages = nn.Sequential(*stages)
        self.head = PoolHead(dims[-1], num_classes, drop_rate)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) or name.endswith((".fc1", ".fc2")):
                initialise(module)
        self._finish(num_classes, in_chans, list(dims), [patch * 2**i for i in range(len(dims))])


SIZES = {
    "vig_t": Size({}),
    "vig_s": Size({"dim": 384, "heads": 6}),
    "vig_b": Size({"dim": 768, "heads": 12}),
    "vig_mini32": Size(
        {"depth": 4, "dim": 96, "heads": 3, "side": 32, "patch": 4}, side=32, crop=1.0
    ),
}

register(ViG, SIZES)
register(
    HierarchicalViG,
    {
        "vig_h_t": Size({}),
        "vig_h_s": Size({"depths": (2, 2, 17, 2)}),
        "vig_h_b": Size(
            {"depths": (2, 2, 17, 2), "dims": (128, 256, 512, 1024), "heads": (4, 8, 16, 32)}
        ),
        "vig_h_mini32": Size(
            {"depths": (1, 2, 2), "dims": (32, 64, 128), "heads": (1, 2, 4), "patch": 2},
            side=32,
            crop=1.0,
        ),
    },
)
