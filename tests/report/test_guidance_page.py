"""The page of a guided compression: whole, and not to be broken by names."""

import pytest
from strict_reader import Reader

from foveate.report.guidance import guidance_page

HOSTILE = "<script>alert(1)</script>\"'&"


def trial(name, ms, points, **marks):
    figures = {
        "latency_ms": {"median": ms, "low": ms, "high": ms},
        "lost": {"points": points, "low": points, "high": points},
        "right": 0.9 - points / 100,
        "bytes": 1_000_000,
        "macs": 2_000_000,
    }
    marks = {"front": False, "chosen": False, "why": "", **marks}
    return {"name": name, "figures": figures, **marks}


def sensitivity(edit, part, divergence):
    lost = None if divergence is None else {"points": 1.0, "low": 0.0, "high": 2.0}
    why = "there was no time" if lost is None else ""
    found = {"edit": edit, "part": part, "how": "8 bits", "lost": lost, "why": why}
    return {**found, "divergence": divergence}


@pytest.fixture
def facts():
    return {
        "machine": {
            "processor": "P",
            "threads": 2,
            "versions": {"torch": "2"},
            "date": "2026-11-21",
        },
        "asked": {"latency_ms": 2.5, "guard": 1.0, "by": "accuracy"},
        "runtime": "OpenVINO",
        "seconds": 60.0,
        "met": True,
        "words": ["Chosen: INT8.", f"Because {HOSTILE}."],
        "sensitivities": [
            sensitivity("Simulate", "stem", 0.02),
            sensitivity("Simulate", HOSTILE, 0.5),
            sensitivity("Simulate", "head", None),
        ],
        "trials": [
            trial("as it was", 4.0, 0.0),
            trial("INT8", 2.0, 0.5, chosen=True, front=True),
            trial(HOSTILE, 1.0, 9.0, front=True),
            trial("dominated", 3.0, 5.0),
            {**trial("4-bit weights", 1, 1, why="it cannot run"), "figures": None},
        ],
    }


def test_says_what_was_found(facts):
    page = Reader(guidance_page(facts, "resnet"))
    assert "script" not in {tag for tag, _ in page.tags}
    for words in (HOSTILE, "Chosen: INT8.", "2.00 ms", "0.50 (0.50 to 0.50)", "4-bit weights"):
        assert words in page.text
    assert "it cannot run" in page.text
    assert "there was no time" in page.text
    rows = [attributes for tag, attributes in page.tags if tag == "tr"]
    assert sum(attributes.get("class") == "chosen" for attributes in rows) == 2  # front, and all
    headings = page.text.partition("The front")[2]
    assert headings.index("What each part costs alone") < headings.index("All that was measured")


def test_draws_the_front_and_what_was_asked_for(facts):
    page = Reader(guidance_page(facts, "resnet"))
    dots = [a["class"] for tag, a in page.tags if tag == "circle"]
    assert sorted(dots) == ["dot a", "dot b", "dot c", "dot n"]
    limits = [a for tag, a in page.tags if tag == "line" and a.get("class") == "limit"]
    assert len(limits) == 2
    [front] = [a for tag, a in page.tags if tag == "polyline"]
    assert len(front["points"].split()) == 2  # the two on the front, not the original
    bars = [a for tag, a in page.tags if tag == "rect" and a.get("class") == "bar a"]
    widths = [float(a["width"]) for a in bars]
    assert len(widths) == 2
    assert widths[0] > widths[1]  # the most sensitive first
    facts["asked"]["latency_ms"] = None
    page = Reader(guidance_page(facts, "resnet"))
    assert sum(a.get("class") == "limit" for tag, a in page.tags if tag == "line") == 1
