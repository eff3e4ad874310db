"""Every exported format computes what the trained model computes, and the guard is kept."""

import json
import shutil
from importlib import import_module

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch

from foveate import FoveateError
from foveate.deploy import Search, export, latency, load, load_model
from foveate.deploy.artifact import read_facts, write_facts
from foveate.deploy.candidates import Candidate
from foveate.deploy.formats import write_onnx
from foveate.deploy.runtimes import computes_bfloat16

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_every_format_is_there_and_compared(artifact):
    rows = {row["name"]: row for row in artifact.formats}
    assert {"torch", "torch.export", "onnx", "openvino", "openvino-int8"} <= rows.keys()
    for name, row in rows.items():
        assert row["bytes"] > 0
        assert row["latency_ms"]["low"] <= row["latency_ms"]["median"] <= row["latency_ms"]["high"]
        if name in ("torch", "torch.export", "onnx", "openvino"):
            assert row["parity"]["max_error"] < 1e-4
            assert row["parity"]["agreement"] == 1.0
    assert rows["openvino-int8"]["bytes"] < 0.5 * rows["openvino"]["bytes"]
    assert rows["openvino-int8"]["parity"]["agreement"] > 0.95


def test_the_fastest_that_passed_is_chosen(artifact):
    able = [r for r in artifact.formats if r["passed"] and r["name"] != "torch.export"]
    fastest = min(able, key=lambda row: row["latency_ms"]["median"])
    assert artifact.chosen == fastest["name"]
    assert [r["name"] for r in artifact.formats if r["chosen"]] == [artifact.chosen]


