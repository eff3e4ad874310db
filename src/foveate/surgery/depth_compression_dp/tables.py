"""What the choice is made from: the time of every piece, and the importance of every run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.measure import timing
from foveate.surgery.chains import NORMS
from foveate.surgery.depth_compression_dp.rows import Row
from foveate.surgery.depth_compression_dp.solve import fastest_cuts

Latency = Callable[[nn.Module, Tensor], float]
"""Seconds that a layer takes for an input."""

Times = dict[tuple[int, int], float]


def eager(layer: nn.Module, x: Tensor) -> float:
    """Median seconds of a layer as PyTorch runs it, over a twentieth of a second."""
    with torch.inference_mode():
        return timing(lambda: layer(x), seconds=0.05).median


def piece_times(row: Row, longest: int, batch: int, latency: Latency) -> Times:
    """Seconds of every piece of a row, merged to one convolution and followed by a ReLU.

    Args:
        longest: layers of a piece, at most.
        batch: images of the input.
        latency: measures; layers of one size and input are measured once.
    """
    known: dict[str, float] = {}
    times = {}
    for i in range(len(row)):
        for j in range(i + 1, min(i + longest, len(row)) + 1):
            if not row.may_merge(i, j):
                continue
            layer = row.merged(i, j)
            sides = row.links[i].takes[2:]
            size = f"{layer} {sides}"
            if size not in known:
                x = torch.rand(batch, layer.in_channels, *sides).to(layer.weight)
                known[size] = latency(nn.Sequential(layer, nn.ReLU()), x)
            times[i, j] = known[size]
    return times


def worthwhile(row: Row, times: Times, longest: int) -> dict[tuple[int, int], tuple[int, ...]]:
    """Runs in which the fastest cuts merge something, with these cuts.

    Where a cut is at an activation, that could stay, and the run would be as fast: such runs
    are left out.
    """
    found = {}
    for (i, j), (_, cuts) in fastest_cuts(times, len(row)).items():
        at_acts = any(row.links[k - 1].act for k in cuts[1:-1])
        if len(cuts) <= j - i <= longest and not at_acts:
            found[i, j] = cuts
    return found


@dataclass(frozen=True)
class Agreement:
    """How little a model's outputs differ from another's: minus the mean KL divergence of classes.

    Attributes:
        images: batches.
        expected: the other's logits of each.
    """

    images: list[Tensor]
    expected: list[Tensor]

    @classmethod
    @torch.no_grad()
    def to(cls, model: nn.Module, images: list[Tensor]) -> "Agreement":
        """With a model, as it is."""
        model.eval()
        return cls(images, [model(batch) for batch in images])

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> float:
        model.eval()
        total, count = 0.0, 0
        for batch, expected in zip(self.images, self.expected, strict=True):
            given, wanted = (F.log_softmax(v.float(), 1) for v in (model(batch), expected))
            total += float(F.kl_div(given, wanted, reduction="sum", log_target=True))
            count += len(batch)
        return -total / count


@torch.no_grad()
def renew_norms(model: nn.Module, images: list[Tensor]) -> None:
    """Have batch norms take their statistics from images, all of which count alike."""
    was_training = model.training
    model.eval()
    found: list[Any] = [m for m in model.modules() if type(m) in NORMS]
    norms = [norm for norm in found if norm.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for batch in images:
        model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(was_training)
