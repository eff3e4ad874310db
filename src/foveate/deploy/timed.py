"""How long candidates take, told apart on a machine that others use too, and which leads."""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from foveate.deploy.candidates import Candidate
from foveate.measure import race

NEAR = 1.5
"""Candidates within so many times the fastest's look are raced."""
LEVEL = 1.1
"""Those that may be within so many times the fastest are raced once more, and longer."""
LEADERS = 3
"""So many at the least are, and are tried with fewer threads or more streams."""
LEAST = 5
"""Fewest rounds of a race."""
EVEN = 1.03
"""Of candidates that are within so many times the fastest, and not told from it, the most
accurate leads."""


def timed(
    calls: Mapping[Candidate, Callable[[], Any]],
    seconds: float,
    entered: Collection[Candidate] = (),
) -> list[Candidate]:
    """Candidates with their times: by a look, or two, then the near ones in a race.

    Args:
        seconds: for each that races.
        entered: those that race however they look.
    """
    looks = {row: 1e3 * pace(call) for row, call in calls.items()}
    for row in [row for row in looks if looks[row] >= NEAR * min(looks.values())]:
        looks[row] = min(looks[row], 1e3 * pace(calls[row]))  # others may have had the machine
    slow = NEAR * min(looks.values())
    far = {row for row, look in looks.items() if look >= slow and row not in entered}
    racing = {row.name: call for row, call in calls.items() if row not in far}
    times = race(racing, seconds=seconds * len(racing), least=LEAST, settled=True)
    found = []
    for row in calls:
        if row in far:
            found.append(replace(row, milliseconds=looks[row]))
        else:
            taken = times[row.name].milliseconds()
            figures = {"milliseconds": taken["median"], "low": taken["low"], "high": taken["high"]}
            found.append(replace(row, **figures))
    return found


def at_pace(before: list[Candidate], after: list[Candidate]) -> list[Candidate]:
    """Those that were timed before alone, at the pace that the machine had after.

    The pace is told by those that were timed both times.
    """
    now = {row.name: speed(row) for row in after}
    drifts = [now[row.name] / speed(row) for row in before if row.name in now]
    drift = float(np.median(drifts)) if drifts else 1.0
    return [
        replace(row, **{name: drift * figure for name, figure in _figures(row).items()})
        for row in before
        if row.name not in now
    ]


def near(rows: list[Candidate]) -> list[Candidate]:
    """Those that may be the fastest of some that were timed briefly, by time."""
    ordered = sorted(rows, key=speed)
    level = [row for row in ordered[LEADERS:] if _least(row) < LEVEL * speed(ordered[0])]
    return ordered[:LEADERS] + level


def variants(rows: list[Candidate], batch: int) -> dict[Candidate, Candidate]:
    """The first with one thread for one image, with streams for batches that these divide.

    Each, untimed, with the row that it came from.
    """
    leaders = rows[:LEADERS]
    untimed = {replace(row, milliseconds=None, low=None, high=None): row for row in leaders}
    if batch == 1:
        items = untimed.items()
        return {replace(row, threads=1): of for row, of in items if row.runtime != "torch"}
    counts = {count for count in (2, torch.get_num_threads()) if batch % count == 0}
    split = {row: of for row, of in untimed.items() if row.runtime == "openvino"}
    return {
        replace(row, streams=count): of for row, of in split.items() for count in sorted(counts)
    }


def in_order(rows: list[Candidate], parents: Mapping[Candidate, Candidate]) -> list[Candidate]:
    """The fastest first, or the most accurate of those that are even with it; then by time.

    Fewer threads or more streams lead only where they are told from the same program without:
    on a busy machine one thread may be as fast for a while, as others have the rest.

    Args:
        parents: what `variants` gave.
    """
    ordered = sorted(rows, key=speed)
    raced = {row.name: row for row in ordered}
    whole = {row.name: raced[parent.name] for row, parent in parents.items()}
    able = [row for row in ordered if row.name not in whole or speed(row) < _least(whole[row.name])]
    even = [row for row in able if _is_even(row, able[0])]
    lead = sorted(even, key=lambda row: -row.score)[:1]
    return [*lead, *(row for row in ordered if row not in lead)]


def undecided(rows: list[Candidate], parents: Mapping[Candidate, Candidate]) -> list[Candidate]:
    """The fastest and the program that it is a variant of, where time does not tell the two.

    Args:
        parents: what `variants` gave.
    """
    if not rows:
        return []
    first = min(rows, key=speed)
    wholes = {row.name: parent.name for row, parent in parents.items()}
    whole = [row for row in rows if row.name == wholes.get(first.name)]
    return [first, *whole] if any(_least(row) <= speed(first) for row in whole) else []


def speed(row: Candidate) -> float:
    """Milliseconds of a batch; no end of them where it was not timed."""
    return float("inf") if row.milliseconds is None else row.milliseconds


def best(rows: list[Candidate], graph: str | None = None) -> float:
    """Milliseconds of the fastest, of one graph or of all."""
    return min((speed(row) for row in rows if graph in (None, row.graph)), default=float("inf"))


def pace(call: Callable[[], Any]) -> float:
    """Seconds of a call that is not the first: the best of two, of five where they are short."""
    call()
    times: list[float] = []
    while len(times) < 2 or (len(times) < 5 and sum(times) < 0.2):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _is_even(row: Candidate, first: Candidate) -> bool:
    """Whether time does not tell a candidate from the fastest, and may not do so by much."""
    return _least(row) <= speed(first) and speed(row) <= EVEN * speed(first)


def _figures(row: Candidate) -> dict[str, float]:
    """The times of a candidate, as far as it has any."""
    figures = {"milliseconds": row.milliseconds, "low": row.low, "high": row.high}
    return {name: figure for name, figure in figures.items() if figure is not None}


def _least(row: Candidate) -> float:
    """Milliseconds that a candidate takes at the least."""
    return speed(row) if row.low is None else row.low
