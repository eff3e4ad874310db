"""What is said follows from what was measured."""

import pytest

from foveate.guidance.words import explain, front_table

MACHINE = {"processor": "P", "threads": 2, "versions": {"torch": "2"}, "date": "2026-11-21T00:00"}


def row(name, ms, points, edits=("Remove",), **more):
    fields = {"removed": 0, "multiple": 1, "tuned": False, "numbers": "float32", "floats": 0}
    fields |= {"corrected": False, **more.pop("fields", {})}
    figures = {
        "latency_ms": {"median": ms, "low": 0.99 * ms, "high": 1.01 * ms},
        "lost": {"points": points, "low": points - 0.4, "high": points + 0.4},
        "right": 0.9 - points / 100,
        "bytes": 1_000_000,
        "macs": more.pop("macs", 100),
        "noisy": more.pop("noisy", False),
    }
    marks = {"front": False, "chosen": False, "neighbour": False, "why": "", "left_in_float": []}
    found = {"name": name, "fields": fields, "edits": list(edits), "figures": figures, **marks}
    return {**found, **more}


def facts(*trials, met=True, lineage=(), **asked):
    wish = {"latency_ms": None, "guard": 1.0, "budget": 600.0, "tune": 2.0, "by": "accuracy"}
    return {
        "machine": MACHINE,
        "asked": {**wish, **asked},
        "runtime": "OpenVINO",
        "no_openvino": "",
        "judged": {"split": "val", "n": 2000},
        "seconds": 60.0,
        "cut_short": "",
        "sensitivities": [],
        "refused": [],
        "trials": [row("as it was", 4.0, 0.0, edits=()), *trials],
        "unmeasured_neighbours": 0,
        "met": met,
        "held_out": None,
        "lineage": list(lineage),
    }


def best(name="INT8", ms=2.0, points=0.5, edits=("Simulate", "Store"), **more):
    return row(name, ms, points, edits, chosen=True, front=True, **more)


def said(found):
    return " ".join(explain(found))


def test_latency_binds():
    slower = row("10% of MACs removed", 2.2, 0.1)
    text = said(facts(best(), slower, latency_ms=2.0))
    assert text.startswith(
        "Chosen of 3 compositions, as it takes at most 2 ms and loses at most 1 point of accuracy: "
        "INT8."
    )
    assert "2.00 times as fast as the 4.00 ms of the original" in text
    assert (
        "The latency binds: what loses less takes 2.20 ms or more (10% of MACs removed, "
        "0.10 points); of the guard's 1, 0.50 points are left." in text
    )


def test_what_was_done_to_numbers():
    done = "Layers compute in 8-bit integers, none left in float."
    corrected = "Biases take away again what that adds to the means of layers' outputs."
    assert f"{done} {corrected}" not in said(facts(best()))
    assert f"{done} {corrected}" in said(facts(best(fields={"corrected": True})))


def test_guard_binds():
    faster = row("20% of MACs removed, INT8", 1.8, 1.5)
    much_faster = row("70% of MACs removed, INT8", 0.5, 40.0)
    text = said(facts(best(), faster, much_faster))
    assert "as it is fastest and loses at most 1 point" in text
    assert (
        "The guard binds: the least that anything faster loses is 1.50 points (20% of MACs "
        "removed, INT8, 1.80 ms)." in text
    )


def test_nothing_binds():
    assert "Nothing binds: it is the fastest" in said(facts(best()))
    text = said(facts(best(points=-0.2), latency_ms=3.0))
    assert "Neither binds: nothing that was measured loses less" in text
    assert "1.00 points are left" in text


def test_neighbours_say_why_not():
    near = {"neighbour": True}
    rows = [
        row("slow", 2.5, 0.1, **near),
        row("harmful", 1.5, 3.0, **near),
        row("both", 2.5, 3.0, **near),
        row("worse", 1.9, 0.9, **near),
        row("useless", 2.0, 0.5, **near),
        row("as it was", 4.0, 0.0, (), **near),
        row("far", 1.0, 9.0),
    ]
    found = facts(best(), *rows, latency_ms=2.0)
    found["unmeasured_neighbours"] = 2
    text = said(found)
    for words in (
        "slow is too slow (2.50 ms, 0.10 points)",
        "harmful loses too much (1.50 ms, 3.00 points)",
        "both is too slow and loses too much (2.50 ms, 3.00 points)",
        "worse loses more (1.90 ms, 0.90 points)",
        "useless is no faster and loses no less (2.00 ms, 0.50 points)",
        "the model as it was is too slow (4.00 ms, 0.00 points)",
        "(2 more were not measured.)",
    ):
        assert words in text
    assert "far" not in text.partition("One step away")[2]
    rivals = facts(best(), row("slower", 2.1, 0.2, **near))
    assert "slower is slower (2.10 ms, 0.20 points)" in said(rivals)


