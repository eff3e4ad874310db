"""Any sequence of edits is written and read again, bit for bit, by a process that knows nothing."""

import json
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn

import foveate
from foveate import FoveateError, VisionModel
from foveate.backbones import create_model
from foveate.surgery.channels.remove import Narrow
from foveate.surgery.fold import Fold
from foveate.surgery.lineage import lineage
from foveate.surgery.merging import Merge
from foveate.surgery.mixturegrowth import Grow, Templates
from foveate.surgery.quant_whitepaper import Quantise

LOADING = """
import sys, numpy, torch, foveate
torch.set_num_threads(1)
for folder in sys.argv[1:]:
    images = torch.from_numpy(numpy.load(folder + "/images.npy"))
    with torch.inference_mode():
        given = foveate.load_network(folder)(images).numpy()
    assert numpy.array_equal(given, numpy.load(folder + "/outputs.npy")), folder
print("the same")
"""


def images(side, kind=torch.randn):
    torch.manual_seed(5)
    return kind(2, 3, side, side)


def write(model, x, folder, **how):
    foveate.save(model, folder, **how)
    np.save(folder / "images.npy", x.numpy())
    with torch.inference_mode():
        np.save(folder / "outputs.npy", model.eval()(x).numpy())


def demand_same_elsewhere(*folders):
    command = [sys.executable, "-W", "error::UserWarning", "-c", LOADING, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "the same\n", done.stderr


def edited(model, x, *edits):
    torch.manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 2.0)
    for edit in edits:
        model, _ = edit.apply(model.eval(), x)
    return model.eval()


def ours(*edits):
    torch.manual_seed(0)
    model = VisionModel.create("sprint_s", ["a", "b", "c"], size=16, mean=(0.1, 0.2, 0.3))
    return edited(model, images(16, torch.rand), *edits)


def test_sequences_of_edits_in_a_new_process(tmp_path):
    pixels = images(16, torch.rand)
    write(ours(Templates(), Grow(), Fold(), Narrow(), Quantise(), Fold()), pixels, tmp_path / "a")
    write(ours(Narrow(), Merge()), pixels, tmp_path / "b")
    demand_same_elsewhere(tmp_path / "a", tmp_path / "b")
    again = foveate.load_model(tmp_path / "b")
    assert again.labels == ["a", "b", "c"]
    assert foveate.load(tmp_path / "b").logits(pixels.numpy()).shape == (2, 3)
    assert [step["edit"] for step in lineage(again)] == ["Narrow", "Merge"]
    assert {path.suffix for path in tmp_path.rglob("*.*")} == {".safetensors", ".json", ".npy"}


@pytest.mark.slow
def test_networks_of_every_origin_in_a_new_process(tmp_path):
    x = images(32)
    cases = {
        "native": (edited(create_model("vovnet27_slim", num_classes=4), x, Quantise()), x),
        "timm": (edited(timm.create_model("repghostnet_050", num_classes=3), x, Merge()), x),
        "double": (edited(timm.create_model("resnet10t"), x, Merge()).double(), x.double()),
    }
    for name, (model, inputs) in cases.items():
        write(model, inputs, tmp_path / name)
    theirs = edited(torchvision.models.shufflenet_v2_x0_5(num_classes=7), x, Templates())
    known = {"name": "torchvision/shufflenet_v2_x0_5", "kwargs": {"num_classes": 7}}
    write(theirs, x, tmp_path / "theirs", architecture=known)
    demand_same_elsewhere(*(tmp_path / name for name in [*cases, "theirs"]))
    assert load_file(tmp_path / "double" / "model.safetensors")["fc.weight"].dtype == torch.float64


def own():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))


def test_networks_of_ones_own_come_from_a_factory(tmp_path):
    model = edited(own(), images(8), Quantise())
    foveate.save(model, tmp_path)
    with pytest.raises(FoveateError, match="give factory"):
        foveate.load_network(tmp_path)
    again = foveate.load_network(tmp_path, own)
    assert torch.equal(again(images(8)), model(images(8)))
    with pytest.raises(FoveateError, match="without labels"):
        foveate.load_model(tmp_path, own)
    with pytest.raises(FoveateError, match="damaged"):
        foveate.load_network(tmp_path, lambda: nn.Sequential(nn.Conv2d(3, 4, 1)))


def test_what_would_not_load_is_not_written(tmp_path):
    model = timm.create_model("resnet10t", stem_width=16)
    with pytest.raises(FoveateError, match=r"timm/resnet10t .*give architecture"):
        foveate.save(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    known = {"name": "timm/resnet10t", "kwargs": {"stem_width": 16}}
    foveate.save(model, tmp_path / "model", architecture=known)
    assert torch.equal(
        foveate.load_network(tmp_path / "model")(images(32)), model.eval()(images(32))
    )


def test_a_lineage_that_somebody_meddled_with_is_refused(tmp_path):
    model = edited(create_model("timm/resnet10t"), images(32), Merge())
    foveate.save(model, tmp_path)
    facts = json.loads((tmp_path / "model.json").read_text())
    for text in ("os.system", "aten.no_such_thing.default", "operator.methodcaller"):
        facts["lineage"][0]["plan"]["graph"]["nodes"][-2][2] = text
        with pytest.raises(FoveateError, match=r"no operation|resnet10t"):
            foveate.surgery.replay.replay(create_model("timm/resnet10t"), facts["lineage"])
    (tmp_path / "model.json").write_text(json.dumps(facts))
    with pytest.raises(FoveateError, match="damaged"):
        foveate.load_network(tmp_path)
