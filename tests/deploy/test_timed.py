"""Which candidate leads: told by simulated times of candidates."""

from dataclasses import replace

import pytest

from foveate.deploy import Candidate
from foveate.deploy.timed import at_pace, in_order, near, timed, undecided, variants


def row(precision="float32", score=90.0, milliseconds=10.0, low=None, **how):
    low = milliseconds if low is None else low
    given = {"score": score, "milliseconds": milliseconds, "low": low, "high": milliseconds}
    return Candidate("plain", "openvino", precision, **given, **how)


def with_one_thread(rows, times):
    """The order of rows with a variant of the first that takes so many milliseconds."""
    parents = variants(rows[:1], 1)
    given = [replace(variant, milliseconds=times, low=times, high=times) for variant in parents]
    return in_order([*rows, *given], parents)


def test_one_thread_leads_only_where_it_is_told_from_two():
    unclear, clear = row(low=7.0), row(low=9.0)
    assert with_one_thread([unclear], 8.0)[0] == unclear
    assert with_one_thread([clear], 8.0)[0].threads == 1
    assert with_one_thread([clear], 8.0)[1] == clear


def test_a_variant_in_front_is_timed_again_beside_its_program_until_it_is_told_from_it():
    unclear, clear, other = row(low=7.0), row(low=9.0), row("int8", milliseconds=8.5)
    for whole, again in ((unclear, True), (clear, False)):
        parents = variants([whole], 1)
        quick = [replace(variant, milliseconds=8.0) for variant in parents]
        assert undecided([other, whole, *quick], parents) == ([*quick, whole] if again else [])
        assert undecided([row("int4", milliseconds=5.0), whole, *quick], parents) == []
    assert undecided([], {}) == []


def test_where_one_thread_may_not_lead_the_next_does():
    integers = row("int8", milliseconds=11.0)
    unclear = row(milliseconds=12.0, low=7.0)
    assert with_one_thread([unclear, integers], 8.0)[0] == integers


def test_those_that_are_even_are_told_by_accuracy():
    first, slower = row("int8", 89.0), row("int4", 99.0, 11.0)
    even = row(milliseconds=10.2, low=9.9)
    assert in_order([slower, even, first], {}) == [even, first, slower]
    told = replace(even, low=10.1)
    assert in_order([slower, told, first], {}) == [first, told, slower]


def test_what_may_be_the_fastest_is_raced_again():
    fast, hidden, slow = row(), row(milliseconds=14.0, low=10.5), row(milliseconds=14.5)
    two = [row(milliseconds=12.0 + i) for i in range(2)]
    assert near([slow, hidden, fast, *two]) == [fast, *two, hidden]
    assert near([]) == []


def test_times_taken_before_are_given_at_the_pace_of_those_taken_after():
    """The machine became half as fast, as one that was timed twice tells."""
    before, untimed = row("int8", milliseconds=12.0), replace(row("int4"), milliseconds=None)
    found = at_pace(
        [row(), before, replace(untimed, low=None, high=None)], [row(milliseconds=20.0)]
    )
    assert [each.milliseconds for each in found] == [24.0, None]
    assert found[0].low == 24.0
    assert at_pace([before], []) == [before]


def test_streams_divide_the_batch(monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    parents = variants([row(), replace(row(), runtime="onnxruntime")], 4)
    assert {variant.streams for variant in parents} >= {2}
    assert {parent.runtime for parent in parents.values()} == {"openvino"}
    assert all(variant.milliseconds is None for variant in parents)
    assert not variants([row()], 3)


@pytest.fixture
def clock(monkeypatch):
    """A clock that calls move on by themselves."""
    now = [0.0]
    for module in ("foveate.measure.timer", "foveate.deploy.timed"):
        monkeypatch.setattr(f"{module}.time.perf_counter", lambda: now[0])
    return now


def test_what_a_first_look_finds_slow_races_only_where_it_must(clock):
    def takes(seconds):
        def work():
            clock[0] += seconds

        return work

    untimed = {"milliseconds": None, "low": None, "high": None}
    fast, slow = (replace(row(precision), **untimed) for precision in ("float32", "int8"))
    calls = {fast: takes(0.01), slow: takes(0.02)}
    looked, raced = timed(calls, 0.1), timed(calls, 0.1, [slow])
    for found in looked, raced:
        assert [each.milliseconds for each in found] == pytest.approx([10, 20])
        assert found[0].low == pytest.approx(10)
    assert looked[1].low is None
    assert raced[1].low == pytest.approx(20)


def test_what_was_slow_at_one_look_is_looked_at_again(clock):
    """Others had the machine while the second candidate was looked at first."""

    def takes_ten():
        clock[0] += 0.01

    def takes_ten_and_once_long():
        clock[0] += 0.05 if clock[0] < 0.35 else 0.01

    untimed = {"milliseconds": None, "low": None, "high": None}
    plain, hit = (replace(row(precision), **untimed) for precision in ("float32", "int8"))
    found = timed({plain: takes_ten, hit: takes_ten_and_once_long}, 0.1)
    assert [each.low for each in found] == pytest.approx([10, 10])


def test_a_pace_that_halved_since_bars_nothing(clock):
    """What is new races beside what was timed at another pace, as it is looked at anew too."""

    def takes_twenty():
        clock[0] += 0.02

    old, new = row(), replace(row("int8"), milliseconds=None, low=None, high=None)
    found = timed({old: takes_twenty, new: takes_twenty}, 0.1, [old])
    assert [each.low for each in found] == pytest.approx([20, 20])
