"""As many multiply-adds as one likes to spend: what the answers need least for its cost goes.

How much answers need a channel is the second-order term of how far they move when it falls
silent: half its Fisher information (Theis et al. 2018, arXiv 1801.05787, section 2.1), here with
the model's own answers for labels, so that images are enough.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.surgery.chains import chains
from foveate.surgery.channels.groups import Channels, Group
from foveate.surgery.channels.remove import Remove, evaluating, two
from foveate.surgery.edit import Covered, Images, Plan
from foveate.surgery.layers import matches


@dataclass(frozen=True, kw_only=True)
class Shrink(Remove):
    """Remove channels from all over a network, those first that answers need least for their cost.

    So layers lose as much as they can spare: the shares differ from group to group.

    Args:
        macs: share of the multiply-adds of convolutions and linear layers that stays at most.
        least: share of every group's channels that stays in any case.
        multiple: as many channels stay as are a multiple of this, where there are enough.
        only, skip: patterns of groups' names.
        seed: of the answers that are drawn for labels.

    Raises: FoveateError that names the field, or if so few multiply-adds cannot be reached.
    """

    looks_at = "images"

    macs: float = 0.5
    least: float = 0.1
    multiple: int = 1
    only: tuple[str, ...] = ("*",)
    skip: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("macs", "least"):
            if not 0 < getattr(self, name) < 1:
                raise FoveateError(
                    f"{name} is {getattr(self, name)}: give more than 0, less than 1"
                )
        if self.multiple < 1:
            raise FoveateError(f"multiple is {self.multiple}: give 1 or more")

    def decide(self, model: nn.Module, data: Images) -> tuple[Plan, list[Covered]]:
        images = list(self.batches(data))
        with evaluating(model):
            channels = Channels(model, two(images[0]), self.whole)
        wanted = [g for g in channels.groups if matches(g.name, self.only)]
        wanted = [g for g in wanted if not matches(g.name, self.skip)]
        scores = needs(model, wanted, images, self.seed)
        gone = self._fewest(channels, [g for g in wanted if g.name in scores], scores)
        return self.decide_by(model, images[0], lambda groups: gone)

    def _fewest(
        self, channels: Channels, groups: list[Group], scores: dict[str, np.ndarray]
    ) -> dict[str, list[int]]:
        """The first channels, in the order of their need for their cost, that are enough."""
        order: list[tuple[float, str, int]] = []
        for group in groups:
            ascending = np.argsort(scores[group.name], kind="stable")
            for index in ascending[: len(group) - self._floor(group)].tolist():
                rate = scores[group.name][index] / max(group.macs, 1.0)
                order.append((float(rate), group.name, index))
        order.sort()
        wanted = self.macs * channels.macs(channels.stays({}))

        def fits(first: int) -> bool:
            gone = self._rounded(groups, order[:first])
            return channels.macs(channels.stays(gone)) <= wanted

        if not fits(len(order)):
            gone = self._rounded(groups, order)
            left = channels.macs(channels.stays(gone)) / channels.macs(channels.stays({}))
            raise FoveateError(
                f"macs is {self.macs}, but {left:.2f} stay when all goes that may: give more, "
                "a smaller least, or fewer names in skip"
            )
        low, high = 0, len(order)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(middle) else (middle + 1, high)
        return self._rounded(groups, order[:low])

    def _floor(self, group: Group) -> int:
        """How many channels of a group stay in any case."""
        return max(1, min(self.multiple, len(group)), round(self.least * len(group)))

    def _rounded(
        self, groups: list[Group], order: list[tuple[float, str, int]]
    ) -> dict[str, list[int]]:
        """Channels that go, without the last few of a group that would leave no multiple."""
        found: dict[str, list[int]] = defaultdict(list)
        for _, name, index in order:
            found[name].append(index)
        for group in groups:
            rest = -(len(group) - len(found[group.name])) % self.multiple
            kept = max(0, len(found[group.name]) - rest)
            found[group.name] = sorted(found[group.name][:kept])
        return {name: indices for name, indices in found.items() if indices}


def needs(
    model: nn.Module, groups: list[Group], images: list[Tensor], seed: int = 0
) -> dict[str, np.ndarray]:
    """How far a model's answers move, in nats and to the second order, without each channel alone.

    A channel falls silent behind the batch norm of the layer that makes it, where there is one.

    Args:
        model: gives logits (B, K); runs in evaluation mode, and its mode is restored.
        groups: as `groups` gives them.
        images: batches; taken one by one where a layer's rows are no images (windows, say).
        seed: of the answers that are drawn for labels, as likely as the model thinks them.

    Returns: float64 (channels,), by the group's name; none for groups that no layer makes.
    Raises: FoveateError if the answers are no logits.
    """
    chance = torch.Generator().manual_seed(seed)
    totals: dict[str, Any] = defaultdict(float)
    seen = 0
    with evaluating(model), _gated(model, images[0]) as gates:
        if not _by_image(model, two(images[0]), gates):
            images = [one for batch in images for one in batch.split(1)]
        for batch in images:
            gates.clear()
            logits = model(batch)
            if not isinstance(logits, Tensor) or logits.ndim != 2:
                raise FoveateError(
                    "Shrink asks what answers need, and the model gives no logits (B, K): name "
                    "the channels with Remove, or choose them with Narrow"
                )
            told = logits.float().log_softmax(1)
            drawn = torch.multinomial(told.detach().exp().cpu(), 1, generator=chance)
            loss = told.gather(1, drawn.to(told.device)).sum()
            names = [name for name, own in gates.items() for _ in own]
            grads = torch.autograd.grad(loss, [gate for own in gates.values() for gate in own])
            slopes: dict[str, Tensor] = {}
            for name, grad in zip(names, grads, strict=True):
                own = grad.double().reshape(len(batch), -1, grad[0].numel()).sum(1).cpu()
                slopes[name] = slopes[name] + own if name in slopes else own
            for group in groups:
                if (own := _slope(group, slopes)) is not None:
                    totals[group.name] += own.square().sum(0).numpy()
            seen += len(batch)
    return {name: total / (2 * seen) for name, total in totals.items()}


def _by_image(model: nn.Module, x: Tensor, gates: dict[str, list[Tensor]]) -> bool:
    """Whether all gates know the images apart: those behind Swin's windows, say, do not."""
    with torch.no_grad():
        model(x)
    return all(len(gate) == len(x) for own in gates.values() for gate in own)