def test_what_was_done():
    lineage = [
        {"edit": "Fold", "fields": {}},
        {
            "edit": "Remove",
            "fields": {"gone": {"stem": [0], "body": [1, 2, 3], "a": [0], "b": [0]}},
        },
        {"edit": "Simulate", "fields": {}},
        {"edit": "Store", "fields": {}},
    ]
    chosen = best("30% of MACs removed, tuned, INT8", edits=("Remove", "Simulate", "Store"))
    chosen = {**chosen, "left_in_float": ["head"]}
    chosen["fields"] = {**chosen["fields"], "removed": 30, "tuned": True, "numbers": "int8"}
    chosen["figures"] = {**chosen["figures"], "macs": 70}
    text = said(facts(chosen, lineage=lineage))
    assert "30% of the multiply-adds went with channels, where they cost least: 3 of body, " in text
    assert "and 1 more groups" in text
    assert "trained for 2 epochs to answer as the original" in text
    assert "8-bit integers, but for 1 that rounding hurts most (head)" in text
    stored = best("4-bit weights", edits=("Store",))
    stored["fields"] = {**stored["fields"], "numbers": "weights4"}
    assert "Weights are stored in 4 bits, none left in float." in said(facts(stored))


def test_intervals_and_images_that_decided_nothing():
    found = facts(best(points=0.8))
    found["held_out"] = {"images": 500, "points": 1.2, "low": 0.5, "high": 1.9}
    text = said(found)
    assert "0.80 (0.40 to 1.20) points of accuracy were lost on 2,000 images of the val" in text
    assert "the interval reaches beyond the guard" in text
    assert "On 500 test images, which decided nothing, it lost 1.20 (0.50 to 1.90)." in text
    assert "beyond the guard" not in said(facts(best(points=0.1)))


def test_the_nearest():
    fast = row("70% of MACs removed, INT8", 0.9, 7.0)
    text = said(facts(best(), fast, met=False, latency_ms=1.0))
    assert text.startswith("None of 3 compositions takes at most 1 ms and loses at most 1 point")
    assert "the nearest that keeps the guard is INT8." in text
    assert "It is 100% over the 1 ms. Of what is fast enough, 70% of MACs removed, INT8" in text
    assert "loses least: 7.00 points at 0.900 ms. Both bind." in text
    text = said(facts(best(), met=False, latency_ms=0.1))
    assert "The fastest of all, INT8, takes 2.00 ms and loses 0.50 points" in text


def test_nothing_to_do():
    found = facts()
    found["trials"][0]["chosen"] = True
    text = said(found)
    assert text.startswith("Of 1 composition, the model as it was serves best: no edit is needed.")
    assert "times as fast" not in text


def test_caveats():
    failed = {**row("4-bit weights", 1, 1), "figures": None, "why": "it cannot run"}
    found = facts(best(noisy=True), failed)
    found["refused"] = [{"edit": "Remove", "why": "its Python cannot be followed"}]
    found["no_openvino"] = "it is not installed"
    found["cut_short"] = "the keyboard"
    lost = {"points": 2.5, "low": 1, "high": 4}
    part = {"edit": "Remove", "part": "stem", "how": "4 of 8 channels", "lost": lost}
    found["sensitivities"] = [{**part, "divergence": 0.2, "why": ""}]
    text = said(found)
    assert "Chosen of 2 compositions" in text
    assert "Remove was left out: its Python cannot be followed." in text
    assert "Not made or run: 4-bit weights; the first because it cannot run." in text
    assert "Judged and timed in PyTorch, eager: it is not installed." in text
    assert "The search was ended by the keyboard: more may find better." in text
    assert "too busy to time 1 of them well" in text
    assert "What costs most alone: losing 4 of 8 channels in stem (2.50 points)." in text


@pytest.mark.parametrize(("by", "head"), [("accuracy", "top-1"), ("agreement", "same label")])
def test_the_table_shows_the_front(by, head):
    table = front_table(facts(best(), row("dominated", 3.0, 2.0), by=by))
    assert [column.header for column in table.columns][4] == head
    assert list(table.columns[0].cells) == ["→ INT8", "  as it was"]
    assert list(table.columns[2].cells) == ["2.00x", "1.00x"]
