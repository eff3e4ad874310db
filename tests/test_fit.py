"""The main job from end to end, stopped, resumed, and shared by processes."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "foveate", "fit", "digits", "--model", "sprint_s"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start(out: Path, *words: str, command: list[str] = COMMAND, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [*command, "--out", str(out), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process: subprocess.Popen) -> str:
    """Wait for its end; what it wrote to stderr."""
    return process.communicate()[1]


def facts(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def results(run: Path) -> dict:
    """All of a run that does not depend on time."""
    found = facts(run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = {"seconds", "images_per_second", "waited", "share_of_roof"}
    training = {k: v for k, v in found["training"].items() if k not in {*timed, "minutes"}}
    return {
        "weights": (run / "trained" / "model.safetensors").read_bytes(),
        "curve": [{k: v for k, v in line.items() if k not in timed} for line in lines],
        "training": training,
        "data": found["data"],
        "trained": found["test"]["trained"],
        "formats": {row["name"]: row["top1"] for row in found["deploy"]["formats"]},
    }


def test_killed_at_any_instant_of_any_stage(tmp_path):
    words = ["--epochs", "8"]
    begun = time.monotonic()
    assert not finish(start(tmp_path / "alone", *words))
    longest = time.monotonic() - begun
    alone, run = results(tmp_path / "alone"), tmp_path / "killed"
    chance = random.Random(0)
    kills = 0
    while kills < 20:
        process = start(run, *words)
        try:
            process.wait(chance.uniform(0.1, 0.6) * longest)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            kills += 1
            finish(process)
        else:
            assert not finish(process)
            assert results(run) == alone
            shutil.rmtree(run)
    assert not finish(start(run, *words))
    assert results(run) == alone


def test_two_processes_make_one_run(tmp_path):
    command = [*TORCHRUN, "-m", "foveate", "fit", "digits"]
    process = start(tmp_path / "run", "--epochs", "6", command=command)
    said = finish(process)
    assert process.returncode == 0, said
    found = facts(tmp_path / "run")
    assert sum(bool(row["rungs"]) for row in found["race"]["candidates"]) > 1
    assert found["test"]["exported"]["top1"] > 0.9
    process = start(tmp_path / "run", "--epochs", "6", command=command)
    said = finish(process)
    assert process.returncode == 0, said


def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(tmp_path):
    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))

    words = ["--epochs", "4"]
    process = start(tmp_path / "run", *words, preexec_fn=little_room)
    said = finish(process)
    assert process.returncode == 2
    assert said.startswith("error: cannot ")
    assert "make room" in said
    assert len(said.strip().splitlines()) == 1
    process = start(tmp_path / "run", *words)
    assert not finish(process)
    assert facts(tmp_path / "run")["test"]["exported"]["top1"] > 0.5


def test_curves_for_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert not finish(start(tmp_path / "run", "--epochs", "2", "--tensorboard"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    told = [(event.step, event.value) for event in events.Scalars("eval/top1")]
    expected = [(line["step"], line["top1"]) for line in lines if line["kind"] == "eval"]
    assert told == [(step, pytest.approx(top1)) for step, top1 in expected]
