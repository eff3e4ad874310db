"""The page says what is recorded."""

import shutil
import subprocess

import pytest

from foveate.catalog.evidence import PACKAGE
from foveate.claims import claims_page, read_results, slugs

RECORDED = PACKAGE / "claims" / "results.jsonl"


def row(slug, verdict="holds", figure=1.234, **more):
    return {
        "slug": slug,
        "verdict": verdict,
        "figure": figure,
        "interval": [1.1, 1.4],
        "unit": "x",
        "says": "It is | fast.",
        "paper": "2x",
        "note": "Here.",
        "details": {"parts": {"a": 1.0, "b": [1, 2.5]}},
        "minutes": 1.0,
        "asked": {"seed": 3},
        "machine": {
            "processor": "abacus",
            "threads": 2,
            "versions": {"torch": "2.9"},
            "date": "2026-11-21T00:00:00",
        },
    } | more


def test_the_last_verdict_counts():
    text = claims_page([row("eca"), row("pvt", "inconclusive"), row("eca", "fails", 0.5)])
    assert "2 claims: 0 holds, 1 fails, 1 inconclusive." in text
    assert "0.5x (1.1 to 1.4)" in text
    assert "1.23x" in text
    assert text.count("## eca") == 1


def test_a_line_has_as_many_cells_as_the_head():
    lines = [line for line in claims_page([row("eca")]).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1


def test_details_are_words():
    assert "- parts: a 1, b 1, 2.5" in claims_page([row("eca")])


def test_the_page_of_this_repository_is_current():
    page = PACKAGE.parents[1] / "docs" / "claims.md"
    if not page.exists():
        pytest.skip("Foveate does not run from a checkout")
    assert page.read_text("utf-8") == claims_page(read_results(RECORDED)), "run `make docs`"


def test_every_claim_has_a_recorded_verdict():
    assert {found["slug"] for found in read_results(RECORDED)} == set(slugs())


def test_recorded_verdicts_follow_from_their_intervals():
    for found in read_results(RECORDED):
        low, high = found["interval"]
        assert low <= found["figure"] <= high, found["slug"]


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_verdicts_travel_with_the_package():
    listed = subprocess.run(
        ["git", "ls-files", "--error-unmatch", str(RECORDED)], cwd=PACKAGE, capture_output=True
    )
    if listed.returncode == 128:
        pytest.skip("no git repository")
    assert listed.returncode == 0
