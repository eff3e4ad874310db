"""The schedule comes to its end within its time, whatever the machine does."""

import pytest

from foveate.train import clock as module
from foveate.train.clock import Clock


class Watch:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def watch(monkeypatch):
    watch = Watch()
    monkeypatch.setattr(module, "time", watch)
    return watch


def run(clock, watch, step_seconds, evaluate_every=0, evaluation=0.0):
    """Steps until the clock is over; the progress after each."""
    seen = []
    while not clock.is_over:
        watch.now += step_seconds(watch.now)
        clock.tick()
        seen.append(clock.progress)
        if evaluate_every and clock.step % evaluate_every == 0:
            watch.now += evaluation
            clock.lap()
    return seen


def test_steps_alone_depend_on_nothing_else(watch):
    assert run(Clock(4, None), watch, lambda now: 100.0) == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    "speed",
    [
        lambda now: 0.1,
        lambda now: 0.1 if now < 30 else 0.2,
        lambda now: 0.2 if now < 30 else 0.1,
        lambda now: 0.1 + 0.05 * (int(now) % 3),
    ],
    ids=["steady", "a neighbour comes", "a neighbour goes", "uneven"],
)
def test_time_is_kept_and_used(watch, speed):
    seen = run(Clock(None, 60, closing_steps=10), watch, speed, evaluate_every=50, evaluation=1.0)
    assert 54 < watch.now < 60
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert seen[-20] > 0.9


def test_a_steady_machine_gives_an_even_schedule(watch):
    seen = run(Clock(None, 60), watch, lambda now: 0.1)
    for i in (100, 300, 500):
        assert seen[i] == pytest.approx(i / 600, abs=0.01)


def test_both_budgets_end_at_the_first(watch):
    assert len(run(Clock(10, 60), watch, lambda now: 1.0)) == 10
    assert run(Clock(1000, 5), watch, lambda now: 1.0)[-1] == 1.0


def test_a_resumed_clock_counts_what_was_spent(watch):
    clock = Clock(None, 60)
    for _ in range(100):
        watch.now += 0.1
        clock.tick()
    again = Clock(None, 60)
    again.resume(clock.state())
    begun = watch.now
    run(again, watch, lambda now: 0.1)
    assert watch.now - begun == pytest.approx(50, abs=0.5)
