"""The search finds what looking everywhere finds, and the choice follows from the wish."""

import itertools
from dataclasses import replace

import pytest
from torch import nn

from foveate.errors import FoveateError
from foveate.guidance.bench import Figures, Lost, Started
from foveate.guidance.search import Search, Trial, chosen, front
from foveate.guidance.space import Choice, Space
from foveate.guidance.wish import Budget, Wish
from foveate.measure import Timing

pytest.importorskip("optuna")


def trial(ms, points, **fields):
    times = {"median": ms, "low": ms, "high": ms}
    figures = Figures(times, Lost(points, points - 1, points + 1), 0.9, 100, 100)
    return Trial(Choice(**fields), "", (), figures)


ORIGINAL = trial(4.0, 0.0)
SLIGHT = trial(3.0, 0.5, removed=10)
INTEGERS = trial(2.5, -0.2, numbers="int8")
BOTH = trial(1.5, 0.9, removed=10, numbers="int8")
STRONG = trial(1.0, 5.0, removed=50, numbers="int8")
BROKEN = Trial(Choice(removed=70), "", why="nothing would stay")
ALL = [ORIGINAL, SLIGHT, INTEGERS, BOTH, STRONG, BROKEN]


def test_the_front_has_no_gain_by_chance():
    assert front(ALL) == [STRONG, BOTH, INTEGERS]
    lucky = trial(2.8, -3.0, removed=20)
    assert front([*ALL, lucky]) == [STRONG, BOTH, INTEGERS]


@pytest.mark.parametrize(
    ("wish", "best", "met"),
    [
        ({}, BOTH, True),
        ({"guard": 0.1}, INTEGERS, True),
        ({"guard": 10.0}, STRONG, True),
        ({"latency_ms": 5.0}, INTEGERS, True),  # as accurate as the original, and faster
        ({"latency_ms": 2.0}, BOTH, True),
        ({"latency_ms": 1.2}, BOTH, False),
        ({"latency_ms": 1.2, "guard": 5.0}, STRONG, True),
        ({"latency_ms": 0.5, "guard": 0.0}, INTEGERS, False),
    ],
)
def test_what_is_chosen(wish, best, met):
    assert chosen(ALL, Wish(**wish)) == (best, met)


class Tagged(nn.Module):
    """A model that is nothing but its composition."""

    def __init__(self, choice):
        super().__init__()
        self.choice = choice


class Plane(Space):
    """Compositions of which nothing is made."""

    def __init__(self, **may):
        self.levels = {
            "removed": (0, 5, *range(10, 80, 10)),
            "multiple": (1, 8),
            "tuned": (False, True) if may.get("tuned") else (False,),
            "numbers": ("float32", "int8", "weights8", "weights4"),
            "floats": (0, 1, 2, 4),
            "corrected": (False, True) if may.get("corrected") else (False,),
        }
        self._sensitive = {name: list("abcdef") for name in ("int8", "weights8", "weights4")}
        self.made_so_far = []

    def made(self, choice):
        self.made_so_far.append(choice)
        if choice.numbers == "weights4" and choice.removed == 70:
            raise FoveateError("nothing would stay")
        return Tagged(choice)


class Formula:
    """Time and loss by formula: widths cost more and more, integers little."""

    original_macs = 100

    def __init__(self):
        self.original = Started(Tagged(Choice()), None)

    def start(self, model):
        return Started(model, None)

    def measure(self, program):
        c = program.model.choice
        kinds = {"float32": (1.0, 0.0), "int8": (0.5, 0.8), "weights8": (1.0, 0.1)}
        pace, harm = kinds.get(c.numbers, (1.05, 2.0))
        pace += 0.05 * c.floats if c.numbers == "int8" else 0
        ms = 4 * pace * (1 - c.removed / 100) * (0.9 if c.multiple == 8 else 1)
        harm *= 0.2 if c.corrected else 1
        lost = harm / (1 + c.floats) + (c.removed / 25) ** 2 * (1.2 if c.multiple == 8 else 1)
        lost = lost * (0.2 if c.tuned else 1)
        times = {"median": ms, "low": ms, "high": ms}
        return Figures(times, Lost(lost, lost, lost), 0.9, 1, 100 - c.removed)

    def times(self, programs):
        found = [self.measure(program).milliseconds["median"] / 1e3 for program in programs]
        return [Timing(seconds, seconds, seconds, 10) for seconds in found]


def everywhere(space):
    """What every composition would come to."""
    bench, found = Formula(), {}
    for values in itertools.product(*space.levels.values()):
        choice = space.plain(Choice(**dict(zip(space.levels, values, strict=True))))
        if not (choice.numbers == "weights4" and choice.removed == 70):
            figures = bench.measure(Started(Tagged(choice), None))
            found[choice] = Trial(choice, "", (), figures)
    return list(found.values())


def searched(wish, seconds=1e9, now=lambda: 0.0, **may):
    search = Search(Plane(**may), Formula(), wish, Budget(seconds, now))
    search.run()
    return search


