"""What each edit of each part costs alone, which says where a composition should begin.

A hundred images tell few points of accuracy apart, so parts are ranked by how far the model's
answers move, the Kullback-Leibler divergence from those of the original; the points are told too.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.guidance.bench import Lost
from foveate.surgery.channels.remove import Proof, cut, evaluating, two
from foveate.surgery.fold import Fold
from foveate.surgery.quant_whitepaper_qualcomm.quantiser import Quantiser
from foveate.surgery.quant_whitepaper_qualcomm.simulate import Simulate, simulated, switched
from foveate.surgery.storage import Store
from foveate.train.gpusq_vit import divergence

SHARES = (0.5, 0.25, 0.75)
"""Of a group's channels that are tried to be removed, in this order."""
BATCH = 64
NO_TIME = "not measured: its share of the budget was spent"

GoOn = Callable[[], bool]
"""Whether there is time for more."""


@dataclass(frozen=True)
class Sensitivity:
    """What an edit of one part costs, alone.

    Attributes:
        edit: name of the edit.
        part: layer, or group of channels.
        how: how much of it.
        lost: on the probes, or None where it was not measured.
        divergence: of the answers from the original's, in nats.
        why: why it was not measured.
    """

    edit: str
    part: str
    how: str
    lost: Lost | None = None
    divergence: float = float("inf")
    why: str = ""


class Probe:
    """Images, and what a model says of them.

    Args:
        model: as it was.
        images: (N, 3, S, S) in [0, 1].
        targets: classes (N,), or None to take what the model says.
    """

    def __init__(self, model: nn.Module, images: Tensor, targets: np.ndarray | None) -> None:
        self._images = images
        self._logits = self._of(model)
        answers = self._logits.argmax(1).numpy()
        self._targets = answers if targets is None else targets
        self._right = answers == self._targets

    def harm(self, edit: str, part: str, how: str, model: nn.Module) -> Sensitivity:
        """The row of a model with one edit."""
        logits = self._of(model)
        lost = Lost.between(self._right, logits.argmax(1).numpy() == self._targets)
        moved = float(divergence(logits, self._logits, 1.0))
        return Sensitivity(edit, part, how, lost, moved)

    @torch.inference_mode()
    def _of(self, model: nn.Module) -> Tensor:
        with evaluating(model):
            return torch.cat([model(part).float() for part in self._images.split(BATCH)])


def of_merging(model: nn.Module, probe: Probe) -> list[Sensitivity]:
    """What it costs to merge all branches that can be."""
    merged, _ = Fold().apply(model)
    return [probe.harm("Fold", "the whole model", "branches merged", merged)]


def of_integers(
    model: nn.Module, simulate: Simulate, batches: list[Tensor], probe: Probe, go_on: GoOn
) -> list[Sensitivity]:
    """What each layer costs whose weights and activations alone are rounded to 8 bits.

    Raises: FoveateError if no layer can be.
    """
    rounded, _ = simulate.apply(model, batches)
    rows = []
    for name, layer in simulated(rounded).items():
        own = {module for module in layer.modules() if isinstance(module, Quantiser)}
        if go_on():
            with switched(rounded, own.__contains__):
                rows.append(probe.harm("Simulate", name, "8 bits", rounded))
        else:
            rows.append(Sensitivity("Simulate", name, "8 bits", why=NO_TIME))
    return rows


def of_storage(model: nn.Module, probe: Probe, go_on: GoOn) -> list[Sensitivity]:
    """What each layer costs whose weights alone are stored in 4 bits.

    Raises: FoveateError if no layer can be.
    """
    _, coverage = Store().apply(model)
    names = [line.name for line in coverage if line.changed]
    rows = []
    for name in names:
        if go_on():
            alone = Store(skip=tuple(other for other in names if other != name))
            rows.append(probe.harm("Store", name, "4 bits", alone.apply(model)[0]))
        else:
            rows.append(Sensitivity("Store", name, "4 bits", why=NO_TIME))
    return rows


