"""Figures that a noisy machine does not fool."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from foveate.measure import (
    Ratio,
    correlation,
    exponent,
    machine,
    machine_line,
    mean_interval,
    paired,
    race,
    side_by_side,
    timing,
)
from foveate.measure.machine import processor


@pytest.fixture
def busy(monkeypatch):
    """Calls that take so many milliseconds, by a clock that nothing else moves."""
    now = 0.0

    def of(milliseconds: float):
        def work():
            nonlocal now
            now += milliseconds / 1e3

        return work

    clock = SimpleNamespace(perf_counter=lambda: now)
    monkeypatch.setattr("foveate.measure.timer.time", clock)
    return of


def test_a_ratio_is_that_of_pairs_and_knows_both_times():
    found = Ratio.of(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0]))
    assert (found.median, found.low, found.high, found.pairs) == (2.0, 2.0, 2.0, 3)
    assert (found.a, found.b) == (4.0, 2.0)


def test_timing_brackets_its_median(busy):
    found = timing(busy(1), seconds=0.1)
    assert found.low <= found.median <= found.high
    assert found.median == pytest.approx(1e-3)
    assert found.runs >= 5


def test_a_planted_difference_is_found(busy):
    assert paired(busy(2), busy(1), seconds=0.2).verdict == "slower"
    assert paired(busy(1), busy(2), seconds=0.2).verdict == "faster"


def test_side_by_side_names_each(busy):
    found = side_by_side({"slow": busy(2), "fast": busy(0.5)}, seconds=0.05)
    assert found["slow"].median > found["fast"].median


def test_what_is_settled_is_timed_on_its_second_call(monkeypatch):
    """Two calls that are slow whenever the other was called before them."""
    now, before = 0.0, ""

    def call(name: str):
        def work():
            nonlocal now, before
            now += 1e-3 if before == name else 3e-3
            before = name

        return work

    clock = SimpleNamespace(perf_counter=lambda: now)
    monkeypatch.setattr("foveate.measure.timer.time", clock)
    calls = {"a": call("a"), "b": call("b")}
    settled = side_by_side(calls, seconds=0.1, settled=True)
    assert settled["a"].median == settled["b"].median == pytest.approx(1e-3)
    assert paired(*calls.values(), seconds=0.1, settled=True).high == pytest.approx(1)
    assert side_by_side(calls, seconds=0.1)["a"].high == pytest.approx(3e-3)


def test_machine_says_what_it_is():
    facts = machine()
    assert facts["cores"] >= 1
    assert "torch" in facts["versions"]


@pytest.mark.parametrize(
    ("flags", "sets"),
    [
        ("flags\t\t: fma avx avx2", " (AVX2)"),
        ("flags\t\t: avx2 avx512f avx512_vnni", " (AVX-512, AVX2, VNNI)"),
        ("flags\t\t: sse", ""),
    ],
)
def test_processors_of_one_name_are_told_apart_by_their_instruction_sets(flags, sets):
    told = "processor\t: {}\nmodel name\t: AMD EPYC\n" + flags + "\n\n"
    assert processor(told.format(0) + told.format(1)) == f"AMD EPYC{sets}"


@pytest.fixture
def simulated(monkeypatch):
    """Calls that are given in milliseconds, timed by a machine whose noise is decided by a seed."""

    def machine_of(seed: int) -> None:
        chance = np.random.default_rng(seed)

        def seconds(call) -> float:
            disturbed = chance.random() < 0.1
            return call() / 1e3 * chance.lognormal(0, 0.05) * (3 if disturbed else 1)

        monkeypatch.setattr("foveate.measure.timer._seconds", seconds)

    return machine_of


def test_the_same_is_inconclusive_and_a_tenth_is_found(simulated):
    same, slower = [], []
    for seed in range(50):
        simulated(seed)
        same.append(paired(lambda: 1.0, lambda: 1.0, seconds=0, least=60).verdict)
        slower.append(paired(lambda: 1.1, lambda: 1.0, seconds=0, least=60).verdict)
    assert same.count("inconclusive") >= 45
    assert slower.count("slower") == 50


def test_a_race_finds_the_fastest_on_a_machine_whose_pace_changes(monkeypatch):
    """The pace halves and doubles; a tenth slower drops out, a hundredth may not."""
    chance = np.random.default_rng(0)
    calls = {"slow": 1.5, "near": 1.01, "fast": 1.0, "tenth": 1.1}
    now = 0.0

    def seconds(call) -> float:
        nonlocal now
        taken = 1e-3 * call() * chance.lognormal(0, 0.05) * (2 if now % 2 > 1 else 1)
        now += taken
        return taken

    monkeypatch.setattr("foveate.measure.timer._seconds", seconds)
    monkeypatch.setattr("foveate.measure.timer.time", SimpleNamespace(perf_counter=lambda: now))
    named = {name: partial(float, value) for name, value in calls.items()}
    found = race(named, seconds=8.0)
    assert list(found) == ["fast", "near", "tenth", "slow"]
    for name, value in calls.items():
        assert found[name].median / found["fast"].median == pytest.approx(value, rel=0.06)
    assert found["slow"].runs < found["tenth"].runs < found["near"].runs <= found["fast"].runs
    assert found["tenth"].low > found["fast"].median
    assert now < 8.1


def test_a_race_of_one_takes_its_share(monkeypatch):
    now = 0.0

    def seconds(call) -> float:
        nonlocal now
        now += call()
        return call()

    monkeypatch.setattr("foveate.measure.timer._seconds", seconds)
    monkeypatch.setattr("foveate.measure.timer.time", SimpleNamespace(perf_counter=lambda: now))
    found = race({"a": lambda: 1e-3, "b": lambda: 9e-3}, seconds=4.0)
    assert found["b"].runs == 8
    assert 2.0 <= now < 2.1


def test_a_noisy_machine_is_said(monkeypatch):
    values = iter([0.001, 0.01] * 100)
    monkeypatch.setattr("foveate.measure.timer._seconds", lambda call: next(values))
    assert timing(lambda: None, seconds=0, least=8).is_noisy


def test_power_laws_are_found():
    x = np.array([1, 2, 4, 8, 16])
    fit = exponent(x, 3 * x**1.5)
    assert (fit.power, fit.scale, fit.r2) == pytest.approx((1.5, 3, 1))
    assert fit.low == pytest.approx(fit.high)
    noisy = exponent(x, 3 * x**1.5 * np.exp(np.random.default_rng(0).normal(0, 0.1, 5)))
    assert noisy.low < 1.5 < noisy.high


def test_correlations_have_intervals():
    chance = np.random.default_rng(0)
    x = chance.normal(size=200)
    figure, low, high = correlation(x, x + chance.normal(size=200))
    assert low < figure < high
    assert low < 2**-0.5 < high
    assert correlation(x, 2 * x + 1)[0] == pytest.approx(1)


def test_means_of_few_have_students_interval():
    """Five values of deviation sqrt(2.5): the table's t of 4 degrees of freedom is 2.776."""
    mean, low, high = mean_interval(np.array([1, 2, 3, 4, 5]))
    assert mean == 3
    assert high - mean == pytest.approx(2.776 * (2.5 / 5) ** 0.5, rel=1e-3)
    assert mean - low == pytest.approx(high - mean)
    assert mean_interval(np.array([1.0]))[1:] == (-np.inf, np.inf)


def test_a_machine_in_a_line():
    facts = {"processor": "Z80", "threads": 1, "date": "2026-01-02T03:04:05+00:00"}
    facts["versions"] = {"torch": "2.9", "timm": "1.0"}
    assert machine_line(facts) == "Z80, 1 thread, torch 2.9, 2026-01-02"
    facts["threads"] = 2
    several = machine_line(facts, ("torch", "openvino", "timm"))
    assert several == "Z80, 2 threads, torch 2.9, timm 1.0, 2026-01-02"
