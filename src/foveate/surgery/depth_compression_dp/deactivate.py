"""Activations are removed where the convolutions around them are worth merging."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.depth_compression_dp.calls import Call, Change, change, pad, skip
from foveate.surgery.depth_compression_dp.rows import Row, rows
from foveate.surgery.depth_compression_dp.solve import Choice, solve
from foveate.surgery.depth_compression_dp.tables import (
    Agreement,
    Latency,
    Times,
    eager,
    piece_times,
    renew_norms,
    worthwhile,
)
from foveate.surgery.edit import Covered, Edit, Images, Plan
from foveate.surgery.lineage import Step, lineage


@implements("depth_compression_dp")
@dataclass(frozen=True, kw_only=True)
class Deactivate(Edit):
    """Remove activations so that runs of convolutions can be merged, chosen under a time budget.

    Every piece of every row of convolutions is measured as the one convolution that it would
    become, every run is scored without its activations, and the best choice for both tables is
    found exactly. Padding moves to the beginning of each run, which makes merging exact, and
    changes what the network sees at borders. So train it then, and have `MergeRuns` merge.

    Differences from the authors' code, as far as its published copy shows: a run is scored
    after its batch norms took new statistics and not after an epoch of training (`score` may
    do that), a single layer's importance is 0, and no activation is added where there was none.

    Args:
        share: of the time that the rows' convolutions take, that they may take after.
        longest: layers of a run, at most.
        batch: images of the inputs that pieces are measured with.
        skip: patterns of names of convolutions that are left.
        latency: seconds of a layer for an input; by default as PyTorch runs it.
        score: of a model, the higher the better; its loss is a run's importance. By default
            agreement with the unedited model on the data.

    Raises: FoveateError if a field is out of range, or the budget cannot be kept.
    """

    refuses: ClassVar[dict[str, str]] = {
        "integers": "they are rounded for the activations that there are; deactivate before",
        "mixtures": "their layers are not plain; fold them into plain layers before",
        "chosen filters": "heads look at the activations that there are; deactivate before",
        "constants": "it has no modules any more; deactivate before",
    }

    share: float = 0.75
    longest: int = 6
    batch: int = 1
    skip: tuple[str, ...] = ()
    latency: Latency | None = field(default=None, compare=False)
    score: Callable[[nn.Module], float] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise FoveateError(f"share is {self.share}: give more than 0 and less than 1")
        for name, least in (("longest", 2), ("batch", 1)):
            if getattr(self, name) < least:
                raise FoveateError(f"{name} is {getattr(self, name)}: give {least} or more")

    def decide(self, model: nn.Module, data: Images) -> tuple[Plan, list[Covered]]:
        if waiting(model):
            raise FoveateError(
                "Deactivate has prepared runs of this model that are not merged yet: apply "
                "MergeRuns before it is prepared again"
            )
        images = list(self.batches(data))
        found = rows(model, images[0][:2], self.skip)
        if not found:
            return _plan_of([]), _coverage(model, [])
        latency = self.latency or eager
        times = [piece_times(row, self.longest, self.batch, latency) for row in found]
        runs = [worthwhile(row, own, self.longest) for row, own in zip(found, times, strict=True)]
        joined, starts, n = _in_one_line(found, times)
        before = sum(joined[at, at + 1] for at in range(n))
        self._demand_enough(joined, _in_one_line(found, runs)[0], n, before)
        score = self.score or Agreement.to(model, images)
        was = self._score(model, [], score, images)
        worth = []
        for row, own in zip(found, runs, strict=True):
            pieces = {run: [(row, a, b) for a, b in pairwise(cuts)] for run, cuts in own.items()}
            worth.append(
                {run: self._score(model, of, score, images) - was for run, of in pieces.items()}
            )
        choice = solve(joined, _in_one_line(found, worth)[0], n, self.share * before)
        assert choice is not None
        pieces = _pieces(found, starts, choice)
        plan = {
            **_plan_of(pieces),
            "seconds": {"before": before, "after": choice.seconds},
            "importance": choice.importance,
        }
        return plan, _coverage(model, pieces)

    def rebuild(self, model: nn.Module, plan: Plan) -> nn.Module:
        changes: list[tuple[Call, Change]] = [(Call(**call), skip) for call in plan["off"]]
        for piece in plan["pieces"]:
            for name in piece["convs"]:
                layer: Any = model.get_submodule(name)
                layer.padding = (0, 0) if name != piece["convs"][0] else tuple(piece["padding"])
            for added in piece["adds"]:
                high, wide = added["margins"]
                if high or wide:
                    margins = pad(added["operand"], [wide, wide, high, high])
                    changes.append((Call(**added["call"]), margins))
        return change(model, changes)

    def fit(self, model: nn.Module, plan: Plan, data: Images) -> None:
        renew_norms(model, list(self.batches(data)))

    def _demand_enough(self, times: Times, runs: Times, n: int, before: float) -> None:
        """Raises: FoveateError if no choice keeps the budget."""
        least = solve(times, dict.fromkeys(runs, 0.0), n, before)
        assert least is not None  # all layers as they are take what they took
        if least.seconds > self.share * before:
            share = math.ceil(1000 * least.seconds / before) / 1000
            raise FoveateError(
                f"the convolutions that stand in rows cannot be merged to {self.share:.0%} of "
                f"their time: give a share of {share:.3f} or more, or a larger longest"
            )

    def _score(
        self,
        model: nn.Module,
        pieces: "list[Piece]",
        score: Callable[[nn.Module], float],
        images: list[Tensor],
    ) -> float:
        """What a model would score without the activations inside some pieces."""
        edited = self.rebuild(copy.deepcopy(model), _plan_of(pieces))
        renew_norms(edited, images)
        return score(edited)


def waiting(model: nn.Module) -> list[Step]:
    """Steps of `Deactivate` in a model's lineage whose runs have not been merged since."""
    found: list[Step] = []
    for step in lineage(model):
        if step["edit"] == "Deactivate":
            found.append(step)
        elif step["edit"] == "MergeRuns":
            found = [other for other in found if step["at"] not in ("", other["at"])]
    return found