def _slope(group: Group, slopes: dict[str, Tensor]) -> Tensor | None:
    """The slope along each channel over all layers that make it, (B, channels), or None."""
    found = None
    for name, axis in group.weights:
        layer = name.rpartition(".")[0]
        if axis == 0 and name.endswith("weight") and layer in slopes:
            parts = [slopes[layer][:, slices[name, 0]].sum(1) for slices in group.channels]
            own = torch.stack(parts, 1)
            found = own if found is None else found + own
    return found


@contextmanager
def _gated(model: nn.Module, x: Tensor) -> Iterator[dict[str, list[Tensor]]]:
    """While this lasts, layers' outputs pass gates of one for each row and channel.

    Gives the gates of the last forward pass, by the layer's name: one each time it is called.
    """
    gates: dict[str, list[Tensor]] = defaultdict(list)

    def gate(name: str, module: nn.Module, inputs: Any, y: Tensor) -> Tensor:
        shape = [1] * y.ndim
        axis = -1 if isinstance(module, nn.Linear) else 1
        shape[0], shape[axis] = y.shape[0], y.shape[axis]
        gates[name].append(torch.ones(shape, dtype=y.dtype, device=y.device, requires_grad=True))
        return y * gates[name][-1]

    handles = [
        model.get_submodule(chain.norm or name).register_forward_hook(partial(gate, name))
        for name, chain in chains(model, x).items()
    ]
    try:
        with torch.enable_grad():
            yield gates
    finally:
        for handle in handles:
            handle.remove()
