"""GLNet: convolution and attention among clusters side by side, and full attention at the end.

Source: glmix (arXiv 2411.14429, section 3). The authors' code is under MIT.
"""

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.backbones.base import ADAMW, Backbone, Size
from foveate.backbones.parts import (
    DropPath,
    Stage,
    drop_path_rates,
    initialise,
    patch_stem,
    require_stages,
    stem_strides,
)
from foveate.backbones.registry import register
from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.ops.attention import SelfAttention
from foveate.ops.depthwise import ResidualDepthwise
from foveate.ops.glmix import GLMix
from foveate.ops.layer_norm import LayerNorm2d

HEAD_DIM = 32
AUXILIARY = 0.5
MIXERS = ("glmix", "hybrid", "attention")


class GLNetBlock(nn.Module):
    """Position from a convolution, a token mixer, and an MLP, each with a residual path.

    Args:
        dim: channels.
        mixer: `GLMix`, whose slots begin from what enters the block, or attention.
        hidden: width of the MLP.
        depthwise: whether a 3x3 depthwise convolution gives positions, and another
            lies in the MLP.
        scale: initial layer scale, or None for none.
        drop_path: rate of stochastic depth.

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        hidden: int,
        depthwise: bool,
        scale: float | None,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.pos_conv = ResidualDepthwise(dim) if depthwise else nn.Identity()
        self.norm1, self.norm2 = LayerNorm2d(dim), LayerNorm2d(dim)
        self.mixer = mixer
        self.mlp = nn.Sequential(
            nn.Conv2d(dim, hidden, 1),
            ResidualDepthwise(hidden) if depthwise else nn.Identity(),
            nn.GELU(),
            nn.Conv2d(hidden, dim, 1),
        )
        self.gamma1, self.gamma2 = (
            None if scale is None else nn.Parameter(torch.full((dim, 1, 1), scale))
            for _ in range(2)
        )
        self.drop_path = DropPath(drop_path)

    @property
    def is_plain(self) -> bool:
        """Whether it is a plain transformer's block, whose MLP sees no neighbours."""
        return isinstance(self.mixer, SelfAttention) and isinstance(self.pos_conv, nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        seed, x = x, self.pos_conv(x)
        y = self.norm1(x)
        y = self.mixer(y, seed) if isinstance(self.mixer, GLMix) else self.mixer(y)
        x = x + self.drop_path(y if self.gamma1 is None else y * self.gamma1)
        y = self.mlp(self.norm2(x))
        return x + self.drop_path(y if self.gamma2 is None else y * self.gamma2)


class DenseHead(nn.Module):
    """Batch norm, average pool, dropout, linear; and a classifier of places, if asked.

    Args:
        dim, num_classes, drop: width, outputs, rate of dropout.
        dense: add half of the largest logits that any place has by itself.

    Shapes: (B, dim, H, W) to (B, num_classes).
    """

    def __init__(self, dim: int, num_classes: int, drop: float, dense: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(dim)
        self.drop = nn.Dropout(drop)
        self.fc = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        places = nn.Conv2d(dim, num_classes, 1) if num_classes else nn.Identity()
        self.auxiliary = places if dense else None

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.norm(x)
        pooled = self.drop(x.mean((2, 3)))
        if pre_logits:
            return pooled
        logits = self.fc(pooled)
        if self.auxiliary is None or isinstance(self.fc, nn.Identity):
            return logits
        return logits + AUXILIARY * self.auxiliary(x).amax((2, 3))


@implements("glmix")
class GLNet(Backbone):
    """Stages of `GLMix`, then of it and attention in turn, then of attention alone.

    Args:
        num_classes, in_chans: outputs and input channels.
        depths, dims: blocks and channels of each stage.
        mixers: of each stage `glmix`, `attention`, or `hybrid` for both in turn.
        mlp_ratio: hidden width of the MLP over its channels.
        slots, learnt: of `GLMix`.
        overlapping: whether stem and halvings see overlapping patches, and blocks
            have depthwise convolutions.
        scale: initial layer scale, or None for none.
        dense: whether places have a classifier of their own, as token labelling trains it.
        patch: stride of the stem: 4 as published, 1 or 2 for small images.
        drop_rate, drop_path_rate: dropout before the classifier, and the
            largest rate of stochastic depth.

    Raises: FoveateError if a stage has no such mixer.
    """

    recipe: ClassVar[dict[str, Any]] = ADAMW | {"clip": 5.0}
    key_rules = (
        (r"^downsample_layers\.0\.", "stem."),
        (r"^downsample_layers\.(\d)\.", r"stages.\1.downsample."),
        (r"\.(relation_mha|mha_op)\.in_proj_(weight|bias)$", r".\1.qkv.\2"),
        (r"\.relation_mha\.out_proj\.", ".relation_mha.proj."),
        (r"\.mha_op\.out_proj\.", ".mha_op.proj."),
        (r"\.relation_mha\.", ".mixer.attn."),
        (r"\.mha_op\.", ".mixer."),
        (r"\.feature_conv\.", ".mixer.local."),
        (r"\.slot_scale$", ".mixer.scale"),
        (r"\.init_slots$", ".mixer.slots"),
        (r"\.mlp\.2\.", ".mlp.3."),
        (r"\.ls([12])\.gamma$", r".gamma\1"),
        (r"^norm\.", "head.norm."),
        (r"^tklb_aux_head\.", "head.auxiliary."),
        (r"^head\.(weight|bias|$)", r"head.fc.\1"),
    )

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: tuple[int, ...] = (4, 4, 18, 4),
        dims: tuple[int, ...] = (64, 128, 256, 512),
        mixers: tuple[str, ...] = ("glmix", "glmix", "hybrid", "attention"),
        mlp_ratio: int = 3,
        slots: int = 64,
        learnt: bool = False,
        overlapping: bool = True,
        scale: float | None = None,
        dense: bool = False,
        patch: int = 4,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        require_stages(depths=depths, dims=dims, mixers=mixers)
        if not set(mixers) <= set(MIXERS):
            raise FoveateError(f"mixers are {mixers}: choose from {', '.join(MIXERS)}")
        self.stem = (
            _deep_stem(in_chans, dims[0], patch)
            if overlapping
            else patch_stem(in_chans, dims[0], patch, nn.BatchNorm2d)
        )
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            dim, blocks = dims[i], []
            for j, rate in enumerate(rates):
                attends = mixers[i] == "attention" or (mixers[i] == "hybrid" and j % 2 == 1)
                heads = dim // HEAD_DIM
                mixer = (
                    SelfAttention(dim, heads)
                    if attends
                    else GLMix(dim, heads, slots, learnt=learnt)
                )
                blocks.append(GLNetBlock(dim, mixer, mlp_ratio * dim, overlapping, scale, rate))
            down = _halving(dims[i - 1], dim, overlapping) if i else nn.Identity()
            stages.append(Stage(down, blocks))
        self.stages = nn.Sequential(*stages)
        self.head = DenseHead(dims[-1], num_classes, drop_rate, dense)
        self._initialise()
        places = {"head.auxiliary": partial(nn.Conv2d, dims[-1], kernel_size=1)} if dense else {}
        strides = [patch * 2**i for i in range(len(dims))]
        self._finish(num_classes, in_chans, list(dims), strides, places)
        self.default_cfg["first_conv"] = "stem.1" if overlapping else "stem.0"

    def _initialise(self) -> None:
        """Truncated normal for linear layers, but for queries, keys and values as PyTorch has it;
        convolutions begin as they are."""
        initialise(self.head)
        for module in self.modules():
            if isinstance(module, SelfAttention):
                initialise(module)
                nn.init.xavier_uniform_(module.qkv.weight)
            elif isinstance(module, GLNetBlock) and module.is_plain:
                initialise(module.mlp)


def _deep_stem(in_chans: int, dim: int, patch: int) -> nn.Sequential:
    """Two 3x3 convolutions; the authors leave room for a norm of images before them."""
    first, second = stem_strides(patch)
    return nn.Sequential(
        nn.Identity(),
        nn.Conv2d(in_chans, dim // 2, 3, stride=first, padding=1),
        nn.BatchNorm2d(dim // 2),
        nn.GELU(),
        nn.Conv2d(dim // 2, dim, 3, stride=second, padding=1),
        nn.BatchNorm2d(dim),
    )


def _halving(dim: int, dim_out: int, overlapping: bool) -> nn.Sequential:
    if overlapping:
        conv = nn.Conv2d(dim, dim_out, 3, stride=2, padding=1)
        return nn.Sequential(conv, nn.BatchNorm2d(dim_out))
    return nn.Sequential(nn.BatchNorm2d(dim), nn.Conv2d(dim, dim_out, 2, stride=2))


_SWIN = {
    "depths": (2, 2, 6, 2),
    "dims": (96, 192, 384, 768),
    "mixers": ("glmix", "glmix", "glmix", "attention"),
    "mlp_ratio": 4,
    "overlapping": False,
}
_WIDE = {"dims": (96, 192, 384, 768)}

SIZES = {
    "glnet_4g": Size({}, top1=83.7),
    "glnet_9g": Size(_WIDE, top1=84.5),
    "glnet_16g": Size({"dims": (128, 256, 512, 1024), "scale": 1e-4}, top1=85.0),
    "glnet_4g_tklb": Size({"dense": True}, top1=84.4),
    "glnet_9g_tklb": Size(_WIDE | {"dense": True}, top1=85.3),
    "glnet_stl": Size(_SWIN, top1=82.5),
    "glnet_stl_paramslot": Size(_SWIN | {"learnt": True}, top1=82.1),
    "glnet_mini32": Size(
        {
            "depths": (1, 2, 1),
            "dims": (32, 64, 128),
            "mixers": ("glmix", "hybrid", "attention"),
            "slots": 16,
            "patch": 1,
        },
        side=32,
        crop=1.0,
    ),
}

register(GLNet, SIZES)
