"""Successive halving, against the schedule that its paper gives."""

from functools import partial

import pytest

from foveate.train import Outcome, Recipe, Runner, race


def outcome(top1: float) -> Outcome:
    return Outcome(top1, 1.0, 1.0, 10, 6.0, 100.0, 0.0, 1e9, "float32")


def runners(accuracies: dict[str, float], log: list) -> list[Runner]:
    def train(name, recipe, folder):
        log.append((name, recipe.minutes, recipe.epochs))
        return outcome(accuracies[name])

    recipe = Recipe(epochs=1)
    return [Runner(name, recipe, partial(train, name)) for name in accuracies]


@pytest.mark.parametrize("budget", ["minutes", "epochs"])
def test_halves_run_twice_as_long_and_the_budget_is_used_up(tmp_path, budget):
    log: list = []
    field = runners({"a": 0.1, "b": 0.4, "c": 0.3, "d": 0.2}, log)
    winner = race(field, tmp_path / "race", **{budget: 8.0})
    which = 1 if budget == "minutes" else 2
    assert [(entry[0], entry[which]) for entry in log] == [
        *[(name, pytest.approx(1.0)) for name in "abcd"],
        *[(name, pytest.approx(2.0)) for name in "bc"],
    ]
    assert sum(entry[which] for entry in log) == pytest.approx(8.0)
    assert winner.name == "b"
    assert [len(runner.rungs) for runner in field] == [1, 2, 2, 1]


def test_a_single_runner_wins_without_running(tmp_path):
    log: list = []
    (only,) = runners({"a": 0.5}, log)
    assert race([only], tmp_path / "race", minutes=1.0) is only
    assert log == []
    assert only.top1 is None


def test_three_runners(tmp_path):
    log: list = []
    winner = race(runners({"a": 0.1, "b": 0.2, "c": 0.3}, log), tmp_path / "race", minutes=6.0)
    assert [name for name, *_ in log] == ["a", "b", "c", "c", "b"]
    assert sum(minutes for _, minutes, _ in log) == pytest.approx(6.0)
    assert winner.name == "c"


def test_each_training_has_a_folder_of_its_own_and_none_is_left(tmp_path):
    folders = []

    def train(recipe, folder):
        folder.mkdir(parents=True)
        folders.append(folder)
        return outcome(0.5)

    recipe = Recipe(epochs=1)
    field = [Runner(name, recipe, train) for name in ("timm/a", "b", "c")]
    race(field, tmp_path / "race", epochs=1.0)
    assert len(set(folders)) == len(folders) == 5
    assert not (tmp_path / "race").exists()


def test_each_is_told_when_it_has_run(tmp_path):
    told = []
    race(
        runners({"a": 0.1, "b": 0.2}, []),
        tmp_path / "race",
        minutes=1.0,
        told=lambda runner: told.append((runner.name, runner.top1)),
    )
    assert told == [("a", 0.1), ("b", 0.2)]