Piece = tuple[Row, int, int]
"""Convolutions of a row, between two positions."""


def _in_one_line(
    found: list[Row], tables: Sequence[Mapping[tuple[int, int], Any]]
) -> tuple[dict[tuple[int, int], Any], list[int], int]:
    """Tables of all rows as one, where each begins, and the last position.

    Between two rows, and where the line ends, is a piece that costs nothing, and so is every
    layer by itself that a table lacks.
    """
    joined: dict[tuple[int, int], Any] = {}
    starts, n = [], 0
    for row, table in zip(found, tables, strict=True):
        starts.append(n)
        joined |= {(n + at, n + at + 1): 0.0 for at in range(len(row) + 1)}
        joined |= {(n + i, n + j): value for (i, j), value in table.items()}
        n += len(row) + 1
    return joined, starts, n


def _pieces(found: list[Row], starts: list[int], choice: Choice) -> list[Piece]:
    """The chosen pieces of several layers."""
    pieces = []
    for row, start in zip(found, starts, strict=True):
        cuts = [cut - start for cut in choice.cuts if start <= cut <= start + len(row)]
        pieces += [(row, i, j) for i, j in pairwise(cuts) if j > i + 1]
    return pieces


def _plan_of(pieces: list[Piece]) -> Plan:
    """What `rebuild` and `MergeRuns` must know of pieces, of which those of one layer stay."""
    several = [(row, i, j) for row, i, j in pieces if j > i + 1]
    inside = [link for row, i, j in several for link in row.links[i : j - 1]]
    return {
        "pieces": [_written(*piece) for piece in several],
        "off": [link.act.to_json() for link in inside if link.act is not None],
    }


def _written(row: Row, i: int, j: int) -> dict[str, Any]:
    """A piece, JSON-ready; its positions count from 0.

    An addition has "margins", by which the value of its source has to be made larger to be added
    in the network that is not merged yet, and "tap", the place in the merged kernel of position
    "to" where the first tap of that of position "from" comes to lie.
    """
    margins = row.margins(i, j)
    adds = []
    for target in row.folded(i, j):
        link = row.links[target - 1]
        at, to = link.source - i, target - i
        stride = [1, 1]
        for inner in row.links[i : link.source]:
            stride = [a * b for a, b in zip(stride, inner.layer.stride, strict=True)]
        apart = [a - b for a, b in zip(margins[at], margins[to], strict=True)]
        given = (0, 0) if at == 0 else margins[at]
        assert link.add is not None
        adds.append(
            {
                "call": link.add.to_json(),
                "operand": link.operand,
                "from": at,
                "to": to,
                "margins": [a - b for a, b in zip(margins[to], given, strict=True)],
                "tap": [a * b for a, b in zip(apart, stride, strict=True)],
            }
        )
    links = row.links[i:j]
    return {
        "convs": [link.conv for link in links],
        "norms": [link.norm for link in links],
        "padding": list(margins[0]),
        "adds": adds,
    }


def _coverage(model: nn.Module, pieces: list[Piece]) -> list[Covered]:
    """A line for every convolution."""
    said = {}
    for row, i, j in pieces:
        merged = row.merged(i, j)
        side = "x".join(map(str, merged.kernel_size))
        for link in row.links[i:j]:
            said[link.conv] = f"of a run of {j - i} that can become one {side} convolution"
    lines = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            why = said.get(name, "left because merging it was not worth what it costs")
            lines.append(Covered(name, type(module).__name__, name in said, why))
    return lines
