"""How far a training is, by steps or by time."""

import time


class Clock:
    """Progress from 0 to 1 over a budget of steps, of seconds, or of both.

    A budget of seconds is met by looking ahead at every step: what is left of
    the schedule is spread over the steps that still fit into the time that is
    left, so the schedule comes to its end within the time also when a
    neighbour takes half of the machine. A budget of steps alone depends on
    nothing but the step, so such a training can be repeated bit for bit.

    Args:
        steps: the most steps, or None.
        seconds: the most seconds, those before a resumption included, or None.
        closing_steps: what must still be done after the last step (an
            evaluation), in the time of so many steps.
    """

    def __init__(
        self, steps: int | None, seconds: float | None, closing_steps: float = 0.0
    ) -> None:
        self.steps = steps
        self.seconds = seconds
        self.progress = 0.0
        self.step = 0
        self.spent = 0.0
        self._closing_steps = closing_steps
        self._step_seconds: float | None = None
        self._between = 0.0
        self._last = time.monotonic()

    @property
    def is_over(self) -> bool:
        """Whether the budget is used up."""
        if self.steps is not None and self.step >= self.steps:
            return True
        return self.seconds is not None and self.progress >= 1.0

    def tick(self) -> None:
        """A step was made: move on."""
        took = self._take() + self._between
        self._between = 0.0
        self.step += 1
        if self._step_seconds is None:
            self._step_seconds = took
        self._step_seconds += 0.03 * (took - self._step_seconds)
        by_steps = self.step / self.steps if self.steps else 0.0
        self.progress = max(by_steps, self._by_time()) if self.seconds else by_steps

    def lap(self, *, recurs: bool = True) -> None:
        """Something else than a step took time; if it recurs, steps are expected to cost it too."""
        self._between += self._take() * recurs

    def _take(self) -> float:
        now = time.monotonic()
        took, self._last = now - self._last, now
        self.spent += took
        return took

    def _by_time(self) -> float:
        assert self.seconds is not None
        assert self._step_seconds is not None
        steps_left = (self.seconds - self.spent) / self._step_seconds - self._closing_steps - 1
        if steps_left < 1:
            return 1.0
        return self.progress + (1 - self.progress) / (steps_left + 1)

    def state(self) -> dict[str, float]:
        """What a resumption needs, JSON-ready."""
        return {"step": self.step, "progress": self.progress, "spent": self.spent}

    def resume(self, state: dict[str, float]) -> None:
        """Go on from `state`."""
        self.step = int(state["step"])
        self.progress = state["progress"]
        self.spent = state["spent"]
        self._last = time.monotonic()
