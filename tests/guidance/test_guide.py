"""Guidance as a whole, on digits, judged in PyTorch by a stopwatch that counts."""

import sys

import numpy as np
import pytest
import torch
from counting_watch import counted, small_net

from foveate import FoveateError, VisionModel, load_model, save
from foveate.cli import main
from foveate.compress import evenly
from foveate.deploy.images import split_input
from foveate.guidance import Wish, guide
from foveate.guidance.bench import Bench
from foveate.guidance.words import front_table
from foveate.measure import Timing, count
from foveate.surgery.lineage import lineage
from foveate.surgery.storage import Store
from foveate.train import evaluate

pytest.importorskip("optuna")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SHORT = {"tries": 6, "probes": 40, "calibration": 32}


@pytest.fixture(scope="module")
def guided(trained, digits):
    options = {"runtime": "PyTorch", "stopwatch": counted, "now": lambda: 0.0}
    return guide(trained, digits, Wish(guard=3.0, **SHORT), **options)


def test_the_chosen_one_is_what_its_row_says(guided, trained, digits, tmp_path):
    assert guided.met
    best = next(row for row in guided.facts["trials"] if row["chosen"])
    assert len(guided.facts["trials"]) <= 6
    assert [step["edit"] for step in lineage(guided.model)] == best["edits"]
    split = digits.splits["val"]
    before, after = evaluate(trained, split), evaluate(guided.model, split)
    figures = best["figures"]
    assert figures["right"] == pytest.approx(after.top1)
    assert figures["lost"]["points"] == pytest.approx(100 * (before.top1 - after.top1))
    assert figures["lost"]["points"] <= 3
    assert figures["macs"] == count(guided.model, torch.zeros(1, 3, 16, 16)).macs
    original = guided.facts["trials"][0]["figures"]
    assert figures["latency_ms"]["median"] < original["latency_ms"]["median"]
    save(guided.model, tmp_path / "small")
    images = torch.from_numpy(split_input(split, np.arange(8), trained.preprocess))
    with torch.no_grad():
        torch.testing.assert_close(
            load_model(tmp_path / "small", small_net)(images), guided.model(images), rtol=0, atol=0
        )


def test_facts_are_whole(guided):
    facts = guided.facts
    edits = {row["edit"] for row in facts["sensitivities"]}
    assert {"Remove", "Simulate", "Store"} <= edits
    assert facts["runtime"] == "PyTorch"
    assert facts["held_out"]["images"] == 70
    assert guided.words == facts["words"]
    assert facts["words"][0].startswith("Chosen of ")
    assert front_table(facts).row_count >= 2
    assert sum(row["chosen"] for row in facts["trials"]) == 1


@pytest.mark.slow
def test_the_seed_decides_everything(guided, trained, digits, in_pytorch):
    again = guide(trained, digits, Wish(guard=3.0, **SHORT), **in_pytorch)
    differing = {"machine"}
    for name in set(guided.facts) - differing:
        assert again.facts[name] == guided.facts[name], name


def test_what_cannot_be_met_gives_the_nearest(trained, digits, in_pytorch):
    found = guide(
        trained, digits, Wish(guard=0.5, latency_ms=1e-6, **{**SHORT, "tries": 4}), **in_pytorch
    )
    assert not found.met
    best = next(row for row in found.facts["trials"] if row["chosen"])
    assert best["figures"]["lost"]["points"] <= 0.5
    assert found.words[0].startswith("None of ")
    assert "the latency binds, whatever the guard" in " ".join(found.words)


def test_no_time_leaves_the_model_as_it_was(trained, digits, in_pytorch):
    clock = iter(range(10**9))
    in_pytorch["now"] = lambda: float(next(clock))
    found = guide(trained, digits, Wish(budget=0.5, **SHORT), **in_pytorch)
    assert [row["name"] for row in found.facts["trials"]] == ["as it was"]
    assert found.met
    assert lineage(found.model) == []
    assert "ended by the budget of 0.5 seconds" in found.words[-1]


@pytest.mark.slow
def test_tuning_wins_back_what_channels_took(trained, digits, in_pytorch):
    macs = count(trained, torch.zeros(1, 3, 16, 16)).macs
    wish = Wish(guard=2.0, latency_ms=0.55 * macs / 1e6, tune=3.0, **{**SHORT, "tries": 14})
    in_pytorch["stopwatch"] = lambda programs: counted(programs, faster=1.0)
    found = guide(trained, digits, wish, **in_pytorch)
    rows = found.facts["trials"]
    pairs = [
        (row["figures"], other["figures"])
        for row in rows
        for other in rows
        if row["fields"]["tuned"] and {**row["fields"], "tuned": False} == other["fields"]
    ]
    assert pairs
    assert len(rows) <= 14
    assert all(after["right"] > before["right"] + 0.1 for after, before in pairs)