def test_programs_run_without_foveate(artifact, trained):
    images = torch.rand(3, 3, 16, 16)
    expected = trained(images).detach().numpy()
    session = onnxruntime.InferenceSession(artifact.folder / "model.onnx")
    assert max(i.version for i in onnx.load(artifact.folder / "model.onnx").opset_import) >= 17
    np.testing.assert_allclose(
        session.run(None, {"images": images.numpy()})[0], expected, atol=1e-4
    )
    program = torch.export.load(artifact.folder / "model.pt2").module()
    np.testing.assert_allclose(program(images).detach().numpy(), expected, atol=1e-5)
    compiled = openvino.compile_model(
        artifact.folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    np.testing.assert_allclose(compiled(images.numpy())[0], expected, atol=1e-4)


def test_the_guard_turns_formats_away(trained, digits, tmp_path, monkeypatch):
    """A quantiser that ruins the model must not be chosen, however fast it is."""

    def ruin(model, images, together, is_transformer):
        upside_down = trained.backbone.head.fc.weight
        with torch.no_grad():
            upside_down.neg_()
            write_onnx(trained, tmp_path / "ruined.onnx")
            upside_down.neg_()
        return openvino.convert_model(tmp_path / "ruined.onnx")

    monkeypatch.setattr(import_module("foveate.deploy.programs"), "quantise", ruin)
    formats = ("onnx", "openvino", "openvino-int8")
    made = export(trained, digits, tmp_path / "model", formats=formats, again=True)
    row = next(r for r in made.formats if r["name"] == "openvino-int8")
    assert not row["passed"]
    assert "more than 1" in row["why"]
    assert made.chosen != "openvino-int8"


def test_each_program_is_the_fastest_of_its_kind(artifact):
    facts = json.loads((artifact.folder / "model.json").read_text())
    names = {row["name"] for row in artifact.formats} - {"torch", "torch.export"}
    assert set(facts["programs"]) == names
    for name, program in facts["programs"].items():
        assert program.startswith("onnxruntime" if name.startswith("onnx") else "openvino")
    shared = [facts["programs"].get(f"openvino-int8{end}") for end in ("", "-bf16")]
    graphs = {program.rpartition(", ")[2] for program in shared if program}
    assert len(graphs) == 1


@pytest.mark.skipif(not computes_bfloat16(), reason="this processor has no bfloat16")
@pytest.mark.parametrize("timed", ["int8", "int8-bfloat16"])
def test_formats_of_one_file_share_its_program(trained, digits, tmp_path, monkeypatch, timed):
    """Though only one of them was timed with it, as the others did better with another."""

    def table(search, batch=1):
        return [Candidate("plain", "openvino", timed, threads=1, milliseconds=1.0)], {}

    monkeypatch.setattr(Search, "table", table)
    formats = ("openvino-int8", "openvino-int8-bf16")
    made = export(trained, digits, tmp_path / "model", formats=formats)
    assert {row["name"] for row in made.formats} == {"torch", *formats}
    programs = read_facts(made.folder)["programs"]
    assert made.absent == {}
    assert programs == {
        "openvino-int8": "openvino int8, 1 thread, plain graph",
        "openvino-int8-bf16": "openvino int8-bfloat16, 1 thread, plain graph",
    }


def test_a_format_that_was_asked_for_is_there_or_says_why(trained, digits, tmp_path, monkeypatch):
    """What is hardly ever the fastest is written where it is asked for."""
    made = export(trained, digits, tmp_path / "model", formats=["onnx-int8"])
    assert [row["name"] for row in made.formats] == ["torch", "onnx-int8"]
    search = import_module("foveate.deploy.fastest")
    monkeypatch.setattr(search, "computes_bfloat16", lambda: False)
    made = export(trained, digits, tmp_path / "model", formats=["onnx", "openvino-bf16"])
    assert [row["name"] for row in made.formats] == ["torch", "onnx"]
    why = "not tried: this processor does not compute in bfloat16"
    assert made.absent == read_facts(made.folder)["absent"] == {"openvino-bf16": why}
    assert f"- no openvino-bf16: {why}\n" in (made.folder / "README.md").read_text()


def test_what_was_searched_is_remembered(trained, digits, tmp_path, monkeypatch):
    export(trained, digits, tmp_path / "model", formats=("onnx",))
    asked = []

    def noted(search, batch):
        asked.append(batch)
        return measured(search, batch)

    measured = Search._measured
    monkeypatch.setattr(Search, "_measured", noted)
    export(trained, digits, tmp_path / "model", formats=("onnx",))
    assert asked == []
    export(trained, digits, tmp_path / "model", formats=("onnx",), again=True)
    assert asked == [1]


def test_artifacts_of_before_load(artifact, tmp_path):
    """Rows had no options, and the search was not recorded."""
    old = shutil.copytree(artifact.folder, tmp_path / "model")
    facts = read_facts(old)
    facts.pop("programs")
    for row in facts["formats"]:
        row.pop("options")
    write_facts(old, facts)
    image = np.full((1, 3, 16, 16), 0.5, np.float32)
    for name in ("torch", "onnx", "openvino"):
        given = load(old, format=name).logits(image)
        np.testing.assert_array_equal(given, load(artifact.folder, format=name).logits(image))


def test_unknown_formats_and_full_disks(trained, digits, tmp_path, monkeypatch):
    with pytest.raises(FoveateError, match="tflite"):
        export(trained, digits, tmp_path / "model", formats=("tflite",))
    export(trained, digits, tmp_path / "model", formats=("torch",))
    before = (tmp_path / "model" / "model.json").read_bytes()
    from foveate.deploy import artifact as module

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(FoveateError, match="make room"):
        export(trained, digits, tmp_path / "model", formats=("torch",))
    assert (tmp_path / "model" / "model.json").read_bytes() == before
    assert load_model(tmp_path / "model").labels == digits.labels


def test_latency_of_an_untrained_model(trained):
    assert 0 < latency(trained, seconds=0.05).median < 1


def test_the_card_tells_what_json_tells(artifact):
    facts = json.loads((artifact.folder / "model.json").read_text())
    card = (artifact.folder / "README.md").read_text()
    assert f"{facts['chosen']} (chosen)" in card
    assert load(artifact.folder).format == facts["chosen"]
