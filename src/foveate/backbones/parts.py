"""Parts that families share: norm, drop path, channel mixer, block, stage, head."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.errors import FoveateError
from foveate.ops.conv_norm import ConvNorm


class DropPath(nn.Module):
    """Stochastic depth: leave a residual branch out for some images (arXiv 1603.09382).

    Args:
        rate: share of images for which it is left out while training.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        mask = x.new_empty((len(x),) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * mask / keep


class GlobalResponseNorm(nn.Module):
    """Let channels compete by their norm over the map (arXiv 2301.00808, section 4).

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))
        self.bias: nn.Parameter | None = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        norm = x.norm(dim=(2, 3), keepdim=True)
        share = norm / (norm.mean(dim=1, keepdim=True) + self.eps)
        y = x + self.weight.view(1, -1, 1, 1) * x * share
        return y if self.bias is None else y + self.bias.view(1, -1, 1, 1)


class ConvMlp(nn.Module):
    """Channel mixer: two 1x1 convolutions with GELU between, and GRN if asked.

    Args:
        dim, hidden: channels outside and inside.
        grn: compete by global response norm after GELU.
        depthwise: look at 3x3 neighbours before GELU, as PVT v2 does (arXiv 2106.13797).

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(self, dim: int, hidden: int, grn: bool = False, depthwise: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.dwconv: nn.Module = nn.Identity()
        if depthwise:
            self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act = nn.GELU()
        self.grn = GlobalResponseNorm(hidden) if grn else nn.Identity()
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.grn(self.act(self.dwconv(self.fc1(x)))))


class ConvNormMlp(nn.Module):
    """Channel mixer: two 1x1 convolutions with batch norm, GELU between.

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = ConvNorm(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = ConvNorm(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Token mixer, norm, channel mixer, layer scale, drop path, residual.

    Args:
        dim: channels.
        mixer: name that the token mixer goes by in the state dict, and the module.
        norm: the norm between the mixers.
        mlp: the channel mixer.
        scale: initial layer scale (arXiv 2103.17239), or None for none.
        drop_path: rate of stochastic depth.

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(
        self,
        dim: int,
        mixer: tuple[str, nn.Module],
        norm: nn.Module,
        mlp: nn.Module,
        scale: float | None,
        drop_path: float,
    ) -> None:
        super().__init__()
        self._mixer = mixer[0]
        self.add_module(*mixer)
        self.norm = norm
        self.mlp = mlp
        self.gamma = nn.Parameter(torch.full((dim,), scale)) if scale is not None else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self._modules[self._mixer](x)))  # pyright: ignore[reportOptionalCall]
        return x + self.drop_path(_scaled(y, self.gamma))


class MetaBlock(nn.Module):
    """Two residual halves: norm and token mixer, norm and channel mixer (arXiv 2111.11418).

    Args:
        dim: channels.
        mixer: name that the token mixer goes by in the state dict, and the module.
        norm: builds both norms from the channels.
        mlp: the channel mixer.
        scale: initial layer scale of both halves, or None for none.
        drop_path: rate of stochastic depth.

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(
        self,
        dim: int,
        mixer: tuple[str, nn.Module],
        norm: Callable[[int], nn.Module],
        mlp: nn.Module,
        scale: float | None,
        drop_path: float,
    ) -> None:
        super().__init__()
        self._mixer = mixer[0]
        self.norm1 = norm(dim)
        self.add_module(*mixer)
        self.norm2 = norm(dim)
        self.mlp = mlp
        self.gamma1 = self.gamma2 = None
        if scale is not None:
            self.gamma1 = nn.Parameter(torch.full((dim,), scale))
            self.gamma2 = nn.Parameter(torch.full((dim,), scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self._modules[self._mixer](self.norm1(x))  # pyright: ignore[reportOptionalCall]
        x = x + self.drop_path(_scaled(mixed, self.gamma1))
        return x + self.drop_path(_scaled(self.mlp(self.norm2(x)), self.gamma2))


def _scaled(x: Tensor, gamma: Tensor | None) -> Tensor:
    return x if gamma is None else x * gamma.view(1, -1, 1, 1)


class Stage(nn.Module):
    """An optional halving of the map, blocks, and an optional norm after them.

    Args:
        downsample: what comes first; an identity in the first stage.
        blocks: what follows.
        norm: what comes last.
    """

    def __init__(
        self, downsample: nn.Module, blocks: list[nn.Module], norm: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.downsample(x))
        return x if self.norm is None else self.norm(x)


class PositionEmbedding(nn.Module):
    """Learnt vectors of places, added to a map and scaled to its size.

    Args:
        side: of the maps that they were learnt for.
        dim: channels.
        mode: how they are scaled, bilinear or bicubic.
        flat: kept as rows of tokens, as plain transformers have them.
        prefix: tokens before those of the map that have a vector too, if flat.

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(
        self, side: int, dim: int, mode: str = "bilinear", flat: bool = False, prefix: int = 0
    ) -> None:
        super().__init__()
        self.side, self.mode, self.prefix = side, mode, prefix
        shape = (1, prefix + side * side, dim) if flat else (1, side, side, dim)
        self.embedding = nn.Parameter(torch.empty(shape))
        nn.init.trunc_normal_(self.embedding, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        places = self.embedding[:, self.prefix :] if self.prefix else self.embedding
        places = places.view(1, self.side, self.side, -1).permute(0, 3, 1, 2)
        if places.shape[2:] != x.shape[2:]:
            places = F.interpolate(places, x.shape[2:], mode=self.mode)
        return x + places


class ClassTokenStage(Stage):
    """A stage that sets a learnt token before those of its map.

    Within it the map is a row of tokens, one pixel wide, on which norms, 1x1
    convolutions and attention work as they do on maps.

    Args:
        downsample, blocks, norm: as of a `Stage`.
        dim: channels.
        positions: learnt vectors of places, one of them the token's.

    Shapes: (B, C, H, W) to (B, dim, 1 + h w, 1), the learnt token first.
    """

    def __init__(
        self,
        downsample: nn.Module,
        blocks: list[nn.Module],
        norm: nn.Module,
        dim: int,
        positions: PositionEmbedding | None = None,
    ) -> None:
        super().__init__(downsample, blocks, norm)
        self.class_token = nn.Parameter(torch.empty(dim))
        self.positions = positions
        nn.init.trunc_normal_(self.class_token, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        token = self.class_token
        if self.positions is not None:
            x = self.positions(x)
            token = token + self.positions.embedding[0, 0]
        token = token.expand(x.shape[0], 1, -1).mT  # len(x) would fix the batch of an export
        row = torch.cat((token, x.flatten(2)), dim=2).unsqueeze(-1)
        row = self.blocks(row)
        return row if self.norm is None else self.norm(row)


class NormHead(nn.Module):
    """Average pool, norm, dropout, linear. Shapes: (B, dim, H, W) to (B, num_classes).

    Args:
        dim, num_classes, drop: width, outputs, rate of dropout.
        norm: of vectors; by default a layer norm.
    """

    def __init__(
        self, dim: int, num_classes: int, drop: float = 0.0, norm: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.norm = norm or nn.LayerNorm(dim, eps=1e-6)
        self.drop = nn.Dropout(drop)
        self.fc = nn.Linear(dim, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.drop(self.norm(x.mean((2, 3))))
        return x if pre_logits else self.fc(x)


class PoolHead(nn.Module):
    """Average pool, dropout, linear. Shapes: (B, dim, H, W) to (B, num_classes)."""

    def __init__(self, dim: int, num_classes: int, drop: float = 0.0) -> None:
        super().__init__()
        self.drop = nn.Dropout(drop)
        self.fc = nn.Linear(dim, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.drop(x.mean((2, 3)))
        return x if pre_logits else self.fc(x)


class TwinHead(nn.Module):
    """Two classifiers behind batch norms, one for labels and one for a teacher; their mean.

    `merge_branches` makes one linear layer of them. Shapes: (B, dim, H, W) to (B, num_classes).

    Attributes:
        second: how a backbone makes the second classifier anew.
    """

    def __init__(self, dim: int, num_classes: int, drop: float) -> None:
        super().__init__()
        self.drop = nn.Dropout(drop)
        self.norm: nn.Module = nn.BatchNorm1d(dim)
        self.fc = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        self.norm_dist: nn.Module | None = nn.BatchNorm1d(dim)
        self.fc_dist = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        self.second = {"head.fc_dist": partial(nn.Linear, dim)}

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.mean((2, 3))
        if pre_logits or isinstance(self.fc, nn.Identity):
            return x
        out = self.fc(self.drop(self.norm(x)))
        if self.norm_dist is None:
            return out
        return (out + self.fc_dist(self.drop(self.norm_dist(x)))) / 2

    @torch.no_grad()
    def merge_branches(self) -> None:
        """Fold the norms, and average the two classifiers."""
        if self.norm_dist is None or isinstance(self.fc, nn.Identity):
            return
        pairs: Any = ((self.norm, self.fc), (self.norm_dist, self.fc_dist))
        weights, biases = [], []
        for norm, linear in pairs:
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            weights.append(linear.weight * scale)
            biases.append(linear.bias + linear.weight @ (norm.bias - norm.running_mean * scale))
        self.fc.weight.copy_(torch.stack(weights).mean(0))
        self.fc.bias.copy_(torch.stack(biases).mean(0))
        self.norm, self.norm_dist, self.fc_dist = nn.Identity(), None, nn.Identity()


class TokenHead(nn.Module):
    """The learnt token, dropout, linear. Shapes: (B, dim, 1 + N, 1) to (B, num_classes)."""

    def __init__(self, dim: int, num_classes: int, drop: float = 0.0) -> None:
        super().__init__()
        self.drop = nn.Dropout(drop)
        self.fc = nn.Linear(dim, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.drop(x[:, :, 0, 0])
        return x if pre_logits else self.fc(x)


def require_stages(**settings: tuple[Any, ...]) -> None:
    """Raises: FoveateError that names the settings, if they are not of as many stages."""
    if len({len(values) for values in settings.values()}) > 1:
        listed = ", ".join(f"{name} {values}" for name, values in settings.items())
        raise FoveateError(f"{listed} have not as many stages: match them")


def drop_path_rates(most: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Rates that grow evenly from 0 at the first block to `most` at the last, stage by stage."""
    total = sum(depths)
    rates = iter([most * i / max(total - 1, 1) for i in range(total)])
    return [[next(rates) for _ in range(depth)] for depth in depths]


def initialise(module: nn.Module, by_fan: bool = False) -> None:
    """Truncated normal of deviation 0.02 for filters and matrices, zeros for their biases.

    Args:
        module: filled in place.
        by_fan: kernels that see space get He's deviation over their outputs instead.
    """
    for part in module.modules():
        if not isinstance(part, nn.Conv2d | nn.Linear):
            continue
        if by_fan and isinstance(part, nn.Conv2d) and part.kernel_size != (1, 1):
            fan = math.prod(part.kernel_size) * part.out_channels // part.groups
            nn.init.normal_(part.weight, std=math.sqrt(2 / fan))
        else:
            nn.init.trunc_normal_(part.weight, std=0.02)
        if part.bias is not None:
            nn.init.zeros_(part.bias)


def stem_strides(patch: int, count: int = 2) -> tuple[int, ...]:
    """Strides of a stem's `count` convolutions that together make `patch`, the large ones first.

    Raises: FoveateError unless it is a power of 2 that they can make.
    """
    _require_patch(patch, [2**i for i in range(count + 1)])
    return tuple(2 if patch >= 2 ** (i + 1) else 1 for i in range(count))


def overlapping_patches(in_chans: int, dim: int, patch: int) -> nn.Conv2d:
    """A convolution of stride `patch` whose windows overlap: 7x7 for patches of 4 pixels.

    Raises: FoveateError unless the patch is 1, 2 or 4.
    """
    _require_patch(patch, [1, 2, 4])
    kernel, pad = {1: (3, 1), 2: (5, 2), 4: (7, 2)}[patch]
    return nn.Conv2d(in_chans, dim, kernel, stride=patch, padding=pad)


def _require_patch(patch: int, able: list[int]) -> None:
    if patch not in able:
        raise FoveateError(f"patch is {patch}: give one of {', '.join(map(str, able))}")


def patch_stem(
    in_chans: int, dim: int, patch: int, norm: Callable[[int], nn.Module]
) -> nn.Sequential:
    """Patches of `patch` pixels a side to vectors, then a norm; single pixels are seen in 3x3."""
    if patch == 1:
        return nn.Sequential(nn.Conv2d(in_chans, dim, 3, padding=1), norm(dim))
    return nn.Sequential(nn.Conv2d(in_chans, dim, patch, stride=patch), norm(dim))