def test_agreement_needs_no_right_labels(trained, digits, in_pytorch):
    wrong = {name: split.relabelled(split.targets * 0) for name, split in digits.splits.items()}
    data = type(digits)(**{**vars(digits), "splits": wrong})
    found = guide(
        trained, data, Wish(by="agreement", guard=60.0, **{**SHORT, "tries": 3}), **in_pytorch
    )
    assert found.facts["trials"][0]["figures"]["right"] == 1
    assert "points of agreement" in " ".join(found.words)


def test_a_bench_says_where_programs_run(trained, digits, monkeypatch):
    def absent(name, model, start=Bench.__init__.__globals__["start_in"]):
        if name == "OpenVINO":
            raise FoveateError("this needs openvino, which is not installed")
        return start(name, model)

    monkeypatch.setitem(Bench.__init__.__globals__, "start_in", absent)
    split = digits.splits["val"]
    images = split_input(split, evenly(len(split), 20), trained.preprocess)
    bench = Bench(trained, images, None, stopwatch=counted)
    assert bench.runtime == "PyTorch"
    assert bench.no_openvino == "this needs openvino, which is not installed"
    with pytest.raises(FoveateError, match="needs openvino"):
        Bench(trained, images, None, stopwatch=counted, runtime="OpenVINO")


def test_noise_is_timed_again(trained, digits):
    split = digits.splits["val"]
    images = split_input(split, np.arange(2), trained.preprocess)
    looks = iter([0.9, 0.5, 0.7, 0.9, 0.01])

    def noisy(programs):
        width = next(looks)
        return [Timing(1.0, 1.0, 1.0 + width, 10) for _ in programs]

    bench = Bench(trained, images, None, runtime="PyTorch", stopwatch=noisy)
    assert bench.reference.high == 1.5  # the best of three
    figures = bench.measure(bench.original)
    assert not figures.noisy  # the second look was quiet
    assert next(looks, None) is None


def test_nothing_can_be_edited(digits, in_pytorch):
    class Odd(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) @ torch.ones(3, 10)

    model = VisionModel(Odd(), VisionModel.create("sprint_s", digits.labels, 16).preprocess,
                        digits.labels)  # fmt: skip
    with pytest.raises(FoveateError, match="nothing of this model can be edited: Remove: "):
        guide(model.eval(), digits, Wish(**SHORT), **in_pytorch)


def test_a_stored_model_says_what_is_left_out(trained, digits, in_pytorch):
    stored, _ = Store(bits=8, skip=("backbone.0",)).apply(trained)
    found = guide(stored, digits, Wish(**{**SHORT, "tries": 2}), **in_pytorch)
    refused = {row["edit"] for row in found.facts["refused"]}
    assert {"Remove", "Simulate"} <= refused


def run(capsys, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["foveate", "compress", *map(str, words)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code, *capsys.readouterr()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_in_the_terminal(digits, tmp_path, capsys, monkeypatch):
    """Untrained, and in OpenVINO where that is installed."""
    model = VisionModel.create("sprint_s", digits.labels, 16).eval()
    save(model, tmp_path / "model")
    words = [tmp_path / "model", "--auto", "--data", "digits", "--guard", "3", "--tries", "3"]
    words += ["--seconds", "0.02", "--calibration", "32", "--out", tmp_path / "small"]
    words += ["--page", tmp_path / "page.html", "--budget", "60"]
    code, out, err = run(capsys, monkeypatch, *words, "--latency", "10s")
    assert code == 0, err
    assert "points lost" in out
    assert load_model(tmp_path / "small").labels == model.labels
    assert "compositions" in (tmp_path / "page.html").read_text("utf-8")
    (tmp_path / "page.html").unlink()
    code, out, err = run(capsys, monkeypatch, *words, "--latency", "1us")
    assert code == 2
    assert "no composition of edits meets --latency and --guard" in " ".join(err.split())
    assert "None of" in out
    assert (tmp_path / "page.html").exists()
    assert load_model(tmp_path / "small-nearest").labels == model.labels
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"model", "small", "small-nearest", "page.html"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--auto"], "--auto judges by images: give --data"),
        (["--auto", "--data", "digits", "--edit", "merge"], "leave out --edit"),
        (["--latency", "2ms"], "give --auto, too"),
        (["--auto", "--data", "digits", "--latency", "fast"], "'fast' is not a duration"),
        (["--auto", "--data", "digits", "--guard", "-1"], "guard is -1: give 0 to 100"),
        (["--auto", "--data", "digits", "--by", "luck"], "choose accuracy or agreement"),
        (["--auto", "--data", "digits", "--out", "."], "holds something that is no model"),
    ],
)
def test_mistakes(words, message, capsys, monkeypatch, tmp_path):
    (tmp_path / "something").touch()
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, monkeypatch, "sprint_s", *words)
    assert code == 2
    assert message in " ".join(err.split())


def test_optuna_is_an_extra(trained, digits, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(FoveateError, match=r'run pip install "foveate\[search\]"'):
        guide(trained, digits, Wish())
