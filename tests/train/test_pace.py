"""Speed, what was waited for, and what share of the machine was used."""

import json
from types import SimpleNamespace

import pytest
import torch

from foveate import memory
from foveate.data import Batch
from foveate.measure import Ceilings, count
from foveate.train import Ingredient, pace, train


class Slow:
    """Batches, each of which takes some seconds of a clock that the test turns."""

    def __init__(self, clock: SimpleNamespace, *seconds: float) -> None:
        self.clock, self.seconds, self.closed = clock, seconds, False

    def epoch(self, epoch: int, start: int):
        try:
            for seconds in self.seconds[start:]:
                self.clock.now += seconds
                yield Batch(torch.zeros(1), torch.zeros(1), torch.zeros(1))
        finally:
            self.closed = True


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_waiting_is_told_from_stepping(clock):
    found = pace.Pace()
    for _ in found.batches(Slow(clock, 100.0, 3.0, 1.0), 0, start=1):
        clock.now += 4.0
        found.stepped(32, seconds=6.0)
    assert found.waited == 4.0
    assert found.waited_share == pytest.approx(4 / 12)
    assert found.images_per_second == pytest.approx(64 / 12)


def test_batches_are_closed_when_the_loop_breaks_off(clock):
    batches = Slow(clock, 1.0, 1.0)
    for _ in pace.Pace().batches(batches, 0, 0):
        break
    assert batches.closed


def test_a_training_says_its_share_of_the_roof(squares, make_model, recipe, tmp_path):
    model = make_model()
    outcome = train(model, squares, recipe(), tmp_path, progress=False)
    work = 3 * 2 * count(model, torch.zeros(1, 3, 8, 8)).macs
    assert outcome.flops_per_second == pytest.approx(work * outcome.images_per_second)
    roof = Ceilings(10 * outcome.flops_per_second, "a test", 1.0, 1, "")
    assert outcome.share_of_roof(roof) == pytest.approx(0.1)
    assert 0 <= outcome.waited <= 1
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= line["waited"] <= 1 for line in lines if line["kind"] == "train")


def test_memory_is_kept_while_training_and_not_after_it(squares, make_model, recipe, tmp_path):
    class Look(Ingredient):
        def step_end(self, training) -> None:
            seen.append(memory.is_kept())
            if training.clock.step == 3:
                raise RuntimeError("the plug is pulled")

    seen: list[bool] = []
    with memory.kept() as works:
        pass
    with pytest.raises(RuntimeError, match="plug"):
        train(make_model(), squares, recipe(), tmp_path, ingredients=[Look()], progress=False)
    assert seen == [works] * 3
    assert not memory.is_kept()