@pytest.mark.parametrize(
    "fields",
    [
        {"latency_ms": 1.6, "tries": 40},
        pytest.param({"tries": 80}, marks=pytest.mark.slow),
        pytest.param({"tries": 80, "seed": 1, "latency_ms": 2.5}, marks=pytest.mark.slow),
        pytest.param({"tries": 80, "seed": 2, "guard": 3.0}, marks=pytest.mark.slow),
    ],
)
def test_finds_what_looking_everywhere_finds(fields):
    wish = Wish(**fields)
    search = searched(wish)
    best, met = chosen([*search.finalists, search.original], wish)
    truth, possible = chosen(everywhere(search.space), wish)
    assert met == possible
    assert len(search.trials) <= wish.tries
    # nothing next to it is better, and it is as good as the best there is, or nearly
    near = [t for t in everywhere(search.space) if t.choice in search.space.neighbours(best.choice)]
    assert chosen([best, *near], wish)[0].choice == best.choice
    key = (lambda t: t.ms) if wish.latency_ms is None else (lambda t: t.lost)
    assert key(best) <= 1.1 * key(truth) + 0.05


def test_a_seed_decides_everything():
    wish = Wish(tries=30, latency_ms=1.6, seed=3)
    first, second = searched(wish), searched(wish)
    assert first.trials == second.trials
    assert first.space.made_so_far == second.space.made_so_far


def test_what_cannot_be_made_is_kept_with_its_reason():
    search = Search(Plane(), Formula(), Wish(), Budget(1e9, lambda: 0.0))
    search._try(Choice())
    failed = search._try(Choice(removed=70, numbers="weights4"))
    assert (failed.figures, failed.why) == (None, "nothing would stay")
    assert chosen(list(search.trials.values()), Wish())[0] == search.original


def test_time_ends_the_search_but_not_the_answer():
    clock = itertools.count()
    search = searched(Wish(tries=40), seconds=20, now=lambda: float(next(clock)))
    assert 1 < len(search.trials) < 20
    assert search.cut_short == "the budget of 600 seconds"
    assert searched(Wish(tries=10)).cut_short == ""
    spent = searched(Wish(), seconds=1e-9, now=lambda: float(next(clock)))
    assert list(spent.trials) == [Choice()]
    assert spent.finalists == [spent.original]


def test_the_keyboard_ends_the_search_but_not_the_answer():
    class Stopped(Formula):
        def start(self, model):
            if model.choice.removed == 30:
                raise KeyboardInterrupt
            return super().start(model)

    search = Search(Plane(), Stopped(), Wish(), Budget(1e9, lambda: 0.0))
    search.run()
    assert search.cut_short == "the keyboard"
    assert {t.choice.numbers for t in search.finalists} == {"int8", "float32"}


def met_only_with(field, wish):
    """The search that meets a wish by setting a field, without which nothing does."""
    search = searched(wish, **{field: True})
    best, met = chosen(search.finalists, wish)
    assert met
    assert getattr(best.choice, field)
    assert not chosen(everywhere(Plane()), wish)[1]
    return search


def test_tuning_takes_those_that_are_fast_enough_and_lose_too_much():
    wish = Wish(tries=40, latency_ms=1.2, tune=1.0)
    search = met_only_with("tuned", wish)
    tuned = [t for t in search.trials.values() if t.choice.tuned]
    assert all(t.choice.removed for t in tuned)


def test_biases_are_corrected_where_integers_lose_too_much():
    wish = Wish(tries=40, latency_ms=2.0, guard=0.2)
    search = met_only_with("corrected", wish)
    # that which loses least comes first
    trials = list(search.trials.values())
    first = next(i for i, trial in enumerate(trials) if trial.choice.corrected)
    waiting = [t for t in trials[:first] if t.choice.numbers == "int8" and t.ms <= 2.0]
    least = min(waiting, key=lambda t: t.lost)
    assert least.lost > wish.guard
    assert trials[first].choice == replace(least.choice, corrected=True)


def test_names_say_what_was_done():
    search = searched(Wish(tries=1))
    figures = Formula().measure(Started(Tagged(Choice(removed=30)), None))
    names = {
        search._name(Choice(), figures): "as it was",
        search._name(Choice(removed=40, multiple=8, tuned=True), None): (
            "40% of MACs removed in 8s, tuned"
        ),
        search._name(Choice(removed=40, numbers="int8", floats=2), figures): (
            "30% of MACs removed, INT8, 2 in float"
        ),
        search._name(Choice(numbers="int8", corrected=True), figures): "INT8, biases corrected",
    }
    for got, wanted in names.items():
        assert got == wanted


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"latency_ms": 0.0}, "latency is 0 ms: give more than 0"),
        ({"guard": 101.0}, "guard is 101"),
        ({"tune": -1.0}, "tune is -1"),
        ({"by": "luck"}, "by is 'luck': choose accuracy or agreement"),
        ({"budget": 0.0}, "budget is 0: give more than 0 seconds"),
        ({"tries": 0}, "tries is 0: give 1 or more"),
    ],
)
def test_mistakes(fields, message):
    with pytest.raises(FoveateError, match=message):
        Wish(**fields)
