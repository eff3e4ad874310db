"""What guidance is asked for, and the time that it has."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from foveate.errors import FoveateError


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a compressed model must come to, and what may be spent on finding it.

    Args:
        latency_ms: the most that one image may take here; None for as fast as the guard allows.
        guard: points that may be lost.
        budget: seconds for all of it; a step that has begun is finished.
        tries: compositions that are measured, at most.
        tune: epochs of training after channels were removed; 0 for none.
        by: what is lost: accuracy by the labels, or agreement with the model as it was.
        calibration: training images that edits look at, at most.
        probes: images that sensitivities are measured on, at most.
        seconds: of timing a composition beside the original.
        seed: of the search and of training.

    Raises: FoveateError that names the field.
    """

    latency_ms: float | None = None
    guard: float = 1.0
    budget: float = 600.0
    tries: int = 40
    tune: float = 0.0
    by: Literal["accuracy", "agreement"] = "accuracy"
    calibration: int = 256
    probes: int = 256
    seconds: float = 0.4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.latency_ms is not None and not self.latency_ms > 0:
            raise FoveateError(f"latency is {self.latency_ms:g} ms: give more than 0")
        if not 0 <= self.guard <= 100:
            raise FoveateError(f"guard is {self.guard:g}: give 0 to 100 points")
        if self.tune < 0:
            raise FoveateError(f"tune is {self.tune:g}: give 0 or more epochs")
        if self.by not in ("accuracy", "agreement"):
            raise FoveateError(f"by is {self.by!r}: choose accuracy or agreement")
        for name in ("budget", "seconds"):
            if not getattr(self, name) > 0:
                raise FoveateError(f"{name} is {getattr(self, name):g}: give more than 0 seconds")
        for name, least in (("tries", 1), ("calibration", 2), ("probes", 2)):
            if getattr(self, name) < least:
                raise FoveateError(f"{name} is {getattr(self, name)}: give {least} or more")


class Budget:
    """Seconds that are spent as time goes by.

    Args:
        seconds: to spend.
        now: tells the time.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self._now = seconds, now
        self._start = now()

    @property
    def spent(self) -> float:
        return self._now() - self._start

    def has(self, share: float) -> bool:
        """Whether less than this share was spent."""
        return self.spent < share * self.seconds
