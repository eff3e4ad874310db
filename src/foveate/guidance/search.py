"""The search over compositions: what was measured teaches what to measure next.

Optuna's tree-structured Parzen estimator proposes, with latency and what is lost as two
objectives and the wish as constraints. It begins with each edit alone. What it leads to is then
looked at from all sides: every composition one step away is measured, so that the chosen one is
known to be better than its neighbours, and by how much.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from foveate.errors import FoveateError, require
from foveate.guidance.bench import Bench, Figures, Started
from foveate.guidance.space import NAMES, Choice, Space
from foveate.guidance.wish import Budget, Wish
from foveate.surgery.lineage import lineage

PROPOSED = 0.75
"""Share of the tries that Optuna proposes; the rest are neighbours of the best."""
UNTIL_TUNING, UNTIL_LOOKING, UNTIL_END = 0.5, 0.75, 0.9
"""Shares of the budget after which proposing ends, if models are to be tuned and if not, and after
which measuring does."""
LATER = ("tuned", "corrected")
"""Fields that Optuna does not propose: they win back what others lost, and may take minutes."""
MOST_REPEATS = 30
"""Proposals in a row that were measured already after which Optuna is taken to know no more."""


@dataclass(frozen=True)
class Trial:
    """A composition, and what it came to.

    Attributes:
        choice: the composition.
        name: what people call it.
        edits: names of the edits that were made, in order.
        figures: None if it could not be made or run.
        why: why not.
    """

    choice: Choice
    name: str
    edits: tuple[str, ...] = ()
    figures: Figures | None = None
    why: str = ""

    @property
    def ms(self) -> float:
        return self.figures.milliseconds["median"] if self.figures else float("inf")

    @property
    def lost(self) -> float:
        """Points, none below zero: what seems gained over the original is chance."""
        return max(self.figures.lost.points, 0.0) if self.figures else float("inf")


def front(trials: list[Trial]) -> list[Trial]:
    """Those that no other beats in time and in what is lost, the fastest first."""
    found: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.ms, t.lost, t.choice)):
        if trial.figures and (not found or trial.lost < found[-1].lost):
            found.append(trial)
    return found


def chosen(trials: list[Trial], wish: Wish) -> tuple[Trial, bool]:
    """The trial that serves a wish best, and whether it meets it.

    Within a latency that loses least, the fastest of those that lose the same; without one the
    fastest within the guard. If none meets both, that is the nearest, which keeps the guard: the
    original always does.
    """
    kept = [trial for trial in trials if trial.lost <= wish.guard + 1e-9]
    if wish.latency_ms is None:
        return min(kept, key=lambda t: (t.ms, t.lost, t.choice)), True
    able = [trial for trial in kept if trial.ms <= wish.latency_ms]
    if able:
        return min(able, key=lambda t: (t.lost, t.ms, t.choice)), True
    return min(kept, key=lambda t: (t.ms, t.lost, t.choice)), False


class Search:
    """Compositions measured one after the other.

    Args:
        space: what there is to try.
        bench: measures it.
        wish: what it is to come to.
        budget: the time for it.
        told: called with a word on what is under way.

    Attributes:
        trials: by composition; the first is the original.
        programs: of the trials on the front.
        cut_short: what ended it before its tries did, and before nothing was left to try, or "".
    """

    def __init__(
        self,
        space: Space,
        bench: Bench,
        wish: Wish,
        budget: Budget,
        told: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.space, self.bench = space, bench
        self._wish, self._budget, self._told = wish, budget, told
        self.trials: dict[Choice, Trial] = {}
        self.programs: dict[Choice, Started] = {}
        self.cut_short = ""

    def run(self) -> None:
        """Propose, correct, tune where that is wanted, and look around the best; Ctrl-C ends that
        early."""
        self._try(Choice())  # even if there is time for nothing else
        try:
            self._propose()
            self._correct()
            if self._wish.tune:
                self._tune()
            self._look_around()
        except KeyboardInterrupt:
            self.cut_short = "the keyboard"
        self._time_the_front()

    @property
    def original(self) -> Trial:
        """The model as it was."""
        return self.trials[Choice()]

    @property
    def finalists(self) -> list[Trial]:
        """The front, which was timed together in the end."""
        return front([self.trials[choice] for choice in self.programs])

    # ------------------------------------------------------------ its parts

    def _propose(self) -> None:
        optuna = require("optuna", "search")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            directions=["minimize", "minimize"],
            sampler=optuna.samplers.TPESampler(seed=self._wish.seed),
        )
        for choice in self.space.anchors():
            study.enqueue_trial(self._as_parameters(choice))
        until = UNTIL_TUNING if self._wish.tune else UNTIL_LOOKING
        most, repeats = PROPOSED * self._wish.tries, 0
        while len(self.trials) < most and repeats < MOST_REPEATS:
            if not self._has(until):
                break
            proposed = study.ask()
            choice = self._suggested(proposed)
            repeats = repeats + 1 if choice in self.trials else 0
            trial = self._try(choice)
            if trial.figures is None:
                study.tell(proposed, state=optuna.trial.TrialState.FAIL)
                continue
            if self._wish.latency_ms is not None:
                proposed.set_constraint("latency", trial.ms - self._wish.latency_ms)
            proposed.set_constraint("guard", trial.lost - self._wish.guard)
            study.tell(proposed, (trial.ms, trial.lost))

    def _as_parameters(self, choice: Choice) -> dict[str, Any]:
        """What Optuna calls a composition: the places of its levels."""
        return {
            name: levels.index(getattr(choice, name))
            for name, levels in self.space.levels.items()
            if name not in LATER and len(levels) > 1
        }

    def _suggested(self, trial: Any) -> Choice:
        """What Optuna proposes."""
        fields = {}
        for name, levels in self.space.levels.items():
            if name == "numbers":
                at = trial.suggest_categorical(name, list(range(len(levels))))
            elif name in LATER or len(levels) == 1:
                at = 0
            else:
                at = trial.suggest_int(name, 0, len(levels) - 1)
            fields[name] = levels[at]
        return self.space.plain(Choice(**fields))

    def _correct(self) -> None:
        """Correct those in integers that are fast enough but lose too much, those that lose least
        first, until one still does."""
        if True not in self.space.levels["corrected"]:
            return
        for trial in self._losing(lambda choice: choice.numbers == "int8"):
            if not self._may_go_on():
                break
            if self._try(replace(trial.choice, corrected=True)).lost > self._wish.guard:
                break

    def _losing(self, able: Callable[[Choice], bool]) -> list[Trial]:
        """Those that are fast enough but lose too much, those that lose least first."""
        tried = list(self.trials.values())
        limit = self._wish.latency_ms
        if limit is None or not any(trial.ms <= limit for trial in tried):
            limit = chosen(tried, replace(self._wish, latency_ms=None))[0].ms
        return [
            trial
            for trial in sorted(tried, key=lambda t: (t.lost, t.ms))
            if able(trial.choice) and trial.ms <= limit and trial.lost > self._wish.guard
        ]

    def _tune(self) -> None:
        """Train those of which channels were removed, as long as there is time."""
        longest = 0.0
        for trial in self._losing(lambda choice: choice.removed > 0):
            until = UNTIL_END - longest / self._budget.seconds
            if len(self.trials) >= self._wish.tries or not self._has(until):
                break
            before = self._budget.spent
            self._try(replace(trial.choice, tuned=True))
            longest = max(longest, self._budget.spent - before)

    def _look_around(self) -> None:
        """Measure what is one step from the best, until the best stays."""
        while self._may_go_on():
            best, _ = chosen(list(self.trials.values()), self._wish)
            new = [c for c in self.space.neighbours(best.choice) if c not in self.trials]
            if not new:
                break
            for choice in new:
                if not self._may_go_on():
                    break
                self._try(choice)

    def _may_go_on(self) -> bool:
        return len(self.trials) < self._wish.tries and self._has(UNTIL_END)

    def _has(self, share: float) -> bool:
        """Whether there is time left for more."""
        if self._budget.has(share):
            return True
        self.cut_short = f"the budget of {self._wish.budget:g} seconds"
        return False

    def _time_the_front(self) -> None:
        """Time those on the front in turns, so that their order is sure.

        The others' times are told as if the original had run as fast then.
        """
        self._told("timing the front")
        names = [Choice(), *(name for name in self.programs if name != Choice())]
        times = self.bench.times([self.programs[name] for name in names])
        shift = 1e3 * times[0].median / self.original.ms
        timed = dict(zip(names, times, strict=True))
        for name, trial in self.trials.items():
            if trial.figures is None:
                continue
            figures, timing = trial.figures, timed.get(name)
            if timing is None:
                told = {key: shift * ms for key, ms in figures.milliseconds.items()}
                figures = replace(figures, milliseconds=told)
            else:
                told = timing.milliseconds()
                figures = replace(figures, milliseconds=told, noisy=timing.is_noisy)
            self.trials[name] = replace(trial, figures=figures)

    # ------------------------------------------------------------ one composition

    def _try(self, choice: Choice) -> Trial:
        if choice not in self.trials:
            self._told(f"composition {len(self.trials) + 1}{', training' * choice.tuned}")
            self.trials[choice] = self._measured(choice)
            best = {trial.choice for trial in front(list(self.trials.values()))} | {Choice()}
            self.programs = {c: p for c, p in self.programs.items() if c in best}
        return self.trials[choice]

    def _measured(self, choice: Choice) -> Trial:
        try:
            model = self.space.made(choice)
            program = self.bench.start(model) if choice != Choice() else self.bench.original
            figures = self.bench.measure(program)
        except FoveateError as error:
            return Trial(choice, self._name(choice, None), why=str(error))
        self.programs[choice] = program
        before = len(lineage(self.bench.original.model))
        edits = tuple(step["edit"] for step in lineage(model)[before:])
        return Trial(choice, self._name(choice, figures), edits, figures)

    def _name(self, choice: Choice, figures: Figures | None) -> str:
        parts = []
        if choice.removed:
            share = choice.removed / 100
            if figures:
                share = 1 - figures.macs / self.bench.original_macs
            by = f" in {choice.multiple}s" if choice.multiple > 1 else ""
            parts.append(f"{share:.0%} of MACs removed{by}")
        parts += ["tuned"] * choice.tuned + [NAMES[choice.numbers]] * (choice.numbers != "float32")
        if choice.floats and choice.numbers != "float32":
            parts.append(f"{choice.floats} in float")
        parts += ["biases corrected"] * choice.corrected
        return ", ".join(parts) or "as it was"
