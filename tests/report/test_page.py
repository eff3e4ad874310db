"""The page as a whole: parses, stands alone, survives what is missing and what is hostile."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from example_runs import LABELS, arrays, facts, leave, metrics
from strict_reader import Reader

from foveate.errors import FoveateError
from foveate.report.page import SECTIONS, write

HOSTILE = "<script>alert(1)</script>\"'&\x00\u202e\udcff"


def read(run: Path) -> Reader:
    return Reader(write(run).read_text(encoding="utf-8"))


def test_has_every_section_in_order(whole_run):
    page = read(whole_run)
    assert page.ids() == [name for name, _, _ in SECTIONS]
    assert {f"#{name}" for name in page.ids()} == {a["href"] for t, a in page.tags if t == "a"}


def test_says_the_figures_of_the_run(whole_run):
    text = read(whole_run).text
    for said in [
        "inceptionnext_pico_32 as OpenVINO int8 gets 85.7% of 600 held-out images right",
        "82.7% to 88.3%",
        "used 41.0% of this machine's best float32 arithmetic and waited 1.2% of their time",
        "within the 5 ms asked for",
        "910 kB",
        "27 files could not be used",
        "truncated after 512 bytes",
        "test/dog/00931.png",
        "slower than 5 ms",
        "43.1% → 65.5% → 77.1%",
        "loses 4.9 points",
        "no openvino-bf16, not tried: this processor does not compute in bfloat16",
        "(−0.40 points)",
        "foveate fit photos/cifar --out runs/cifar --minutes 10 --latency 5ms",
        "2.15.0",
    ]:
        assert said in text


def test_counts_its_mistakes_from_the_logits(whole_run):
    kept = arrays()
    wrong = int((kept["logits"].argmax(1) != kept["targets"]).sum())
    page = read(whole_run)
    assert f"{wrong} of 600 test images are taken for another class" in page.text
    assert sum(tag == "img" for tag, _ in page.tags) == 40 + 2 * 16


def test_stands_alone(whole_run):
    page = read(whole_run)
    assert not {"script", "link", "iframe", "base"} & {tag for tag, _ in page.tags}
    assert not any("srcset" in attributes for _, attributes in page.tags)
    sources = [str(attributes["src"]) for _, attributes in page.tags if "src" in attributes]
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    style = (whole_run / "report.html").read_text()
    assert not re.search(r"https?://|url\(|@import", style)


def test_fits_a_phone_and_both_colour_schemes(whole_run):
    page = read(whole_run)
    metas = [a for t, a in page.tags if t == "meta"]
    assert any(a.get("name") == "viewport" and "device-width" in str(a["content"]) for a in metas)
    assert "prefers-color-scheme: dark" in (whole_run / "report.html").read_text()


def test_hostile_names_stay_text(tmp_path):
    labels = [f"{HOSTILE}{i}" for i in range(10)]
    said = json.loads(json.dumps(facts(labels)).replace("photos/cifar", "<img src=x onerror=y>"))
    said["race"]["candidates"][0]["name"] = HOSTILE
    said["deploy"]["formats"][3]["name"] = said["training"]["model"] = HOSTILE
    said["recipe"][HOSTILE] = HOSTILE
    page = read(leave(tmp_path / "hostile", said, metrics(), arrays()))
    assert "script" not in {tag for tag, _ in page.tags}
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert "alert(1)" in page.text
    assert "\x00" not in page.text


def test_a_run_that_has_only_begun_says_what_is_missing(begun_run):
    page = read(begun_run)
    assert page.ids() == [name for name, _, _ in SECTIONS]
    assert "nothing is trained yet" in page.text
    assert page.text.count("yet") >= 6


@pytest.mark.parametrize("gone", [None, *facts(LABELS)])
@pytest.mark.parametrize("value", ["absent", None, [], {}, "nonsense", 3.5])
def test_any_part_of_run_json_may_be_missing_or_odd(tmp_path, gone, value):
    said = facts(LABELS)
    if value == "absent":
        said.pop(gone, None)
    elif gone:
        said[gone] = value
    assert read(leave(tmp_path, said)).ids() == [name for name, _, _ in SECTIONS]


@pytest.mark.parametrize("gone", list(arrays(2, 20)))
def test_any_array_may_be_missing(tmp_path, gone):
    kept = {k: v for k, v in arrays().items() if k != gone}
    assert read(leave(tmp_path, facts(LABELS), [], kept)).ids()


def test_every_key_inside_may_be_missing(tmp_path):
    """Each leaf and branch of run.json is taken away once."""

    def paths(value, at=()):
        children = value.items() if isinstance(value, dict) else []
        children = enumerate(value[:1]) if isinstance(value, list) else children
        for key, child in children:
            yield (*at, key)
            yield from paths(child, (*at, key))

    for path in paths(facts(LABELS)):
        said = facts(LABELS)
        inside = said
        for key in path[:-1]:
            inside = inside[key]
        del inside[path[-1]]
        Reader(write(leave(tmp_path, said)).read_text())


def test_stopped_while_training(tmp_path):
    said = {k: v for k, v in facts(LABELS).items() if k not in ("training", "deploy", "test")}
    run = leave(tmp_path, said, metrics()[:40])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 9999, "lo')
    page = read(run)
    assert "not trained to its end" in page.text
    assert "Training is not finished" in page.text


def test_losses_that_are_not_finite_are_left_out(tmp_path):
    lines = [*metrics(), {"kind": "train", "step": 9999, "epoch": 15, "loss": float("nan")}]
    text = write(leave(tmp_path, facts(LABELS), lines)).read_text()
    assert not re.search(r"\bnan\b|\binf\b", text.split("</style>")[1])


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 broken", b"\x80\x04pickle"])
def test_damaged_arrays_are_as_good_as_none(whole_run, damage):
    (whole_run / "analysis.npz").write_bytes(damage)
    assert "has not been tested yet, so its mistakes" in read(whole_run).text


def test_pickled_arrays_are_not_opened(whole_run):
    np.savez(whole_run / "analysis.npz", logits=np.array([{}], dtype=object))
    assert "so its mistakes are not known" in read(whole_run).text


@pytest.mark.parametrize("classes", [1, 2, 31, 1000])
def test_any_number_of_classes_stays_light(tmp_path, classes):
    labels = [f"class {i}" for i in range(classes)]
    kept = arrays(classes, max(100, 2 * classes), side=96)
    kept["samples"], kept["sample_targets"] = kept["samples"][:160], kept["sample_targets"][:160]
    path = write(leave(tmp_path, facts(labels), metrics(), kept))
    Reader(path.read_text())
    assert path.stat().st_size < 2_000_000


def test_temperature_scaling_is_shown_where_it_is_known(tmp_path):
    said = facts(LABELS)
    said["test"]["temperature"] = 1.7
    text = read(leave(tmp_path, said, [], arrays())).text
    assert "After temperature scaling, T = 1.70" in text


def test_no_run_is_a_clear_error(tmp_path):
    with pytest.raises(FoveateError, match=r"run\.json.*give the folder of a run"):
        write(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(FoveateError, match="damaged"):
        write(tmp_path)
