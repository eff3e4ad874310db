"""Checkpoints load by whichever names they use, or say what does not fit."""

import os
import pickle
import re

import pytest
import torch
from safetensors.torch import save_file

from foveate.backbones import create_model, load_weights
from foveate.backbones.convnext import ConvNeXt
from foveate.errors import FoveateError

OFFICIAL = (
    (r"^stem\.", "downsample_layers.0."),
    (r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.", r"stages.\1.\2."),
    (r"\.conv_dw\.", ".dwconv."),
    (r"\.mlp\.fc([12])\.", r".pwconv\1."),
    (r"\.mlp\.grn\.bias$", ".grn.beta"),
    (r"\.mlp\.grn\.weight$", ".grn.gamma"),
    (r"^head\.norm\.", "norm."),
    (r"^head\.fc\.", "head."),
)


def official(model):
    """The state dict as facebookresearch/ConvNeXt(-V2) names and shapes it."""
    state = {}
    for name, tensor in model.state_dict().items():
        for pattern, replacement in OFFICIAL:
            name = re.sub(pattern, replacement, name)
        if "pwconv" in name:
            tensor = tensor.reshape(tensor.shape[:2]) if tensor.ndim == 4 else tensor
        state[name] = tensor.reshape(1, 1, 1, -1) if "grn" in name else tensor
    return state


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto"])
@pytest.mark.parametrize("container", ["model", None])
def test_the_authors_names(tmp_path, name, container):
    source = create_model(name, num_classes=5).eval()
    state = official(source)
    torch.save({container: state} if container else state, tmp_path / "official.pth")
    target = create_model(name, num_classes=5).eval()
    load_weights(target, tmp_path / "official.pth")
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(source(images), target(images))


def test_another_number_of_classes_keeps_the_new_classifier(tmp_path):
    save_file(create_model("sprint_s", num_classes=5).state_dict(), tmp_path / "w.safetensors")
    target = create_model("sprint_s", num_classes=3)
    fresh = target.get_classifier().weight.clone()
    report = load_weights(target, tmp_path / "w.safetensors")
    assert report.skipped == ["head.fc.weight"]
    assert torch.equal(target.get_classifier().weight, fresh)


def test_what_does_not_fit_is_listed_and_nothing_is_changed(tmp_path):
    state = create_model("sprint_s", num_classes=5).state_dict()
    state["stages.0.conv1.weight"] = torch.zeros(2, 2)
    state["surprise"] = state.pop("stem.0.weight")
    save_file(state, tmp_path / "w.safetensors")
    target = create_model("sprint_s", num_classes=5)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(FoveateError, match=r"stem\.0\.weight is missing.*surprise is unknown"):
        load_weights(target, tmp_path / "w.safetensors")
    assert all(torch.equal(before[k], v) for k, v in target.state_dict().items())


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_never_run(tmp_path):
    (tmp_path / "w.pth").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    torch.save({"model": Bomb(tmp_path / "exploded")}, tmp_path / "z.pth")
    for name in ("w.pth", "z.pth"):
        with pytest.raises(FoveateError):
            load_weights(ConvNeXt(3, depths=(1,), dims=(8,)), tmp_path / name)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [b"", b"nothing", b"\x80\x04N."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files(tmp_path, content, suffix):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(FoveateError, match="w"):
        load_weights(create_model("sprint_s"), path)


def test_no_hub_is_one_sentence(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FoveateError, match="no published weights"):
        create_model("sprint_s", pretrained=True)
    with pytest.raises(FoveateError, match="no published weights 'sail'"):
        create_model("inception_next_tiny.sail")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that has one repository: the client's cache, as its own download leaves it."""

    def publish(repository: str, state: dict) -> None:
        place = tmp_path / ("models--" + repository.replace("/", "--"))
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("0" * 40)
        (place / "snapshots" / ("0" * 40)).mkdir(parents=True)
        save_file(state, place / "snapshots" / ("0" * 40) / "model.safetensors")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return publish


@pytest.mark.parametrize("name", ["inception_next_tiny.sail_in1k", "convnext_atto.d2_in1k"])
def test_weights_come_from_the_hub(hub, name):
    source = create_model(name.split(".")[0]).eval()
    hub(f"timm/{name}", source.state_dict())
    fetched = create_model(name, pretrained=True).eval()
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(source(images), fetched(images))
    fewer = create_model(name, num_classes=7, pretrained=True)
    assert torch.equal(fewer.stem[0].weight, source.stem[0].weight)
    assert fewer(images).shape == (1, 7)


def test_what_the_hub_does_not_have(hub):
    with pytest.raises(FoveateError, match="go online"):
        create_model("convnext_atto", pretrained=True)
