"""ConViT: a vision transformer whose first blocks begin as convolutions, and may leave off.

Source: convit (arXiv 2103.10697, section 3 and table 1). The authors' code is under Apache-2.0.
"""

from typing import Any, ClassVar

from torch import Tensor, nn

from foveate.backbones.base import ADAMW, Backbone, Size
from foveate.backbones.parts import (
    ClassTokenStage,
    ConvMlp,
    MetaBlock,
    PositionEmbedding,
    Stage,
    TokenHead,
    drop_path_rates,
    initialise,
)
from foveate.backbones.registry import register
from foveate.catalog import implements
from foveate.ops.attention import SelfAttention
from foveate.ops.convit import GatedPositionalSelfAttention
from foveate.ops.layer_norm import LayerNorm2d


@implements("convit")
class ConViT(Backbone):
    """Blocks of gated positional attention, then a class token and blocks of plain attention.

    Args:
        num_classes, in_chans: outputs and input channels.
        depths: blocks with gates, and blocks after the class token has come.
        head_dim, heads: channels of a head, and heads.
        strength: how sharply heads look at their places at first.
        patch: side of the patches.
        side: of the images that places are learnt for; others get them scaled.
        drop_rate, drop_path_rate: dropout before the classifier, and the
            largest rate of stochastic depth.
    """

    recipe: ClassVar[dict[str, Any]] = ADAMW | {"learning_rate": 1e-3}
    key_rules = (
        (r"^patch_embed\.proj\.", "stem.0."),
        (r"^pos_embed$", "stem.1.embedding"),
        (r"^cls_token$", "stages.1.class_token"),
        (r"^blocks\.1([01])\.", r"stages.1.blocks.\1."),
        (r"^blocks\.(\d)\.", r"stages.0.blocks.\1."),
        (r"^norm\.", "stages.1.norm."),
        (r"^head\.(weight|bias)$", r"head.fc.\1"),
    )

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: tuple[int, int] = (10, 2),
        head_dim: int = 48,
        heads: int = 4,
        strength: float = 1.0,
        patch: int = 16,
        side: int = 224,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        dim = head_dim * heads
        gated, plain = drop_path_rates(drop_path_rate, depths)
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, dim, patch, stride=patch),
            PositionEmbedding(side // patch, dim, "bicubic", flat=True),
        )

        def block(mixer: nn.Module, rate: float) -> nn.Module:
            mlp = ConvMlp(dim, 4 * dim)
            return MetaBlock(dim, ("attn", mixer), LayerNorm2d, mlp, scale=None, drop_path=rate)

        local = [
            block(GatedPositionalSelfAttention(dim, heads, strength=strength), rate)
            for rate in gated
        ]
        free = [block(SelfAttention(dim, heads, bias=False), rate) for rate in plain]
        self.stages = nn.Sequential(
            Stage(nn.Identity(), local),
            ClassTokenStage(nn.Identity(), free, LayerNorm2d(dim), dim),
        )
        self.head = TokenHead(dim, num_classes, drop_rate)
        initialise(self)
        for module in self.modules():
            if isinstance(module, GatedPositionalSelfAttention):
                module.look_like_a_convolution()
        self._finish(num_classes, in_chans, [dim, dim], [patch, patch])

    def gates(self) -> list[Tensor]:
        """Of each block with gates, how much its heads go by place: (heads,), in [0, 1]."""
        modules = self.modules()
        return [m.gates() for m in modules if isinstance(m, GatedPositionalSelfAttention)]


def _size(name: str, heads: int, top1: float) -> Size:
    hub = {"fb_in1k": f"timm/convit_{name}.fb_in1k"}
    return Size({"heads": heads}, weights=hub, top1=top1)


SIZES = {
    "convit_tiny": _size("tiny", 4, 73.1),
    "convit_small": _size("small", 9, 81.3),
    "convit_base": _size("base", 16, 82.4),
    "convit_mini32": Size(
        {"depths": (4, 1), "head_dim": 16, "heads": 9, "patch": 4, "side": 32}, side=32, crop=1.0
    ),
}

register(ConViT, SIZES)
