"""Claims are run once, go on where they stopped, and leave lines that can be read."""

import json
import os
import sys

import pytest

from foveate.claims import Asked, Claim, Finding, Lab, find_claim, read_results, reproduce, slugs
from foveate.errors import FoveateError


@pytest.fixture
def runs(monkeypatch):
    """Claims that take no time; a list of those that were run, with their minutes."""
    done: list[tuple[str, float]] = []

    def found(slug: str) -> Claim:
        def run(lab: Lab) -> Finding:
            done.append((slug, lab.minutes))
            if slug == "vovnet" and len(done) == 2:
                raise KeyboardInterrupt
            return Finding.above(1.0, (2.0, 1.5, 2.5), unit="x", details={"seed": lab.seed})

        return Claim(slug, f"{slug} is fast.", "2x", 3.0 if slug == "im2win" else 1.0, run)

    monkeypatch.setattr("foveate.claims._reproduce.find_claim", found)
    return done


def test_a_line_a_claim(runs, tmp_path):
    told = []
    rows = reproduce(["eca", "pvt"], tmp_path / "new" / "r.jsonl", told=told.append)
    assert [row["slug"] for row in rows] == ["eca", "pvt"]
    assert rows == told == read_results(tmp_path / "new" / "r.jsonl")
    assert rows[0]["verdict"] == "holds"
    assert rows[0]["interval"] == [1.5, 2.5]
    assert rows[0]["asked"] == {"minutes": None, "source": "digits", "seed": 0, "device": "cpu"}
    assert {"processor", "versions", "date", "threads"} <= set(rows[0]["machine"])


def test_a_stopped_run_goes_on(runs, tmp_path):
    results = tmp_path / "r.jsonl"
    with pytest.raises(KeyboardInterrupt):
        reproduce(["eca", "vovnet", "pvt"], results)
    assert [row["slug"] for row in read_results(results)] == ["eca"]
    rows = reproduce(["eca", "vovnet", "pvt"], results)
    assert [row["slug"] for row in rows] == ["eca", "vovnet", "pvt"]
    assert [slug for slug, _ in runs] == ["eca", "vovnet", "vovnet", "pvt"]


def test_what_was_asked_otherwise_is_another_question(runs, tmp_path):
    results = tmp_path / "r.jsonl"
    reproduce(["eca"], results)
    reproduce(["eca"], results, Asked(seed=1))
    reproduce(["eca"], results, Asked(seed=1))
    assert len(runs) == 2
    reproduce(["eca"], results, Asked(seed=1), again=True)
    assert len(runs) == 3
    assert [row["details"]["seed"] for row in read_results(results)] == [0, 1, 1]


def test_minutes_are_shared_by_weight(runs, tmp_path):
    reproduce(["eca", "im2win"], tmp_path / "r.jsonl", Asked(minutes=8.0))
    assert runs == [("eca", 2.0), ("im2win", 6.0)]


def test_a_line_cut_short_is_named(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"slug": "eca"}\n{"slug": "p')
    with pytest.raises(FoveateError, match=r"r\.jsonl.*--out"):
        reproduce(["vovnet"], tmp_path / "r.jsonl")


def test_results_that_cannot_be_written(runs, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FoveateError, match="--out"):
        reproduce(["eca"], tmp_path / "file" / "r.jsonl")


def test_an_unknown_engine(tmp_path):
    with pytest.raises(FoveateError, match="processes or ray"):
        reproduce(["vovnet"], tmp_path / "r.jsonl", engine="slurm")


def test_ray_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(FoveateError, match=r"foveate\[ray\]"):
        reproduce(["vovnet"], tmp_path / "r.jsonl", engine="ray")


@pytest.mark.slow
def test_ray_runs_claims(tmp_path):
    ray = pytest.importorskip("ray")
    asked = Asked(minutes=0.1)
    rows = reproduce(["vovnet", "pflayer"], tmp_path / "r.jsonl", asked, jobs=2, engine="ray")
    ray.shutdown()
    assert {row["slug"] for row in rows} == {"vovnet", "pflayer"}


@pytest.mark.slow
def test_several_processes(tmp_path):
    rows = reproduce(
        ["convfirst_efficiency", "pflayer"], tmp_path / "r.jsonl", Asked(minutes=0.1), jobs=2
    )
    assert {row["slug"] for row in rows} == {"convfirst_efficiency", "pflayer"}
    assert {row["machine"]["threads"] for row in rows} == {max(1, (os.cpu_count() or 1) // 2)}
    assert len(read_results(tmp_path / "r.jsonl")) == 2


@pytest.mark.slow
@pytest.mark.parametrize("slug", slugs())
def test_every_claim_runs(slug, tmp_path):
    """In a moment, so the verdict may be anything, but the figures must be figures."""
    (row,) = reproduce([slug], tmp_path / "r.jsonl", Asked(minutes=0.02))
    low, high = row["interval"]
    assert low <= row["figure"] <= high
    assert row["verdict"] in ("holds", "fails", "inconclusive")
    assert row["says"] == find_claim(slug).says
    json.dumps(row, allow_nan=False)
