"""Terminator: wide blocks of many branches with drawn kernels, and no residual connections.

Source: hyperzzw_terminator (arXiv 2401.17948, sections 3 and 4; the authors' code bears no licence
and was read for the mechanism only). They train with a slow neural loss, which is
`foveate.train.hyperzzw_terminator.SlowNeuralLoss`, and an optimiser of signs that is not the
paper's subject; the recipe here takes AdamW without decay in its place.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.backbones.base import ADAMW, Backbone, Size
from foveate.backbones.parts import PoolHead, require_stages
from foveate.backbones.registry import register
from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.ops.hyperzzw_terminator import (
    GroupStandard,
    HyperInteraction,
    LocalHyperZZW,
    RecursiveGatedUnit,
    global_product,
    mixer,
    sequence_product,
    standardised,
)
from foveate.ops.slow_network import OMEGA, SlowNetwork, hyper_kernel

LOCAL = (3, 9, 5, 7)
"""Sides of the local kernels."""
BRANCHES = 10


class SlowFastBlock(nn.Module):
    """Slow-fast neural encoding: ten branches side by side, squeezed to the channels that go on.

    Takes and gives maps with the outputs of earlier blocks behind them, as `earlier` and `kept`
    say, since they are seen again further down.

    Args:
        dim, factor: channels of the input; how many times as many come out.
        earlier: channels of the earlier outputs that come with the input.
        used: which of them are seen here, by their order in the input.
        kept: which go on: 0 for the input itself, or 1 and more for them.
        layers: of the global slow network.
        size, omega, sequence, dropout: as for `Terminator`.

    Shapes: (B, dim + earlier, H, W) to (B, factor * dim + kept, H, W).
    """

    def __init__(
        self,
        dim: int,
        factor: int,
        earlier: tuple[int, ...],
        used: tuple[int, ...],
        kept: tuple[int, ...],
        layers: int,
        size: int,
        omega: float,
        sequence: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.widths, self.used, self.kept = (dim, *earlier), used, kept
        self.sequence = sequence
        grid = (size * size,) if sequence else (size, size)
        map_size = (1, size * size) if sequence else (size, size)
        self.slow = SlowNetwork(grid, dim, 64, layers, omega)
        self.local = nn.ModuleList(
            LocalHyperZZW(dim, (side,) if sequence else (side, side), omega=omega) for side in LOCAL
        )
        self.channel_mixer = mixer(dim, dim)
        self.fast_unit = RecursiveGatedUnit(dim, map_size)
        self.slow_unit = RecursiveGatedUnit(dim, map_size)
        self.channels = HyperInteraction(dim, 32, omega=omega)
        self.interact = HyperInteraction(dim, 16, SlowNetwork(grid, 1, 64, 2, omega), omega)
        self.bottleneck = mixer((BRANCHES + len(used)) * dim, factor * dim)
        self.standard = GroupStandard(factor * dim)
        self.bias = nn.Parameter(torch.zeros(1))
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        if self.sequence:
            x = x.flatten(2)[:, :, None]
        inputs = x.split(self.widths, dim=1)
        y = self.dropout(nn.functional.gelu(self.standard(self._encode(*inputs))) + self.bias)
        y = torch.cat((y, *(inputs[i] for i in self.kept)), 1) if self.kept else y
        return y.flatten(2).unflatten(2, size) if self.sequence else y

    def _encode(self, x: Tensor, *earlier: Tensor) -> Tensor:
        weights = x * hyper_kernel(self.slow, x)
        fast = standardised(self.slow_unit(weights) + self.fast_unit(x))
        mixed = standardised(self.channel_mixer(x))
        weighed = standardised(self.channels(x, by=x))
        fields = (fast, mixed, weighed)
        if self.sequence:
            out, out_mixed, out_weighed = (sequence_product(weights, field) for field in fields)
        else:
            out, out_mixed, out_weighed = global_product(weights, torch.cat(fields, 3)).chunk(3, 3)
        seen = ((x, weighed), (weighed, x), (mixed, x), (x, mixed))
        near = [local(*pair) for local, pair in zip(self.local, seen, strict=True)]
        before = [earlier[i].repeat(1, x.shape[1] // earlier[i].shape[1], 1, 1) for i in self.used]
        branches = (
            *(out, near[1], *before[:1], fast, out_mixed, near[0], torch.sigmoid(out) * out),
            *(near[2], out_weighed, near[3], *before[1:], self.interact(x, by=out)),
        )
        return self.bottleneck(torch.cat(branches, 1))


@implements("hyperzzw_terminator")
class Terminator(Backbone):
    """Blocks at the images' own size, each of whose outputs depends on every pixel.

    Args:
        num_classes, in_chans: outputs and input channels.
        factors: by how much each block multiplies the channels.
        earlier: outputs of which earlier blocks each block sees besides its input.
        layers: of each block's global slow network.
        size: side of the images that the kernels' learnt places are made for; at others, kernels
            are drawn at those coordinates and places are interpolated.
        omega: scale of the slow networks' frequencies.
        sequence: see the pixels as one line, row after row.
        dropout: share of channels that a block leaves out, but for the first.
        drop_rate: dropout before the classifier.
    """

    recipe: ClassVar[dict[str, Any]] = {
        **ADAMW,
        "weight_decay": 0.0,
        "batch_size": 64,
        "label_smoothing": 0.09,
    }

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        factors: tuple[int, ...] = (4, 3, 2, 2, 2),
        earlier: tuple[tuple[int, ...], ...] = ((), (), (0,), (1,), (2, 1)),
        layers: tuple[int, ...] = (3, 2, 2, 2, 2),
        size: int = 32,
        omega: float = OMEGA,
        sequence: bool = False,
        dropout: float = 0.0,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        require_stages(factors=factors, earlier=earlier, layers=layers)
        self.factors = factors
        blocks: list[nn.Module] = []
        dims = [in_chans]
        behind: list[int] = []
        for i, factor in enumerate(factors):
            later = {j for seen in earlier[i + 1 :] for j in seen}
            own = [i - 1] if i > 0 else []
            kept = [j for j in (*own, *behind) if j in later]
            blocks.append(
                SlowFastBlock(
                    dims[i],
                    factor,
                    earlier=tuple(dims[j + 1] for j in behind),
                    used=tuple(behind.index(j) for j in earlier[i]),
                    kept=tuple((*own, *behind).index(j) for j in kept),
                    layers=layers[i],
                    size=size,
                    omega=omega,
                    sequence=sequence,
                    dropout=dropout if i > 0 else 0.0,
                )
            )
            dims.append(factor * dims[i])
            behind = kept
        self.stem = blocks[0]
        self.stages = nn.Sequential(*blocks[1:])
        self.head = PoolHead(dims[-1], num_classes, drop_rate)
        if isinstance(self.head.fc, nn.Linear):
            nn.init.kaiming_normal_(self.head.fc.weight)
            nn.init.zeros_(self.head.fc.bias)
        self._finish(num_classes, in_chans, dims[2:], [1] * (len(factors) - 1))

    def hyper_kernels(self) -> list[Tensor]:
        """The global kernels of all blocks, (1, dim, *size) each, at the size they are made for."""
        slow = [self.stem.slow, *(block.slow for block in self.stages)]
        return [net(net.size) for net in slow if isinstance(net, SlowNetwork)]

    def forward_intermediates(self, x: Tensor, *arguments: Any, **options: Any) -> Any:
        """The maps of the stages, without what goes on behind them; as in the base class."""
        found = super().forward_intermediates(x, *arguments, **options)
        stopped = options.get("stop_early", arguments[2] if len(arguments) > 2 else False)
        return (found[1][-1], found[1]) if stopped and isinstance(found, tuple) else found

    def _as_map(self, index: int, x: Tensor, images: Tensor) -> Tensor:
        return x[:, : self.feature_info[index]["num_chs"]]

    def _check_size(self, x: Tensor) -> None:
        if min(x.shape[-2:]) < max(LOCAL):
            raise FoveateError(
                f"images of {tuple(x.shape[-2:])} pixels are too small for Terminator, whose local "
                f"kernels have {max(LOCAL)} pixels a side: give at least as many"
            )


_MINI: dict[str, Any] = {
    "factors": (4, 2, 2),
    "earlier": ((), (), (0,)),
    "layers": (2, 2, 2),
}

SIZES = {
    "terminator_sfne5": Size({"dropout": 0.05}, side=32, crop=1.0),
    "terminator_mini32": Size(_MINI, side=32, crop=1.0),
}

register(Terminator, SIZES)
