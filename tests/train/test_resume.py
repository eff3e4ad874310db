"""A training that is stopped and resumed ends with the bits of one that was left alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from foveate.data import Augment
from foveate.train import Ingredient, train
from foveate.train.checkpoint import load


class PlugPulledError(Exception):
    """The plug is pulled."""


class StopAt(Ingredient):
    """Pulls the plug after some step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def step_end(self, training) -> None:
        if training.clock.step == self.step:
            raise PlugPulledError


def metrics(folder: Path) -> list[dict]:
    """Lines of metrics.jsonl without what depends on time."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("seconds")
        line.pop("images_per_second", None)
        line.pop("waited", None)
    return lines


@pytest.mark.parametrize("steps", [[1], [5, 6], [8, 13, 19]])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_stopped_at_any_step(squares, make_model, recipe, tmp_path, steps, optimizer):
    settings = recipe(
        ema=0.9,
        optimizer=optimizer,
        learning_rate=0.01,
        augment=Augment(shift=1, mixup=0.3, erase=0.2),
    )
    alone, stopped = make_model("convnext_mini32", 16, dims=(8, 16, 32)), None
    train(alone, squares, settings, tmp_path / "alone", progress=False)
    for step in [*steps, 10_000]:
        stopped = make_model("convnext_mini32", 16, dims=(8, 16, 32))
        try:
            train(
                stopped,
                squares,
                settings,
                tmp_path / "stopped",
                ingredients=[StopAt(step)],
                progress=False,
            )
        except PlugPulledError:
            continue
    assert_same_weights(alone, stopped)
    assert metrics(tmp_path / "alone") == metrics(tmp_path / "stopped")


def test_a_damaged_checkpoint_gives_way_to_the_one_before(squares, make_model, recipe, tmp_path):
    alone = make_model()
    train(alone, squares, recipe(), tmp_path / "alone", progress=False)
    with pytest.raises(PlugPulledError):
        train(
            make_model(),
            squares,
            recipe(),
            tmp_path / "hurt",
            ingredients=[StopAt(7)],
            progress=False,
        )
    newest = max((tmp_path / "hurt" / "checkpoints").glob("step-*"))
    content = bytearray(newest.read_bytes())
    content[-5] ^= 0xFF
    newest.write_bytes(content)
    again = make_model()
    train(again, squares, recipe(), tmp_path / "hurt", progress=False)
    assert_same_weights(alone, again)
    assert newest.with_suffix(".damaged").exists()


def test_a_full_disk_leaves_the_checkpoint_before(
    squares, make_model, recipe, tmp_path, monkeypatch
):
    from foveate import FoveateError
    from foveate.train import checkpoint

    with pytest.raises(PlugPulledError):
        train(make_model(), squares, recipe(), tmp_path, ingredients=[StopAt(5)], progress=False)
    before = sorted((tmp_path / "checkpoints").iterdir())

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(FoveateError, match="make room"):
            train(make_model(), squares, recipe(), tmp_path, progress=False)
    assert sorted((tmp_path / "checkpoints").iterdir()) == before
    train(make_model(), squares, recipe(), tmp_path, progress=False)


SCRIPT = """
import sys
from pathlib import Path
import torch
from foveate.data import Augment, open
from foveate.train import Recipe, train
from foveate.vision import VisionModel

torch.set_num_threads(1)
torch.manual_seed(0)
data = open("digits")
model = VisionModel.create("sprint_s", data.labels, size=16)
recipe = Recipe(epochs=16, batch_size=64, optimizer="adamw", learning_rate=2e-3, ema=0.9,
                augment=Augment(shift=1, flip=False, mixup=0.2), checkpoint_every=0)
train(model, data, recipe, Path(sys.argv[1]), progress=False)
"""


@pytest.mark.slow
def test_killed_at_random_instants(tmp_path):
    """Twenty SIGKILLs, wherever they fall: in a step, an evaluation, or a write."""

    def start(folder):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], env=environment)

    assert start(tmp_path / "alone").wait() == 0
    chance = random.Random(0)
    for _ in range(20):
        process = start(tmp_path / "killed")
        wait_for_a_checkpoint(tmp_path / "killed", process)
        time.sleep(chance.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was over too soon: give it more epochs"
    assert start(tmp_path / "killed").wait() == 0
    weights = [load(tmp_path / n / "checkpoints" / "best.safetensors") for n in ("alone", "killed")]
    assert weights[0][1] == weights[1][1]
    for name, tensor in weights[0][0].items():
        assert torch.equal(tensor, weights[1][0][name]), name
    assert metrics(tmp_path / "alone") == metrics(tmp_path / "killed")


def wait_for_a_checkpoint(folder: Path, process: subprocess.Popen) -> None:
    """Return when `process` has written one, or has ended."""

    def names():
        return {path.name for path in (folder / "checkpoints").glob("step-*")}

    before = names()
    while names() <= before and process.poll() is None:
        time.sleep(0.001)


def assert_same_weights(one, other):
    for (name, tensor), again in zip(
        one.state_dict().items(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, again), name
