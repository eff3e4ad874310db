"""A run's folder keeps what was found, and refuses what is not its own."""

import json

import pytest

from foveate import FoveateError
from foveate.runs import Run


def test_a_stage_is_done_once(tmp_path):
    done = []
    for _ in range(2):
        with Run(tmp_path / "run", {"seed": 0}, {"source": "x"}) as run:
            result = run.stage("data", lambda: done.append(1) or {"n": 3})
            assert result == {"n": 3}
    assert done == [1]
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["source"] == "x"
    assert facts["minutes"]["total"] == facts["minutes"]["data"]


def test_a_stage_that_fails_is_not_done_but_its_time_counts(tmp_path):
    with Run(tmp_path / "run", {}, {}) as run:
        with pytest.raises(RuntimeError, match="power cut"):
            run.stage("data", _fail)
        assert "data" not in run.facts
        assert run.minutes_spent() > 0


def test_two_processes_cannot_share_it(tmp_path):
    with (
        Run(tmp_path / "run", {}, {}),
        pytest.raises(FoveateError, match="another process"),
    ):
        Run(tmp_path / "run", {}, {})


def test_another_request_is_refused(tmp_path):
    with Run(tmp_path / "run", {"seed": 0}, {}):
        pass
    with pytest.raises(FoveateError, match="seed 0"):
        Run(tmp_path / "run", {"seed": 1}, {})


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    with Run(tmp_path / "run", {}, {}) as run:
        run.stage("data", lambda: {"n": 1})

        def full(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(FoveateError, match="make room"):
            run.stage("race", lambda: {"n": 2})
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["data"] == {"n": 1}
    assert "race" not in facts


def _fail():
    raise RuntimeError("power cut")