class Widths:
    """What channels cost, group by group, and which go where a share of the arithmetic is to go.

    Args:
        model: stays as it is.
        images: a batch that it takes.
        probe: what it costs is measured by.
        go_on: whether there is time to try one more.

    Attributes:
        rows: what each group costs alone, at several shares.
        groups: those of which something may go, that were measured.

    Raises: FoveateError if the model's Python cannot be followed.
    """

    def __init__(self, model: nn.Module, images: Tensor, probe: Probe, go_on: GoOn) -> None:
        with evaluating(model):
            proof = Proof.of(model, two(images), whole=True)
        found = {group.name: group for group in proof.channels.groups}
        # what weighs least goes first
        self._order = {
            name: np.argsort(g.scores(model), kind="stable") for name, g in found.items()
        }
        self.rows: list[Sensitivity] = []
        harms: dict[str, dict[float, float]] = {name: {0.0: 0.0} for name in found}
        for share in SHARES:
            for name, group in found.items():
                count = min(max(round(share * len(group)), 1), len(group) - 1)
                gone = self._order[name][:count].tolist()
                how = f"{len(gone)} of {len(group)} channels"
                row = Sensitivity("Remove", name, how, why=NO_TIME)
                if go_on():
                    plan, why = proof.attempt({name: sorted(gone)})
                    row = Sensitivity("Remove", name, how, why=why)
                    if plan is not None:
                        edited = copy.deepcopy(model)
                        cut(edited, plan["keep"], plan["numbers"])
                        row = probe.harm("Remove", name, how, edited)
                        harms[name][share] = row.divergence
                self.rows.append(row)
        self.groups = {name: g for name, g in found.items() if len(harms[name]) > 1 and g.macs > 0}
        self._curves = {name: _rising(harms[name]) for name in self.groups}

    def gone(self, macs: float, multiple: int) -> dict[str, tuple[int, ...]]:
        """Which channels go, step by step those that cost least for each multiply-add they save.

        Args:
            macs: multiply-adds that are to go. What two groups save together is counted twice
                where they meet in a layer, so fewer may go.
            multiple: as many channels stay in a group as are a multiple of this.
        """
        taken = dict.fromkeys(self.groups, 0)
        saved = 0.0
        while saved < macs and (steps := list(self._steps(taken, multiple))):
            _, name, count = min(steps)
            saved += (count - taken[name]) * self.groups[name].macs
            taken[name] = count
        return {
            name: tuple(sorted(self._order[name][:count].tolist()))
            for name, count in taken.items()
            if count
        }

    def _steps(self, taken: dict[str, int], multiple: int) -> Iterator[tuple[float, str, int]]:
        """The next step of each group: what it costs a multiply-add, its name, and how many go."""
        for name, group in self.groups.items():
            size, before = len(group), taken[name]
            if multiple == 1:
                after = before + -(-size // 8)
            else:
                after = size - (size - before - 1) // multiple * multiple
            if after > max(SHARES) * size:
                continue
            harm = self._harm(name, after) - self._harm(name, before)
            yield harm / ((after - before) * group.macs), name, after

    def _harm(self, name: str, count: int) -> float:
        shares, harms = self._curves[name]
        return float(np.interp(count / len(self.groups[name]), shares, harms))


def _rising(harms: dict[float, float]) -> tuple[list[float], list[float]]:
    """Shares in order, and harms that never fall; beyond the last measured one they grow on."""
    shares = sorted(harms)
    rising = np.maximum.accumulate([harms[share] for share in shares]).tolist()
    slope = rising[-1] / shares[-1]
    return [*shares, 1.0], [*rising, rising[-1] + slope * (1.0 - shares[-1])]


def ranked(rows: list[Sensitivity]) -> list[str]:
    """The parts, the most sensitive first; what was not measured counts as insensitive."""
    known = [row for row in rows if row.lost is not None]
    rest = [row.part for row in rows if row.lost is None]
    return [row.part for row in sorted(known, key=lambda row: -row.divergence)] + rest


def attempted(find: Callable[[], list[Sensitivity]]) -> tuple[list[Sensitivity], str]:
    """Rows of an edit, or none and why it cannot be made of this model."""
    try:
        return find(), ""
    except FoveateError as error:
        return [], str(error)
