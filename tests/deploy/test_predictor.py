"""An artifact predicts the same wherever and whatever it is given, or says why it cannot."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from foveate import FoveateError, load, memory
from foveate.deploy import load_model
from foveate.deploy.runtimes import FILES

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def copy(artifact, tmp_path):
    return shutil.copytree(artifact.folder, tmp_path / "model")


def test_the_model_comes_back_bit_for_bit(artifact, trained):
    again = load_model(artifact.folder)
    assert again.labels == trained.labels
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_every_kind_of_image_gives_the_same(artifact, digits, tmp_path):
    predictor = load(artifact.folder)
    pixels = digits.splits["test"].read(0)
    Image.fromarray(pixels).save(tmp_path / "digit.png")
    kinds = [
        tmp_path / "digit.png",
        str(tmp_path / "digit.png"),
        Image.fromarray(pixels),
        pixels,
        pixels[None],
        pixels.astype(np.float32) / 255,
        torch.from_numpy(pixels).permute(2, 0, 1),
        [pixels],
        pixels[..., 0],
    ]
    expected = predictor.predict(pixels)[0]
    assert sum(expected.probabilities.values()) == pytest.approx(1)
    for kind in kinds:
        assert predictor.predict(kind) == [expected]
    assert len(predictor.predict([pixels, tmp_path / "digit.png", pixels])) == 3


def test_a_new_process_predicts_the_same(artifact, digits, tmp_path):
    pixels = digits.splits["test"].pixels[:20]
    np.save(tmp_path / "pixels.npy", pixels)
    script = (
        "import sys, json, numpy, foveate\n"
        "model = foveate.load(sys.argv[1])\n"
        "found = model.predict(numpy.load(sys.argv[2]))\n"
        "print(json.dumps([p.probabilities for p in found]))"
    )
    command = [sys.executable, "-c", script, str(artifact.folder), str(tmp_path / "pixels.npy")]
    output = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    here = [p.probabilities for p in load(artifact.folder).predict(pixels)]
    assert json.loads(output) == here


@pytest.mark.parametrize("name", ["torch", "onnx", "openvino", "openvino-int8"])
def test_each_format_evaluates(artifact, digits, name):
    row = next(r for r in artifact.formats if r["name"] == name)
    result = load(artifact.folder, format=name).evaluate(digits.splits["val"])
    assert result["top1"] == pytest.approx(row["top1"])
    assert set(result["per_class"]) == set(digits.labels)


def test_a_flipped_bit_anywhere_is_noticed(artifact, copy):
    for file in sorted(copy.iterdir()):
        if file.name in ("README.md", "model.pt2"):
            continue
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 0x10
        file.write_bytes(content)
        own = [name for name, files in FILES.items() if file.name in files]
        name = own[0] if own else "torch"
        with pytest.raises(FoveateError, match=r"damaged"):
            load(copy, format=name)
        shutil.copy(artifact.folder / file.name, file)
    assert load(copy).labels


def test_a_missing_file_is_named(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(FoveateError, match=r"model\.safetensors is missing"):
        load(copy)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["model.safetensors", "check.npz", "model.json"])
def test_a_pickle_is_never_run(copy, tmp_path, name):
    (copy / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(FoveateError):
        load(copy)
    assert not (tmp_path / "exploded").exists()


def test_images_that_cannot_be_used_are_named(artifact, tmp_path):
    predictor = load(artifact.folder)
    (tmp_path / "empty.png").write_bytes(b"")
    for bad, mention in [
        (tmp_path / "empty.png", "empty.png"),
        (tmp_path / "nowhere.png", "nowhere.png"),
        (np.zeros((4, 4, 2), np.uint8), "shape"),
        (np.full((4, 4, 3), 7.0), "beyond"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        ([], "no images"),
        (object(), "object"),
    ]:
        with pytest.raises(FoveateError, match=mention):
            predictor.predict(bad)


def test_unknown_format_is_said(artifact):
    with pytest.raises(FoveateError, match="choose from"):
        load(artifact.folder, format="torch.export")


def test_loading_to_predict_keeps_memory(artifact):
    works = memory.keep()
    memory.restore()
    assert not memory.is_kept()
    try:
        load(artifact.folder, format="torch")
        assert memory.is_kept() == works
    finally:
        memory.restore()
