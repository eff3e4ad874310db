"""Every mistake that a person can make gets one clear sentence, exit code 2, and loses nothing."""

import io
import json
import pickle
import shutil
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.cli import main


class Terminal:
    """Runs the command line in this process and keeps what it printed."""

    def __init__(self, capsys, monkeypatch):
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def __call__(self, *words) -> int:
        self._monkeypatch.setattr(sys, "argv", ["foveate", *map(str, words)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        self.out, self.err = self._capsys.readouterr()
        return stop.value.code or 0


@pytest.fixture
def foveate(capsys, monkeypatch):
    return Terminal(capsys, monkeypatch)


def picture(colour: int = 0, side: int = 16) -> Image.Image:
    noise = np.random.default_rng(colour).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def class_folder(root: Path, label: str, count: int = 12) -> None:
    (root / label).mkdir(parents=True)
    for i in range(count):
        picture(zlib.crc32(f"{label}/{i}".encode())).save(root / label / f"{i}.png")


@pytest.fixture
def photos(tmp_path) -> Path:
    root = tmp_path / "photos"
    for label in ("cat", "dog"):
        class_folder(root, label)
    return root


# Each makes a source that cannot be used, and says what the sentence must mention.


def missing(root):
    return root / "nowhere", "nowhere"


def empty_folder(root):
    (root / "empty").mkdir()
    return root / "empty", "empty"


def one_class(root):
    class_folder(root / "one", "cat")
    return root / "one", "class"


def loose_images(root):
    (root / "loose").mkdir()
    for i in range(3):
        picture(i).save(root / "loose" / f"{i}.png")
    return root / "loose", "class"


def second_class_empty(root):
    class_folder(root / "half", "cat")
    (root / "half" / "dog").mkdir()
    return root / "half", "class"


def all_damaged(root):
    for label in ("cat", "dog"):
        (root / "bad" / label).mkdir(parents=True)
        for i in range(5):
            (root / "bad" / label / f"{i}.jpg").write_bytes(b"no image at all")
    return root / "bad", "bad"


def broken_zip(root):
    (root / "images.zip").write_bytes(b"PK\x03\x04 and then nothing")
    return root / "images.zip", "images.zip"


def broken_tar(root):
    (root / "images.tar.gz").write_bytes(b"\x1f\x8b nothing")
    return root / "images.tar.gz", "images.tar.gz"


def empty_zip(root):
    zipfile.ZipFile(root / "none.zip", "w").close()
    return root / "none.zip", "none.zip"


def table_without_columns(root):
    (root / "table.csv").write_text("file,kind\na.png,cat\n")
    return root / "table.csv", "label"


def empty_table(root):
    (root / "table.csv").write_text("")
    return root / "table.csv", "table.csv"


def table_of_missing_files(root):
    (root / "table.csv").write_text("path,label\na.png,cat\nb.png,dog\n")
    return root / "table.csv", "table.csv"


def text_file(root):
    (root / "notes.txt").write_text("hello")
    return root / "notes.txt", "notes.txt"


def arrays_without_targets(root):
    np.savez(root / "arrays.npz", images=np.zeros((4, 8, 8, 3), np.uint8))
    return root / "arrays.npz", "targets"


def arrays_of_other_lengths(root):
    np.savez(root / "arrays.npz", images=np.zeros((4, 8, 8, 3), np.uint8), targets=np.arange(3))
    return root / "arrays.npz", "arrays.npz"


def pickled_arrays(root):
    np.savez(root / "arrays.npz", images=np.array([{}], dtype=object), targets=np.arange(1))
    return root / "arrays.npz", "arrays.npz"


def not_an_npz(root):
    (root / "arrays.npz").write_bytes(b"nothing")
    return root / "arrays.npz", "arrays.npz"


SOURCES = [
    missing,
    empty_folder,
    one_class,
    loose_images,
    second_class_empty,
    all_damaged,
    broken_zip,
    broken_tar,
    empty_zip,
    table_without_columns,
    empty_table,
    table_of_missing_files,
    text_file,
    arrays_without_targets,
    arrays_of_other_lengths,
    pickled_arrays,
    not_an_npz,
]


@pytest.mark.parametrize("mistake", SOURCES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("verb", ["fit", "look"])
def test_sources_that_cannot_be_used(foveate, tmp_path, mistake, verb):
    source, mention = mistake(tmp_path)
    words = [verb, source] + (["--out", tmp_path / "run"] if verb == "fit" else [])
    assert foveate(*words) == 2
    assert_one_sentence(foveate.err, mention)


WISHES = {
    "no budget left": (["--minutes", "0"], "minutes"),
    "negative minutes": (["--minutes", "-3"], "minutes"),
    "words for minutes": (["--minutes", "ten"], "minutes"),
    "two budgets": (["--minutes", "1", "--epochs", "1"], "epochs"),
    "no epochs": (["--epochs", "0"], "epochs"),
    "latency without number": (["--latency", "fast"], "fast"),
    "latency of nothing": (["--latency", "0ms"], "0ms"),
    "latency in parsecs": (["--latency", "5pc"], "5pc"),
    "unknown model": (["--model", "convnex_tiny"], "convnext_tiny"),
    "unknown timm model": (["--model", "timm/resnet5O"], "resnet5O"),
    "guard below nothing": (["--guard", "-1"], "guard"),
    "guard beyond everything": (["--guard", "101"], "guard"),
    "size of nothing": (["--size", "0"], "size"),
    "size below all models": (["--size", "4"], "4 pixels"),
    "size below a model": (["--size", "7", "--model", "convnext_atto"], "32 pixels"),
    "size below timm's": (["--size", "7", "--model", "timm/vgg11"], "another --size"),
    "batch of nothing": (["--batch", "0"], "batch"),
    "bad share": (["--max-bad", "2"], "max_bad"),
    "unknown option": (["--minuets", "3"], "minuets"),
}


@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES)
def test_wishes_that_cannot_be_met(foveate, photos, tmp_path, wish):
    words, mention = wish
    assert foveate("fit", photos, "--out", tmp_path / "run", *words) == 2
    assert_one_sentence(foveate.err, mention)


def test_latency_that_nothing_meets(foveate, photos, tmp_path):
    words = ["--out", tmp_path / "run", "--latency", "0.1us", "--model", "sprint_s"]
    assert foveate("fit", photos, *words) == 2
    assert_one_sentence(foveate.err, "--latency")


def test_fit_needs_somewhere_to_write(foveate, photos):
    assert foveate("fit", photos) == 2
    assert_one_sentence(foveate.err, "--out")


def test_output_that_is_a_file(foveate, photos, tmp_path):
    (tmp_path / "run").write_text("mine")
    assert foveate("fit", photos, "--out", tmp_path / "run") == 2
    assert_one_sentence(foveate.err, "run")
    assert (tmp_path / "run").read_text() == "mine"


def test_output_that_holds_something_else(foveate, photos, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    assert foveate("fit", photos, "--out", tmp_path / "run") == 2
    assert_one_sentence(foveate.err, "thesis.txt")
    assert (tmp_path / "run" / "thesis.txt").read_text() == "mine"


def test_output_below_a_file(foveate, photos, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert foveate("fit", photos, "--out", tmp_path / "file" / "run") == 2
    assert_one_sentence(foveate.err, "file")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a place that root cannot write")
@pytest.mark.parametrize("place", ["/proc/run", "/proc/self/run", "/dev/null/run"])
def test_output_that_cannot_be_written(foveate, photos, place):
    assert foveate("fit", photos, "--out", place) == 2
    assert_one_sentence(foveate.err, place)


def test_damaged_run(foveate, photos, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"asked": ')
    assert foveate("fit", photos, "--out", tmp_path / "run") == 2
    assert_one_sentence(foveate.err, "run.json")


MODELS = {
    "missing": lambda folder: None,
    "a file": lambda folder: folder.write_text("model"),
    "empty": lambda folder: folder.mkdir(),
    "no weights": lambda folder: (folder.mkdir(), (folder / "model.json").write_text("{}")),
    "broken json": lambda folder: (folder.mkdir(), (folder / "model.json").write_text("{")),
    "a pickle": lambda folder: folder.write_bytes(pickle.dumps({"weights": 1})),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_models_that_cannot_be_loaded(foveate, tmp_path, make):
    make(tmp_path / "model")
    picture().save(tmp_path / "a.png")
    assert foveate("predict", tmp_path / "model", tmp_path / "a.png") == 2
    assert_one_sentence(foveate.err, "model")


@pytest.fixture
def model(tmp_path) -> Path:
    """An untrained model's folder."""
    import torch

    from foveate.deploy import save
    from foveate.vision import VisionModel

    torch.manual_seed(0)
    save(VisionModel.create("sprint_s", ["cat", "dog"], size=12), tmp_path / "a-model")
    return tmp_path / "a-model"


IMAGES = {
    "missing": lambda root: root / "nowhere.png",
    "a text": lambda root: (root / "notes.txt").write_text("hello") and root / "notes.txt",
    "empty": lambda root: (root / "empty.png").touch() or root / "empty.png",
    "an empty folder": lambda root: (root / "none").mkdir() or root / "none",
}


@pytest.mark.parametrize("make", IMAGES.values(), ids=IMAGES)
def test_images_that_cannot_be_read(foveate, model, tmp_path, make):
    path = make(tmp_path)
    assert foveate("predict", model, path) == 2
    assert_one_sentence(foveate.err, path.name)


USES = {
    "predict as what it is not": (["predict", "{model}", "{image}", "--format", "onyx"], "onyx"),
    "predict as what was not exported": (
        ["predict", "{model}", "{image}", "--format", "onnx"],
        "onnx",
    ),
    "eval on other labels": (["eval", "{model}", "digits"], "does not know"),
    "eval on an unknown split": (["eval", "{model}", "{photos}", "--split", "dev"], "dev"),
    "eval on nothing": (["eval", "{model}", "nowhere"], "nowhere"),
    "export with other labels": (["export", "{model}", "digits", "--out", "{new}"], "not know"),
    "export in an unknown format": (
        ["export", "{model}", "{photos}", "--out", "{new}", "--format", "onyx"],
        "onyx",
    ),
    "export with no such guard": (
        ["export", "{model}", "{photos}", "--out", "{new}", "--guard", "-1"],
        "guard",
    ),
    "export over something else": (
        ["export", "{model}", "{photos}", "--out", "{photos}"],
        "no model",
    ),
    "export onto a file": (["export", "{model}", "{photos}", "--out", "{image}"], "no model"),
    "export of nothing": (["export", "{photos}", "{photos}", "--out", "{new}"], "model.json"),
    "export to nowhere": (["export", "{model}", "{photos}", "--out", "/proc/x"], "/proc/x"),
    "report of a model": (["report", "{model}"], "run.json"),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_uses_of_a_model_that_cannot_be(foveate, model, photos, tmp_path, use):
    picture().save(tmp_path / "a.png")
    before = sorted(photos.rglob("*"))
    places = {"model": model, "photos": photos, "image": tmp_path / "a.png", "new": tmp_path / "n"}
    words, mention = use
    assert foveate(*(word.format(**places) for word in words)) == 2
    assert_one_sentence(foveate.err, mention)
    assert sorted(photos.rglob("*")) == before
    assert not (tmp_path / "n").exists()


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "weights with a flipped bit": lambda m: flip_a_bit(m / "model.safetensors"),
    "weights cut short": lambda m: (m / "model.safetensors").write_bytes(b"\x08"),
    "weights gone": lambda m: (m / "model.safetensors").unlink(),
    "a pickle for weights": lambda m: (m / "model.safetensors").write_bytes(pickle.dumps({"w": 1})),
    "facts with a flipped bit": lambda m: flip_a_bit(m / "model.json"),
    "facts that are a list": lambda m: (m / "model.json").write_text("[]"),
    "facts that are bytes": lambda m: (m / "model.json").write_bytes(b"\xff\xfe\x00"),
    "another label": lambda m: (m / "model.json").write_text(
        (m / "model.json").read_text().replace("cat", "cow")
    ),
}


@pytest.mark.parametrize("harm", DAMAGE.values(), ids=DAMAGE)
def test_damaged_models(foveate, model, tmp_path, harm):
    picture().save(tmp_path / "a.png")
    assert foveate("predict", model, tmp_path / "a.png") == 0
    harm(model)
    assert foveate("predict", model, tmp_path / "a.png") == 2
    assert_one_sentence(foveate.err, "damaged")


@pytest.mark.parametrize("verb", ["predict", "eval", "report", "fit", "look", "export"])
def test_verbs_without_their_arguments(foveate, verb):
    assert foveate(verb) == 2
    assert "rgument" in foveate.err or "ption" in foveate.err


def test_unknown_verb(foveate):
    assert foveate("fti") == 2
    assert_one_sentence(foveate.err, "fti")


def test_report_of_no_run(foveate, tmp_path):
    assert foveate("report", tmp_path) == 2
    assert_one_sentence(foveate.err, "run.json")


PAPERS = {
    "unknown slug": (["show", "inceptionext"], "inceptionnext"),
    "no slug": (["show"], "slug"),
    "unknown kind": (["--kind", "operators"], "operator"),
    "unknown tier": (["--tier", "9"], "tier"),
    "unknown status": (["--status", "done"], "implemented"),
}


@pytest.mark.parametrize("case", PAPERS.values(), ids=PAPERS)
def test_papers_that_are_not_there(foveate, case):
    words, mention = case
    assert foveate("papers", *words) == 2
    assert_one_sentence(foveate.err, mention)


MEASURING = {
    "profile of an unknown model": (["profile", "convnex_tiny"], "convnext_tiny"),
    "profile against an unknown model": (
        ["profile", "sprint_s", "--compare", "sprint_x"],
        "sprint_s",
    ),
    "profile of no pixels": (["profile", "sprint_s", "--resolution", "0"], "resolution"),
    "profile of no images": (["profile", "sprint_s", "--batch", "0"], "batch"),
    "profile in an unknown runtime": (["profile", "sprint_s", "--runtime", "tvm"], "onnx"),
    "profile on images that are not there": (
        ["profile", "sprint_s", "--data", "nowhere"],
        "nowhere",
    ),
    "comparison of one": (["compare", "identity"], "two mixers"),
    "comparison with an unknown mixer": (["compare", "identity", "attention9"], "depthwise3"),
    "comparison at equal something": (
        ["compare", "identity", "eca", "--equal", "it"],
        "params",
    ),
    "comparison without training": (["compare", "identity", "eca", "--epochs", "0"], "epochs"),
    "comparison on nothing": (["compare", "identity", "eca", "--data", "nowhere"], "nowhere"),
    "no claim named": (["reproduce"], "--all"),
    "claims named, and all": (["reproduce", "pflayer", "--all"], "--all"),
    "claim of an unknown paper": (["reproduce", "pflayr"], "pflayer"),
    "claim that nobody wrote": (["reproduce", "imagenet32"], "no claim"),
    "claim in no time": (["reproduce", "pflayer", "--minutes", "0"], "minutes"),
    "claim by nobody": (["reproduce", "pflayer", "--jobs", "0"], "jobs"),
    "claim by an unknown engine": (["reproduce", "pflayer", "--engine", "slurm"], "ray"),
}


@pytest.mark.parametrize("case", MEASURING.values(), ids=MEASURING)
def test_measurements_that_cannot_be_made(foveate, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    words, mention = case
    assert foveate(*words) == 2
    assert_one_sentence(foveate.err, mention)
    assert list(tmp_path.iterdir()) == []


def test_mixers_are_listed(foveate):
    assert foveate("compare") == 0
    assert "inceptionnext" in foveate.out.split()
    assert foveate("compare", "--json") == 0
    assert "depthwise7" in json.loads(foveate.out)


@pytest.mark.slow
def test_measuring_leaves_pages(foveate, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert foveate("profile", "sprint_s", "--resolution", "32", "--seconds", "0.1") == 0
    assert "openvino" in foveate.out
    assert "</html>" in (tmp_path / "profile.html").read_text()
    words = ["compare", "identity", "eca", "--epochs", "1", "--seeds", "2", "--json"]
    assert foveate(*words) == 0
    assert {row["name"] for row in json.loads(foveate.out)["mixers"]} == {"identity", "eca"}
    assert "</html>" in (tmp_path / "comparison.html").read_text()
    assert foveate("reproduce", "pflayer", "--minutes", "0.05") == 0
    assert "pflayer" in foveate.out
    assert "## pflayer" in (tmp_path / "claims.md").read_text()


def test_papers_as_json(foveate):
    assert foveate("papers", "large kernel", "--json") == 0
    rows = json.loads(foveate.out)
    assert "unireplknet" in {row["slug"] for row in rows}
    assert set(rows[0]["status"]) == {"implemented", "checked", "claimed"}


def test_models_that_match(foveate):
    assert foveate("models", "inception*", "--json") == 0
    assert "inception_next_tiny" in json.loads(foveate.out)
    assert foveate("models", "nothing*") == 2


def test_help_teaches(foveate):
    assert foveate("--help") == 0
    assert "foveate fit digits" in foveate.out


def test_look_as_json(foveate, photos):
    (photos / "cat" / "bad.jpg").write_bytes(b"")
    assert foveate("look", photos, "--json") == 0
    summary = json.loads(foveate.out)
    assert summary["labels"] == ["cat", "dog"]
    assert summary["quarantine"]["count"] == 1


def assert_one_sentence(text: str, mention: str) -> None:
    assert text.startswith("error: "), text
    assert "Traceback" not in text
    assert len(text.strip().splitlines()) == 1, text
    assert mention.lower() in text.lower()


@pytest.mark.slow
def test_the_whole_path_and_then_damage(foveate, tmp_path):
    run = tmp_path / "run"
    words = ["fit", "digits", "--out", run, "--epochs", "4", "--model", "sprint_s"]
    assert foveate(*words) == 0, foveate.err
    facts = json.loads((run / "run.json").read_text())
    assert facts["test"]["exported"]["top1"] > 0.9
    assert "<html" in (run / "report.html").read_text()

    assert foveate(*words) == 0
    assert "finished" in foveate.out
    assert foveate(*words, "--seed", "1") == 2
    assert_one_sentence(foveate.err, "seed")

    page = io.BytesIO()
    picture(side=8).save(page, "png")
    (tmp_path / "a.png").write_bytes(page.getvalue())
    assert foveate("predict", run / "model", tmp_path / "a.png", "--json") == 0
    assert json.loads(foveate.out)[0]["label"] in [str(d) for d in range(10)]
    assert foveate("eval", run / "model", "digits", "--json") == 0
    assert json.loads(foveate.out)["top1"] == pytest.approx(facts["test"]["exported"]["top1"])
    assert foveate("eval", run / "model", "digits", "--split", "dev") == 2
    assert_one_sentence(foveate.err, "dev")

    (tmp_path / "broken.png").write_bytes(page.getvalue()[:60])
    assert foveate("predict", run / "model", tmp_path / "broken.png") == 2
    assert_one_sentence(foveate.err, "broken.png")

    words = ["export", run / "trained", "digits", "--out", tmp_path / "again"]
    assert foveate(*words, "--format", "onnx", "--json") == 0, foveate.err
    assert [row["name"] for row in json.loads(foveate.out)["formats"]] == ["torch", "onnx"]
    assert foveate("predict", tmp_path / "again", tmp_path / "a.png", "--format", "onnx") == 0
    assert foveate(*words, "--format", "onyx") == 2
    assert_one_sentence(foveate.err, "onyx")
    assert foveate(*words, "--guard", "101") == 2
    assert_one_sentence(foveate.err, "guard")
    assert foveate(*words[:-1], tmp_path) == 2
    assert_one_sentence(foveate.err, "no model")
    assert (tmp_path / "a.png").exists()

    for name in ("model.safetensors", "model.json"):
        damaged = tmp_path / f"damaged-{name}"
        shutil.copytree(run / "model", damaged)
        content = bytearray((damaged / name).read_bytes())
        content[len(content) // 2] ^= 0xFF
        (damaged / name).write_bytes(content)
        assert foveate("predict", damaged, tmp_path / "a.png") == 2
        assert_one_sentence(foveate.err, "damaged")
