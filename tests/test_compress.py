"""Edits in the terminal: what they cost is said, kept within the guard, and loads again."""

import json
import sys

import pytest
import torch

from foveate import FoveateError, VisionModel, data, load_model, save
from foveate.backbones import create_model
from foveate.cli import main
from foveate.compress import Asked, compress, parse, remarks, table
from foveate.surgery.channels.remove import Narrow
from foveate.surgery.lineage import lineage
from foveate.surgery.quant_whitepaper import Quantise
from foveate.train import evaluate

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def trained(taught, tmp_path_factory):
    """The folder of a model that knows digits."""
    digits = data.open("digits")
    torch.manual_seed(0)
    model = VisionModel.create("sprint_s", digits.labels, size=16)
    folder = tmp_path_factory.mktemp("trained")
    taught(model, digits, 3, folder / "run")
    save(model, folder / "model")
    return folder / "model"


def run(capsys, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["foveate", "compress", *map(str, words)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code, *capsys.readouterr()


def test_stages_are_measured_and_the_last_is_written(trained, tmp_path, capsys, monkeypatch):
    words = ["--edit", "narrow:share=0.25", "--edit", "quantise:decay=none", "--data", "digits"]
    words += ["--guard", "90", "--out", tmp_path / "small", "--seconds", "0.01", "--json"]
    code, out, err = run(capsys, monkeypatch, trained, *words)
    assert code == 0, err
    facts = json.loads(out)
    rows = facts["stages"]
    assert [row["name"] for row in rows] == [
        "as it was",
        "narrow:share=0.25",
        "quantise:decay=none",
    ]
    assert rows[0]["same"] == 1
    assert rows[0]["parity"] == {"max_error": 0.0, "cosine": pytest.approx(1)}
    assert rows[2]["parity"]["max_error"] > 0
    assert rows[1]["macs"] < 0.7 * rows[0]["macs"]
    assert rows[1]["bytes"] < 0.7 * rows[0]["bytes"]
    assert all(row["latency_ms"]["median"] > 0 for row in rows)
    assert facts["runtime"] == "OpenVINO"
    assert [row["quantised"]["integers"] == [] for row in rows] == [True, True, False]
    assert rows[2]["quantised"]["floats"] == []
    assert [row["strays"] for row in rows[:2]] == [0, 0]
    assert any(line["changed"] for line in facts["coverage"][0]["lines"])
    again = load_model(tmp_path / "small")
    assert [step["edit"] for step in lineage(again)] == ["Narrow", "Quantise"]
    assert lineage(again)[1]["fields"]["decay"] is None
    judges = data.open("digits").splits["val"]
    assert evaluate(again, judges).top1 == rows[2]["top1"]
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    assert table(facts).row_count == 3


@pytest.mark.parametrize(
    ("strays", "overflow", "said"),
    [(None, True, []), (0.02, True, []), (0.1, False, ["10.0%"]), (0.1, True, ["10.0%", "7 bits"])],
)
def test_programs_that_stray_from_their_models_are_said(strays, overflow, said, monkeypatch):
    monkeypatch.setattr("foveate.compress.sums_overflow", lambda: overflow)
    row = {"name": "simulate", "strays": strays, "quantised": {"integers": ["stem"], "floats": []}}
    found = " ".join(remarks({"runtime": "OpenVINO", "stages": [row]}))
    assert ("7 bits" in found) == ("7 bits" in said)
    assert all(part in found for part in said)
    assert bool(found) == bool(said)


def test_the_guard_writes_nothing(trained, tmp_path):
    asked = Asked(
        model=str(trained),
        edits=("narrow:share=0.9",),
        source="digits",
        guard=1.0,
        out=tmp_path / "small",
        seconds=0.01,
    )
    with pytest.raises(FoveateError, match=r"cost .* points of accuracy, more than the guard of 1"):
        compress(asked)
    assert not list(tmp_path.iterdir())


def test_architectures_and_bare_networks(tmp_path):
    asked = Asked(model="sprint_s", edits=("merge",), size=16, seconds=0.01)
    facts = compress(asked)
    assert [row["top1"] for row in facts["stages"]] == [None, None]
    save(create_model("timm/resnet10t", num_classes=3), tmp_path / "bare")
    asked = Asked(
        model=str(tmp_path / "bare"),
        edits=("narrow", "mask-smallest:sparsity=0.8"),
        size=32,
        out=tmp_path / "small",
        seconds=0.01,
    )
    zeros = [row["zeros"] for row in compress(asked)["stages"]]
    assert zeros == pytest.approx([0, 0, 0.8], abs=0.001)
    assert load_model(tmp_path / "small").labels == ["0", "1", "2"]


def test_edits_as_text():
    assert parse("narrow:share=0.3,skip=stem+head,by=random") == Narrow(
        share=0.3, skip=("stem", "head"), by="random"
    )
    assert parse("Quantise:per_channel=false") == Quantise(per_channel=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sprint_s"], "there is no edit: give one"),
        (["sprint_s", "--edit", "wither"], "there is no edit 'wither': there are"),
        (["sprint_s", "--edit", "narrow:share"], "'share' in --edit narrow:share is no field"),
        (["sprint_s", "--edit", "narrow:width=2"], "Narrow has no field 'width'"),
        (["sprint_s", "--edit", "narrow:share=2"], "share is 2"),
        (["sprint_s", "--edit", "quantise:weight_bits=x"], "is not understood"),
        (["sprint_s", "--edit", "quantise"], "Quantise decides by real images: give --data"),
        (["sprint_s", "--edit", "merge", "--guard", "1"], "needs labelled images"),
        (["sprint_x", "--edit", "merge"], "no model 'sprint_x'"),
        (["/tmp", "--edit", "merge"], "no model's folder"),
    ],
)
def test_mistakes(words, message, capsys, monkeypatch):
    code, _, err = run(capsys, monkeypatch, *words)
    assert code == 2
    assert message in " ".join(err.split())


def test_edits_are_listed(capsys, monkeypatch):
    code, out, _ = run(capsys, monkeypatch, "sprint_s", "--edit", "list")
    assert code == 0
    assert "Narrow: Remove the same share of every group's channels" in out
    assert "GraphEdit" not in out
