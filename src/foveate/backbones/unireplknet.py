"""UniRepLKNet: few large kernels for the view, many small ones for the depth.

Sources: unireplknet (arXiv 2311.15599, section 3.1), unireplknet_v2 (arXiv 2410.08049).
The authors' code is under Apache-2.0.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.backbones.base import ADAMW, Backbone, Size
from foveate.backbones.parts import (
    DropPath,
    GlobalResponseNorm,
    NormHead,
    Stage,
    drop_path_rates,
    initialise,
    require_stages,
    stem_strides,
)
from foveate.backbones.registry import register
from foveate.catalog import implements
from foveate.ops.layer_norm import LayerNorm2d
from foveate.ops.merge import fuse_conv_bn_eval, merge
from foveate.ops.se import SqueezeExcite
from foveate.ops.unireplknet import DilatedReparam

LARGE_FROM = 7


class Ffn(nn.Module):
    """1x1, GELU, global response norm, 1x1, batch norm. Shapes: (B, dim, H, W) to the same."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.act = nn.GELU()
        self.grn = GlobalResponseNorm(hidden)
        self.fc2 = nn.Conv2d(hidden, dim, 1, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.fc2(self.grn(self.act(self.fc1(x)))))


class UniRepLKNetBlock(nn.Module):
    """Depthwise convolution, batch norm, squeeze and excitation, FFN, layer scale, residual.

    Args:
        dim: channels.
        kernel_size: side of the kernel; from 7 on it is trained with dilated branches.
        drop_path: rate of stochastic depth.

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(self, dim: int, kernel_size: int, drop_path: float) -> None:
        super().__init__()
        self.dwconv: nn.Module = (
            DilatedReparam(dim, kernel_size)
            if kernel_size >= LARGE_FROM
            else nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=False)
        )
        self.norm: nn.Module = nn.BatchNorm2d(dim)
        self.se = SqueezeExcite(dim, reduction=4)
        self.mlp = Ffn(dim, 4 * dim)
        self.gamma: nn.Parameter | None = nn.Parameter(torch.full((dim,), 1e-6))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.se(self.norm(self.dwconv(x))))
        if self.gamma is not None:
            y = y * self.gamma.view(1, -1, 1, 1)
        return x + self.drop_path(y)

    @torch.no_grad()
    def merge_branches(self) -> None:
        """Fold the norm into the depthwise kernel, and layer scale, the FFN's norm and the bias of
        its response norm into the last 1x1."""
        if self.gamma is None:
            return
        large = isinstance(self.dwconv, DilatedReparam)
        conv: Any = self.dwconv.lk_origin if large else self.dwconv
        norm: Any = self.norm
        folded = fuse_conv_bn_eval(conv, norm)
        if isinstance(self.dwconv, DilatedReparam):
            self.dwconv.lk_origin = folded
        else:
            self.dwconv = folded
        self.norm = nn.Identity()
        norm = self.mlp.norm
        last = fuse_conv_bn_eval(self.mlp.fc2, norm)
        assert last.bias is not None
        assert self.mlp.grn.bias is not None
        last.bias += last.weight.flatten(1) @ self.mlp.grn.bias
        last.weight *= self.gamma.view(-1, 1, 1, 1)
        last.bias *= self.gamma
        self.mlp.fc2, self.mlp.norm = last, nn.Identity()
        self.mlp.grn.bias, self.gamma = None, None


@implements("unireplknet")
@implements("unireplknet_v2")
class UniRepLKNet(Backbone):
    """Stages of large and small kernels in an order of their own.

    Args:
        num_classes, in_chans: outputs and input channels.
        kernels: side of each block's kernel, stage by stage.
        dims: channels of each stage.
        patch: stride of the stem: 4 as published, 1 or 2 for small images.
        deploy: build the merged form, for checkpoints that hold it.
        drop_rate, drop_path_rate: dropout before the classifier, and the
            largest rate of stochastic depth.
    """

    recipe: ClassVar[dict[str, Any]] = ADAMW
    key_rules = (
        (r"^downsample_layers\.0\.", "stem."),
        (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
        (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"\.se\.down\.", ".se.fc1."),
        (r"\.se\.up\.", ".se.fc2."),
        (r"\.pwconv1\.1\.", ".mlp.fc1."),
        (r"\.act\.1\.gamma$", ".mlp.grn.weight"),
        (r"\.act\.1\.beta$", ".mlp.grn.bias"),
        (r"\.pwconv2\.0\.", ".mlp.fc2."),
        (r"\.pwconv2\.2\.", ".mlp.norm."),
        (r"^norm\.", "head.norm."),
        (r"^head\.(weight|bias|$)", r"head.fc.\1"),
    )

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        kernels: tuple[tuple[int, ...], ...] = ((3, 3), (13, 13), (13,) * 6, (13, 13)),
        dims: tuple[int, ...] = (40, 80, 160, 320),
        patch: int = 4,
        deploy: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        require_stages(kernels=kernels, dims=dims)
        half = dims[0] // 2
        first, second = stem_strides(patch)
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, half, 3, stride=first, padding=1),
            LayerNorm2d(half),
            nn.GELU(),
            nn.Conv2d(half, dims[0], 3, stride=second, padding=1),
            LayerNorm2d(dims[0]),
        )
        rates = drop_path_rates(drop_path_rate, tuple(map(len, kernels)))
        stages = []
        for i, sides in enumerate(kernels):
            down: nn.Module = nn.Identity()
            if i > 0:
                conv = nn.Conv2d(dims[i - 1], dims[i], 3, stride=2, padding=1)
                down = nn.Sequential(conv, LayerNorm2d(dims[i]))
            blocks: list[nn.Module] = [
                UniRepLKNetBlock(dims[i], side, rate)
                for side, rate in zip(sides, rates[i], strict=True)
            ]
            stages.append(Stage(down, blocks))
        self.stages = nn.Sequential(*stages)
        self.head = NormHead(dims[-1], num_classes, drop_rate)
        initialise(self)
        self._finish(num_classes, in_chans, list(dims), [patch * 2**i for i in range(len(dims))])
        if deploy:
            merge(self)


def _config(first: int, middle: tuple[int, ...], others: int = 2) -> dict[str, Any]:
    kernels = ((3,) * others, (13,) * others, middle, (13,) * others)
    return {"dims": tuple(first * 2**i for i in range(4)), "kernels": kernels}


_DEEP = (13, 3, 3) * 9
_NAMED = {
    "a": _config(40, (13,) * 6),
    "f": _config(48, (13,) * 6),
    "p": _config(64, (13,) * 6),
    "n": _config(80, (13,) * 8),
    "t": _config(80, (13, 3) * 9, 3),
    "s": _config(96, _DEEP, 3),
    "b": _config(128, _DEEP, 3),
    "l": _config(192, _DEEP, 3),
    "xl": _config(256, _DEEP, 3),
}
_TOP1 = {"a": 77.03, "f": 78.58, "p": 80.23, "n": 81.64, "t": 83.21, "s": 83.91}

SIZES = {
    **{
        f"unireplknet_{name}": Size(config, top1=_TOP1.get(name)) for name, config in _NAMED.items()
    },
    "unireplknet_mini32": Size(
        {"kernels": ((3,), (7, 7), (5, 5)), "dims": (32, 64, 128), "patch": 1},
        side=32,
        crop=1.0,
    ),
}

register(UniRepLKNet, SIZES)
