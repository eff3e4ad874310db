"""Where a grid should begin and end, from the values that will be rounded to it.

Source: quant_whitepaper_qualcomm (arXiv 2106.08295, section 3.1).
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from foveate.surgery.integers import fake_quantise
from foveate.surgery.quant_whitepaper_qualcomm.quantiser import grid_over

Setter = Literal["minmax", "mse", "percentile", "cross_entropy", "norm"]
OF_WEIGHTS = ("minmax", "mse", "percentile")
OF_ACTIVATIONS = (*OF_WEIGHTS, "norm")
OF_LOGITS = (*OF_WEIGHTS, "cross_entropy")
DEVIATIONS = 6
SHARES, ROUNDS = 100, 2
PER_BATCH = 2**13

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of values (channels, n) and what they were rounded to, (channels,)."""


def set_range(
    x: Tensor, bits: int, symmetric: bool, how: Setter, percentile: float = 99.99
) -> tuple[Tensor, Tensor]:
    """The range for values, which always holds zero.

    Args:
        x: (channels, n), a range for each row; for "cross_entropy" logits (images, classes),
            and one range for all.
        bits, symmetric: of the grid.
        how: "minmax" leaves nothing out; "mse" rounds with the least squared error;
            "percentile" leaves out what is beyond a share of the values at each end;
            "cross_entropy" keeps the softmax of logits nearest to what it was.
        percentile: of values that lie below the upper end, and above the lower one.

    Returns: low and high, (channels,) each.
    """
    x = x.detach().float()
    if how == "percentile":
        return tuple(_quantile(x, p / 100) for p in (100 - percentile, percentile))  # pyright: ignore
    if how == "cross_entropy":
        rows = x.shape

        def loss(x: Tensor, y: Tensor) -> Tensor:
            wanted, got = x.view(rows).softmax(1), y.view(rows).log_softmax(1)
            return -(wanted * got).sum(1).mean().view(1)

        return _search(x.reshape(1, -1), bits, symmetric, loss)
    low, high = _extremes(x)
    if how == "minmax":
        return low, high
    return _search(x, bits, symmetric, lambda x, y: (x - y).square().mean(1))


def norm_range(mean: Tensor, deviation: Tensor, top: float | None) -> tuple[Tensor, Tensor]:
    """The range of a layer's outputs as its batch norm tells it, without images: six deviations
    to each side of the mean.

    Args:
        mean, deviation: of each output, (outputs,).
        top: where a ReLU cuts off, or None if there is none.
    """
    low = (mean - DEVIATIONS * deviation).amin().clamp(max=0)
    high = (mean + DEVIATIONS * deviation).amax().clamp(min=0)
    return (low, high) if top is None else (0 * low, high.clamp(max=top))


def _extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.amin(1).clamp(max=0), x.amax(1).clamp(min=0)


def _quantile(x: Tensor, share: float) -> Tensor:
    """Between sorted values, linearly, as torch.quantile does for fewer of them."""
    place = share * (x.shape[1] - 1)
    below, above = int(place), min(int(place) + 1, x.shape[1] - 1)
    ordered = x.sort(1).values
    found = ordered[:, below].lerp(ordered[:, above], place - below)
    return found.clamp(max=0) if share < 0.5 else found.clamp(min=0)


def _search(x: Tensor, bits: int, symmetric: bool, loss: Loss) -> tuple[Tensor, Tensor]:
    """The range of least loss: both ends drawn in together, and then each alone, in turns."""
    low, high = _extremes(x)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    shares = torch.linspace(1, 1 / SHARES, SHARES).tolist()

    def least(candidates: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        best = candidates[0]
        fewest = torch.full_like(best[0], torch.inf)
        for ends in candidates:
            cost = loss(x, fake_quantise(x, *grid_over(*ends, bits, symmetric)))
            better = cost < fewest
            fewest = torch.where(better, cost, fewest)
            best = tuple(torch.where(better, *pair) for pair in zip(ends, best, strict=True))
        return best  # pyright: ignore[reportReturnType]

    found = least([(low * share, high * share) for share in shares])
    if symmetric:
        return found
    for _ in range(ROUNDS):
        found = least([found, *((found[0], high * share) for share in shares)])
        found = least([found, *((low * share, found[1]) for share in shares)])
    return found


class Sample:
    """Values that an activation takes: its extremes, and some of each batch.

    Args:
        seed: of the choice.
        rows: keep whole rows, as the softmax of logits needs them.
    """

    def __init__(self, seed: int = 0, rows: bool = False) -> None:
        self.rows, self._generator = rows, torch.Generator().manual_seed(seed)
        self._kept: list[Tensor] = []

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Look at a batch of the activation."""
        if self.rows:
            self._kept.append(x.float().flatten(0, -2).cpu())
            return
        values = x.flatten()
        if len(values) > PER_BATCH:
            chosen = torch.randint(len(values), (PER_BATCH,), generator=self._generator)
            ends = torch.stack(torch.aminmax(values))
            values = torch.cat((values[chosen.to(values.device)], ends))
        self._kept.append(values.float().cpu())

    def values(self) -> Tensor:
        """What was kept: (1, n), or logits (images, classes)."""
        return torch.cat(self._kept) if self.rows else torch.cat(self._kept)[None]
