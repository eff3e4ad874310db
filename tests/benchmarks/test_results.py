"""What benchmarks write down is what the page reads, and verdicts follow from intervals."""

import json

import pytest


@pytest.mark.parametrize(
    ("ratio", "mark", "verdict"),
    [
        ((2.0, 1.9, 2.1), 1.5, "met"),
        ((1.5, 1.4, 1.6), 1.5, "open"),
        ((1.3, 1.2, 1.4), 1.5, "missed"),
        ((1.3, 1.2, 1.4), None, "faster"),
        ((1.0, 0.9, 1.1), None, "even"),
        ((0.8, 0.7, 0.9), None, "slower"),
        ((0.8, 0.7, 0.9), 1.0, "missed"),
    ],
)
def test_verdicts(script, ratio, mark, verdict):
    assert script("results").Row(what="a", peer="b", ratio=ratio, mark=mark).verdict == verdict


def bench(results, folder, **changes):
    fields = {"title": "T", "command": "python benchmarks/b.py", "says": "What was compared."}
    return results.Benchmark(folder / "b.py", **{**fields, **changes})


def test_rows_are_kept_one_by_one_and_read_again(script, tmp_path, capsys):
    results = script("results")
    found = bench(results, tmp_path)
    rows = [
        results.Row(what="x", peer=peer, ratio=(2.0, 1.5, 2.5), mark=mark, ours="1 ms", note="n")
        for peer, mark in (("p", 1.2), ("q", None))
    ]
    for count, row in enumerate(rows, 1):
        found.add(row)
        assert results.read(tmp_path / "b.json").rows == rows[:count]
    said = capsys.readouterr().out
    assert "x | p: 2.00x (1.50 to 2.50) of 1.2x, met" in said
    assert results.read(tmp_path / "b.json").machine["cores"] >= 1


def test_measured_again_a_row_replaces_its_own(script, tmp_path):
    results = script("results")
    first = bench(results, tmp_path)
    for what in ("x", "y"):
        first.add(results.Row(what=what, peer="p", ratio=(1.0, 0.9, 1.1)))
    again = bench(results, tmp_path, keep=True)
    again.add(results.Row(what="x", peer="p", ratio=(3.0, 2.9, 3.1)))
    rows = results.read(tmp_path / "b.json").rows
    assert [(row.what, row.ratio[0]) for row in rows] == [("x", 3.0), ("y", 1.0)]
    assert bench(results, tmp_path).rows == []


def test_a_file_of_another_kind_is_told_apart(script, tmp_path):
    (tmp_path / "old.json").write_text(json.dumps({"machine": {}, "ratios": {}}))
    with pytest.raises(KeyError):
        script("results").read(tmp_path / "old.json")


def test_geometric_mean(script):
    mean = script("results").geometric_mean
    assert mean([(2.0, 1.0, 4.0)]) == pytest.approx((2.0, 1.0, 4.0))
    assert mean([(1.0, 1.0, 1.0), (4.0, 4.0, 4.0)]) == pytest.approx((2.0, 2.0, 2.0))
    middle, low, high = mean([(2.0, 1.0, 4.0)] * 4)
    assert (middle, low, high) == pytest.approx((2.0, 2**0.5, 2 * 2**0.5))
