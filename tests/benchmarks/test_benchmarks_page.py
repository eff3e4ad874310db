"""The page of benchmarks says what the files say, losses too."""

import json
from dataclasses import asdict

import pytest

MACHINE = {
    "processor": "A chip",
    "threads": 2,
    "gpu": None,
    "system": "Linux 6",
    "versions": {"torch": "2.15.0", "numpy": "2.4"},
    "date": "2026-11-21T12:00:00+00:00",
}


@pytest.fixture
def folder(script, tmp_path):
    row = script("results").Row
    rows = [
        row(what="net | one", peer="timm", ratio=(2.0, 1.9, 2.1), mark=1.5, ours="1 ms"),
        row(what="net", peer="timm", ratio=(0.8, 0.7, 0.9), mark=1.5, note="memory bound"),
        row(what="net", peer="torch", ratio=(0.8, 0.7, 0.9)),
    ]
    found = {
        "title": "Nets",
        "command": "python benchmarks/nets.py",
        "says": "One image.",
        "machine": MACHINE,
        "rows": [asdict(row) for row in rows],
    }
    (tmp_path / "nets.json").write_text(json.dumps(found))
    (tmp_path / "old.json").write_text(json.dumps({"machine": MACHINE, "milliseconds": {}}))
    return tmp_path


def test_the_page(script, folder):
    page = script("page")
    found = page.recorded(folder)
    assert [name for name, _ in found] == ["nets"]
    text = page.page(found)
    assert "| [Nets](#nets) | 1 | 1 | 0 |" in text
    assert "`python benchmarks/nets.py`, on Linux 6, A chip, 2 threads, torch 2.15.0" in text
    lines = text.splitlines()
    assert "| what | peer | ratio | mark | verdict | ours |" in lines
    assert "| net / one | timm | 2.00x (1.90 to 2.10) | 1.5x | **met** | 1 ms |" in lines
    assert "| net | timm | 0.80x (0.70 to 0.90) | 1.5x | *missed* |  |" in lines
    assert "| net | torch | 0.80x (0.70 to 0.90) |  | *slower* |  |" in lines
    assert "- net, timm: memory bound" in lines


def test_a_table_without_ratios(script, tmp_path):
    results, page = script("results"), script("page")
    left = results.Sheet(
        tmp_path / "edits.py",
        title="Edits",
        command="python benchmarks/edits.py",
        says="On networks.",
        columns=["edit", "after", "works"],
        rows=[["One", "", "3"], ["Two | more", "", "2"]],
        notes=["Two refuses on a net: it is too small"],
        facts={"any": ["thing"]},
        machine=MACHINE,
    )
    assert left.write() == tmp_path / "edits.json"
    [(name, again)] = page.recorded(tmp_path)
    assert (name, again.rows, again.facts) == ("edits", left.rows, left.facts)
    lines = page.page([(name, again)]).splitlines()
    assert "| edit | works |" in lines, "a column that nobody fills is left out"
    assert "| Two / more | 2 |" in lines
    assert "- Two refuses on a net: it is too small" in lines
    assert not any("[Edits]" in line for line in lines), "it has no marks to meet"


def test_the_page_in_the_repository_is_what_the_files_give(script):
    page = script("page")
    found = page.recorded(page.HERE)
    assert found, "no benchmark has left a result"
    assert page.PAGE.read_text("utf-8") == page.page(found), "run python benchmarks/page.py"
