"""From any torch network to the program that runs fastest on this machine.

First the graph becomes lean: norms, branches and identities merge, maps stay
maps. Then each runtime and precision that is at hand computes it, the accuracy
of each is looked at, and those that keep the guard are timed in turns. Float
comes first, and nothing is worked at that cannot become faster than what is there.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import asdict, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foveate.deploy import remembered
from foveate.deploy.candidates import WAYS, Candidate, Way, promising
from foveate.deploy.deployed import Deployed
from foveate.deploy.fallback import fallbacks
from foveate.deploy.parity import parity
from foveate.deploy.programs import HARD, Programs
from foveate.deploy.quantise import CALIBRATION_IMAGES
from foveate.deploy.runtimes import Logits, computes_bfloat16, executed
from foveate.deploy.timed import (
    at_pace,
    best,
    in_order,
    near,
    pace,
    speed,
    timed,
    undecided,
    variants,
)
from foveate.errors import FoveateError
from foveate.measure import machine

JUDGE_BATCH = 16
HOPELESS = 3.0
"""A candidate that is so many times slower at two looks is looked at no further."""
DECIDING = 4
"""A variant and the program that it came from are timed so many times as long as leaders, where
nothing less tells them apart."""
HOW = ((False, False), (True, False), (False, True))
"""How INT8 programs are made, in order: whether `tight`, and whether `gentle`."""
FALLBACK_SECONDS = 60.0
"""Spent at most on finding the layers that must stay in float."""
QUANTISED = "not tried: the network is quantised already, and other ways keep its integers"
NO_BFLOAT16 = "not tried: this processor does not compute in bfloat16"

Score = Callable[[np.ndarray], float]
"""Accuracy in points of 100 of logits (N, K) of the judged images, in order."""


def fastest(
    model: nn.Module, images: Tensor | np.ndarray, *, batch: int = 1, **options: Any
) -> Deployed:
    """Find the fastest way to run a trained network on this machine.

    Args:
        model: any torch network that maps one batch of images to one tensor.
        images: to judge on, (N, C, H, W), as the network takes them; N at least 2.
        batch: images a call.
        options: as `Search` takes them, which serves several batch sizes at once.

    Raises: FoveateError if the images do not fit, or a library is missing.
    """
    return Search(model, images, **options).fastest(batch)


class Search:
    """Programs of a network and how accurate they are, found once; times for each batch size.

    Args:
        model: any torch network that maps one batch of images to one tensor.
        images: to judge on, (N, C, H, W), as the network takes them; N at least 2.
        targets: their classes (N,); without them and `score`, accuracy is the share
            of images that get the class that the float network gives.
        score: another judge of logits; what it leads to is not remembered.
        calibration: for INT8; by default the first of `images`.
        guard: points of accuracy that may be lost.
        ways: (runtime, precision) pairs to look among; by default all that may be the fastest on
            this processor.
        seconds: of timing for each candidate.
        budget: seconds for all of it; what there was no time for stands in the table,
            with the reason. A step that has begun is finished.
        again: measure again what was measured on this machine in the last 30 days.
        told: called with a word on what is under way.

    Attributes:
        programs: of the candidates.

    Raises: FoveateError if the images do not fit, or for an unknown way.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor | np.ndarray,
        *,
        targets: np.ndarray | None = None,
        score: Score | None = None,
        calibration: Tensor | np.ndarray | None = None,
        guard: float = 1.0,
        ways: Collection[Way] | None = None,
        seconds: float = 1.0,
        budget: float = 180.0,
        again: bool = False,
        told: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._images, calibration = _checked(images, calibration, guard)
        self._model = model.eval().cpu()
        self.programs = Programs(self._model, self._images, calibration, told)
        self._ways = promising() if ways is None else _known(ways)
        self._own_score = score
        self._targets = targets
        self._guard = guard
        self._seconds = seconds
        self._again = again
        self._told = told
        self._asked = {
            "guard": guard,
            "ways": self._ways,
            "classes": None if targets is None else [int(target) for target in targets],
            "pixels": [float(self._images.sum()), float(calibration.sum())],
        }
        self._left = _Left(budget)
        self._judged: dict[Candidate, Candidate] = {}
        self._step = 0.0  # seconds that the longest quantisation took
        self._pace = float("inf")  # seconds of the fastest candidate at a look

    def fastest(self, batch: int = 1) -> Deployed:
        """The fastest way for so many images a call. Raises: FoveateError."""
        table, known = self.table(batch)
        if table[0].why:
            raise FoveateError(
                f"no way keeps the guard ({table[0].name} {table[0].why}): let float32 be among "
                "the ways"
            )
        return Deployed.of(self.programs, table, known, batch)

    def table(self, batch: int = 1) -> tuple[list[Candidate], dict[str, Any]]:
        """Every candidate with its figures for so many images a call, and what is kept of them.

        Those that keep the guard come first, the fastest first; of those that time does not
        tell apart, the most accurate leads.
        """
        if batch < 1:
            raise FoveateError(f"batch {batch} makes no sense: give 1 or more")
        question = remembered.key(self._model, batch=batch, **self._asked)
        known = None if self._again or self._own_score else remembered.recall(question)
        if known is None:
            with self._left:
                rows = self._measured(batch)
            known = {
                "table": [asdict(row) for row in rows],
                "coverage": self._coverage(rows[0]),
                "machine": machine(),
            }
            if self._own_score is None:
                remembered.remember(question, known)
        return [Candidate.of(row) for row in known["table"]], known

    @cached_property
    def possible(self) -> list[Way]:
        """Those of the ways that can be had."""
        return [way for way in self._ways if way not in self._impossible]

    # ------------------------------------------------------------ the search

    def _measured(self, batch: int) -> list[Candidate]:
        graphs = self.programs.graphs
        brief = self._seconds / 4
        floats = [self._judge(row) for graph in graphs for row in self._floats_of(graph)]
        rows = self._time([row for row in floats if not row.why], batch, brief)
        int8, untried = [], []
        for graph in sorted(graphs, key=lambda graph: best(rows, graph)):
            found, missed = self._int8_of(graph)
            int8 += found
            untried += missed
        rows = self._beside(rows, [row for row in int8 if not row.why or row.error], batch, brief)
        failed = [row for row in rows if row.why and row.runtime == "openvino"]
        if failed and best(failed) < best(_kept(rows)):
            self._told("returning layers to float")
            rows = self._beside(rows, self._mixed(min(failed, key=speed)), batch, brief)
        hard, missed = self._hard_of(near(_kept(rows)))
        untried += missed
        rows = self._beside(rows, _kept(hard), batch, brief)
        final, missed = self._final(near(_kept(rows)), batch)
        rest = sorted(at_pace(rows, final), key=speed)
        away = [row for row in floats + hard if row.why and row.error]
        away += [row for row in rest if row.why]
        unheard = [row for row in floats + int8 + hard if row.why and not row.error]
        untried += [Candidate(graphs[0], *way, why=why) for way, why in self._impossible.items()]
        return [*final, *_kept(rest), *away, *unheard, *untried, *missed]

    def _floats_of(self, graph: str) -> list[Candidate]:
        """The ways of a graph that quantise nothing; PyTorch takes the network as it comes."""
        rows = [Candidate(graph, *way) for way in self.possible if "int8" not in way[1]]
        return [row for row in rows if row.runtime != "torch" or graph == "plain"]

    def _int8_of(self, graph: str) -> tuple[list[Candidate], list[Candidate]]:
        """The INT8 candidates of a graph, judged, and those that there was no time for."""
        found: list[Candidate] = []
        untried: list[Candidate] = []
        for runtime, made in (("openvino", HOW), ("onnxruntime", HOW[:1])):
            tried, missed = self._int8_in(runtime, graph, made)
            found += tried
            untried += missed
        return found, untried

    def _int8_in(
        self, runtime: str, graph: str, made: Collection[tuple[bool, bool]]
    ) -> tuple[list[Candidate], list[Candidate]]:
        """The same in one runtime, made in each of some ways until something keeps the guard.

        So where nothing keeps it in OpenVINO of a graph with attention, ranges become tight, and
        where nothing does then, attention stays in float.
        """
        ways = [way for way in self._integer_ways() if way[0] == runtime]
        found: list[Candidate] = []
        for tight, gentle in made if ways else ():
            rows = [Candidate(graph, *way, tight=tight, gentle=gentle) for way in ways]
            if not all(row in self._judged for row in rows):
                if self._left() < self._step:
                    return found, [replace(row, why=self._no_time()) for row in rows]
                start = time.perf_counter()
                self.programs.path(rows[0])
                self._step = max(self._step, time.perf_counter() - start)
            found += [self._judge(row) for row in rows]
            if not all(row.why for row in found) or not self.programs.has_attention(graph):
                break
        return found, []

    def _mixed(self, first: Candidate) -> list[Candidate]:
        """An INT8 candidate with as many layers in float as it takes to keep the guard."""
        known = [row for row in self._judged.values() if row.floats and row.graph == first.graph]
        if known:
            return [row for row in known if not row.why]
        quantised = self.programs.int8(first)
        end = time.perf_counter() + min(FALLBACK_SECONDS, self._left())
        found = fallbacks(
            quantised,
            self._images,
            self._expected,
            lambda logits: self._score(logits) >= self._least,
            lambda: end - time.perf_counter(),
        )
        for floats in found:
            rows = [
                self._judge(
                    Candidate(
                        first.graph,
                        *way,
                        tight=first.tight,
                        gentle=first.gentle,
                        floats=tuple(floats),
                    )
                )
                for way in self._integer_ways()
                if way[0] == first.runtime
            ]
            if not all(row.why for row in rows):
                return [row for row in rows if not row.why]
        return []

    def _hard_of(self, leaders: list[Candidate]) -> tuple[list[Candidate], list[Candidate]]:
        """What leads in integers, with hard-swish for GELU and SiLU; and what had no time.

        Floats stay exact: only what is rounded to 8 bits anyway is approximated more.
        """
        able = [row for row in leaders if row.is_quantised and not row.floats]
        made = {(row.runtime, row.tight, row.gentle) for row in able[:1]}
        alike = [row for row in able if (row.runtime, row.tight, row.gentle) in made]
        rows = [Candidate(HARD, *row.way, tight=row.tight, gentle=row.gentle) for row in alike]
        rows = list(dict.fromkeys(rows))  # both graphs may lead
        if not rows or not self.programs.has_hard:
            return [], []
        if not all(row in self._judged for row in rows) and self._left() < self._step:
            return [], [replace(row, why=self._no_time()) for row in rows]
        return [self._judge(row) for row in rows], []

    def _final(
        self, leaders: list[Candidate], batch: int
    ) -> tuple[list[Candidate], list[Candidate]]:
        """The leaders raced longer, with fewer threads and more streams beside them.

        In the order of `in_order`; and those that there was no time for.
        """
        more = variants(leaders, batch) if torch.get_num_threads() > 1 else {}
        if self._left() < self._seconds * (len(leaders) + len(more)):
            return leaders, [replace(row, why=self._no_time()) for row in more]
        self._told("timing")
        rows = self._time(list(more), batch, self._seconds, leaders)
        if pair := undecided(rows, more):
            times = self._time([], batch, DECIDING * self._seconds, pair)
            rows = [*at_pace(rows, times), *times]
        return in_order(rows, more), []

    # ------------------------------------------------------------ one candidate

    def _judge(self, row: Candidate) -> Candidate:
        """A candidate with its accuracy."""
        if row not in self._judged:
            self._judged[row] = self._looked_at(row)
        return self._judged[row]

    def _looked_at(self, row: Candidate) -> Candidate:
        if not self.programs.is_sound(row):
            return replace(row, why="not safe: in a trial its process crashed")
        runtime = self.programs.start(row, JUDGE_BATCH)
        look = partial(pace, partial(runtime, self._images[:JUDGE_BATCH]))
        taken = look()
        if self._is_hopeless(taken):
            taken = min(taken, look())  # others may have had the machine
        if self._is_hopeless(taken):
            return replace(row, why=f"{taken / self._pace:.0f} times as slow at two looks")
        self._pace = min(self._pace, taken)
        logits = _in_parts(runtime, self._images)
        points = self._score(logits)
        largest = max(float(np.abs(self._expected).max()), 1e-12)
        error = parity(self._expected, logits).max_error / largest
        keeps = points >= self._least
        why = "" if keeps else f"scores {points:.1f}, less than {self._least:.1f}"
        integers = len(executed(runtime, self.programs.layers).integers)
        return replace(row, score=points, error=error, why=why, integers=integers)

    def _is_hopeless(self, taken: float) -> bool:
        """Whether seconds of a look are far more than others took."""
        return taken > max(HOPELESS * self._pace, 0.02)

    def _beside(
        self, rows: list[Candidate], more: list[Candidate], batch: int, seconds: float
    ) -> list[Candidate]:
        """Rows that were timed before, and more of them, all at one pace."""
        times = self._time(more, batch, seconds, near(_kept(rows))[:1]) if more else []
        return [*at_pace(rows, times), *times]

    def _time(
        self,
        rows: list[Candidate],
        batch: int,
        seconds: float,
        entered: Collection[Candidate] = (),
    ) -> list[Candidate]:
        """Candidates with their times for one batch, as `timed` takes them."""
        if not rows and not entered:
            return []
        repeats = -(-batch // len(self._images))
        images = np.concatenate([self._images] * repeats)[:batch]
        calls = {row: partial(self.programs.start(row, batch), images) for row in [*rows, *entered]}
        return timed(calls, seconds, entered)

    # ------------------------------------------------------------ what is judged by

    def _integer_ways(self) -> list[Way]:
        """Those of the possible ways that quantise."""
        return [way for way in self.possible if "int8" in way[1]]

    @cached_property
    def _impossible(self) -> dict[Way, str]:
        """The ways that were asked for and cannot be had, with the reasons."""
        found = {}
        for way in self._ways:
            if "int8" in way[1] and self.programs.layers:
                found[way] = QUANTISED
            elif "bfloat16" in way[1] and not computes_bfloat16():
                found[way] = NO_BFLOAT16
        return found

    @cached_property
    def _expected(self) -> np.ndarray:
        with torch.inference_mode():
            return _in_parts(lambda part: self._model(torch.from_numpy(part)).numpy(), self._images)

    @cached_property
    def _score(self) -> Score:
        targets = self._expected.argmax(1) if self._targets is None else self._targets
        return self._own_score or partial(_hits, targets)

    @cached_property
    def _least(self) -> float:
        return self._score(self._expected) - self._guard - 1e-9

    def _coverage(self, chosen: Candidate) -> list[tuple[str, str]]:
        """What was done to the graph that a candidate runs."""
        return self.programs.coverage + (self.programs.hardened if chosen.graph == HARD else [])

    def _no_time(self) -> str:
        return f"not tried: the budget of {self._left.budget:g} seconds was spent"


class _Left:
    """Seconds left of a budget, which only runs within a `with`."""

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self._left = budget
        self._since: float | None = None

    def __call__(self) -> float:
        return self._left - (time.perf_counter() - self._since if self._since else 0)

    def __enter__(self) -> None:
        self._since = time.perf_counter()

    def __exit__(self, *raised: object) -> None:
        self._left, self._since = self(), None


def _known(ways: Collection[Way]) -> list[Way]:
    """Some ways, in the order of all."""
    unknown = [way for way in ways if way not in WAYS]
    if unknown or not ways:
        choices = ", ".join(" ".join(way) for way in WAYS)
        name = " ".join(unknown[0]) if unknown else "none at all"
        raise FoveateError(f"{name} is no way to run a network: choose from {choices}")
    return [way for way in WAYS if way in ways]


def _kept(rows: list[Candidate]) -> list[Candidate]:
    """Those that may be chosen."""
    return [row for row in rows if not row.why]


def _in_parts(network: Logits, images: np.ndarray) -> np.ndarray:
    parts = range(0, len(images), JUDGE_BATCH)
    return np.concatenate([network(images[i : i + JUDGE_BATCH]) for i in parts])


def _hits(targets: np.ndarray, logits: np.ndarray) -> float:
    """Percent of images that get their class."""
    return 100 * float((logits.argmax(1) == targets).mean())


def _checked(
    images: Tensor | np.ndarray, calibration: Tensor | np.ndarray | None, guard: float
) -> tuple[np.ndarray, np.ndarray]:
    if not 0 <= guard <= 100:
        raise FoveateError(f"guard {guard:g} makes no sense: give 0 to 100 points")
    arrays = [
        np.ascontiguousarray(g.numpy(force=True) if isinstance(g, Tensor) else g, np.float32)
        for g in (images, images if calibration is None else calibration)
    ]
    if any(a.ndim != 4 or len(a) < 2 for a in arrays):
        raise FoveateError(
            f"images of shape {arrays[0].shape} cannot judge a network: give two or more as "
            "(N, C, H, W)"
        )
    return arrays[0], arrays[1][:CALIBRATION_IMAGES]
