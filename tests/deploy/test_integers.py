"""Exported integers: what the edit made, to a step; small in the file; and really executed."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foveate import FoveateError
from foveate.deploy import Search, export, fastest, load, load_fastest
from foveate.deploy.executed import Executed
from foveate.deploy.formats import leanest, save_openvino, to_openvino, write_program
from foveate.deploy.overflow import fitting_bits
from foveate.deploy.runtimes import OnnxRuntime, OpenVinoRuntime, executed
from foveate.surgery.exported import Codes, exportable, exported_layers
from foveate.surgery.quant_whitepaper import Quantise
from foveate.surgery.quant_whitepaper_qualcomm.simulate import Simulate
from foveate.surgery.storage import Store

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
pytestmark = pytest.mark.filterwarnings("ignore")

BITS = fitting_bits()
LAYERS = ["stem", "depth", "mix", "wide", "head"]


class Net(nn.Module):
    """A stem, a pool, a depthwise layer beside the identity, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.pool = nn.MaxPool2d(2)
        self.depth = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.mix = nn.Conv2d(32, 32, 3, padding=1)
        self.wide, self.head = nn.Linear(32, 64), nn.Linear(64, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.norm(self.stem(x))))
        x = F.relu6(x + self.mix(F.relu6(self.depth(x))))
        return self.head(F.gelu(self.wide(x.mean((2, 3)))))


class Tokens(nn.Module):
    """Linear layers of tokens, (B, N, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 4, 4)
        self.norm, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x.mean(1))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def edited(net, images, *edits):
    for edit in edits:
        net, _ = edit.apply(net, images)
    return net


class Written:
    """A network's program in both runtimes, and how they compute."""

    def __init__(self, model, images, folder, make_lean=False):
        self.layers, path = exported_layers(model), folder / "model.onnx"
        program = exportable(model)
        write_program(leanest(program, images) if make_lean else program, images, path)
        save_openvino(to_openvino(path), folder / "model.xml")
        self.onnx = OnnxRuntime(path, 1)
        self.openvino = OpenVinoRuntime(folder / "model.xml", threads=1)
        self.bytes = [(folder / name).stat().st_size for name in ("model.onnx", "model.bin")]
        self.graph = onnx.load(path).graph
        with torch.no_grad():
            self.expected = model(images).numpy()
        self.given = [runtime(images.numpy()) for runtime in (self.onnx, self.openvino)]

    def floats(self):
        return [executed(runtime, self.layers).floats for runtime in (self.onnx, self.openvino)]


def demand_parity(written, steps, step):
    for given in written.given:
        assert np.abs(given - written.expected).max() <= (steps + 0.01) * step
        assert (given.argmax(1) == written.expected.argmax(1)).mean() > 0.9


def last_step(model):
    return float(exportable(model).head.output.scale)


AFFINE = {"symmetric": False, "weight_range": "minmax"}


@pytest.mark.parametrize(
    ("edits", "not_in_openvino"),
    [
        ([Quantise(weight_bits=BITS)], []),
        ([Simulate(weight_bits=BITS), Store()], []),
        ([Simulate(weight_bits=BITS, per_channel=False)], []),
        ([Simulate(**AFFINE)], LAYERS),
        ([Simulate(weight_bits=4, activation_bits=4, **AFFINE)], []),
        ([Quantise(weight_bits=BITS, activation_bits=6, per_channel=False)], []),
    ],
    ids=["quantise", "stored", "per tensor", "affine", "4 bits", "6 bits"],
)
def test_both_runtimes_compute_the_integers(net, images, tmp_path, edits, not_in_openvino):
    model = edited(net, images, *edits)
    written = Written(model, images, tmp_path)
    assert written.layers == LAYERS
    assert written.floats() == [[], not_in_openvino]
    demand_parity(written, 4, last_step(model))


def test_lean_graphs_keep_integers(net, images, tmp_path):
    model = edited(net, images, Simulate(weight_bits=BITS))
    written = Written(model, images, tmp_path, make_lean=True)
    assert written.floats() == [[], []]
    demand_parity(written, 4, last_step(model))


def test_layers_of_tokens(images, tmp_path):
    torch.manual_seed(0)
    model = edited(Tokens().eval(), images, Simulate(weight_bits=BITS))
    written = Written(model, images, tmp_path)
    assert written.layers == ["embed", "up", "down", "head"]
    assert written.floats() == [[], []]
    demand_parity(written, 4, last_step(model))


def test_files_hold_codes(net, images, tmp_path):
    """8 bits a weight, or 4 and no zero points where these are all in the middle."""
    weights = sum(m.weight.numel() for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    sizes, kinds = {}, onnx.TensorProto
    for bits, kind, few in ((8, kinds.INT8, weights), (4, kinds.INT4, (weights + 1) // 2)):
        folder = tmp_path / str(bits)
        folder.mkdir()
        written = Written(edited(net, images, Simulate(weight_bits=bits)), images, folder)
        held = [tensor for tensor in written.graph.initializer if len(tensor.dims) > 1]
        assert [tensor.data_type for tensor in held] == [kind] * len(LAYERS)
        assert sum(np.prod(tensor.dims) for tensor in held) == weights
        assert sum(len(tensor.raw_data) for tensor in held) == pytest.approx(few, abs=3)
        sizes[bits] = written.bytes
    for eight, four in zip(*sizes.values(), strict=True):
        assert four == pytest.approx(eight - weights / 2, abs=1500)
    assert sizes[8][1] < weights + 3000


def test_a_grid_stands_once(net, images, tmp_path):
    """Whoever takes what is on a grid already puts it there in its own right, in vain."""
    written = Written(edited(net, images, Quantise()), images, tmp_path)
    kinds = [node.op_type for node in written.graph.node]
    # all outputs, the image, what the pool makes, the mean, and what GELU makes
    assert kinds.count("QuantizeLinear") == len(LAYERS) + 4
    assert "Relu" not in kinds
    assert kinds.count("Clip") == 1  # of the sum


@pytest.mark.parametrize("edit", [Store(group=24), Store(bits=8, group=None)])
def test_weights_alone(net, images, tmp_path, edit):
    """Numbers are exact, files small, and no runtime is said to compute in integers."""
    model = edited(net, images, edit)
    written = Written(model, images, tmp_path)
    assert written.floats() == [LAYERS, LAYERS]
    demand_parity(written, 1, 1e-4)
    stored = [m for m in exportable(model).modules() if isinstance(m, Codes)]
    codes, rows = (sum(getattr(m, part).numel() for m in stored) for part in ("codes", "scale"))
    assert written.bytes[1] < codes * edit.bits / 8 + 8 * rows + 1000


def test_a_layer_called_twice_is_in_integers_if_both_calls_are(monkeypatch):
    assert Executed.of(["a", "b"], ["a/WithoutBiases", "b:1", "c"]) == Executed(["a", "b"], [])
    assert executed(lambda images: images, ["a"]) == Executed([], ["a"])


def test_the_search_keeps_integers(net, images, tmp_path, monkeypatch):
    """NNCF is not asked again, and whoever asks for it is told why."""

    def never(*args, **kwargs):
        raise AssertionError("quantised twice")

    from importlib import import_module

    monkeypatch.setattr(import_module("foveate.deploy.programs"), "quantise", never)
    model = edited(net, images, Simulate(weight_bits=BITS))
    ways = [("openvino", "float32"), ("openvino", "int8")]
    made = fastest(model, images, ways=ways, seconds=0.02, guard=10)
    assert made.chosen.integers == len(LAYERS)
    assert "5 layers in integers" in made.chosen.name
    [left] = [row for row in made.table if row.precision == "int8"]
    assert "quantised already" in left.why
    expected = made(images)
    made.save(tmp_path / "saved")
    np.testing.assert_array_equal(load_fastest(tmp_path / "saved")(images), expected)
    with pytest.raises(FoveateError, match="quantised already"):
        Search(model, images, ways=[("openvino", "int8")]).fastest()


def test_an_export_says_what_runs_in_integers(trained, digits, tmp_path):
    pictures = torch.from_numpy(
        np.ascontiguousarray(digits.splits["train"].pixels[:64].transpose(0, 3, 1, 2))
    )
    pictures = F.interpolate(pictures.float() / 255, size=16)
    model = edited(trained, pictures, Simulate(weight_bits=BITS))
    whole = export(trained, digits, tmp_path / "float", formats=("onnx", "openvino"))
    formats = ("onnx", "openvino", "openvino-int8")
    made = export(model, digits, tmp_path / "model", formats=formats, guard=5)
    rows = {row["name"]: row for row in made.formats}
    assert rows.keys() == {"torch", "onnx", "openvino"}
    assert "quantised already" in made.absent["openvino-int8"]
    layers = exported_layers(model)
    assert rows["torch"]["quantised"] == {"integers": [], "floats": layers}
    before = {row["name"]: row for row in whole.formats}
    for name in ("onnx", "openvino"):
        assert rows[name]["quantised"] == {"integers": layers, "floats": []}
        assert rows[name]["parity"]["agreement"] > 0.97
        assert rows[name]["passed"]
        assert before[name]["quantised"] == {"integers": [], "floats": []}
        load(tmp_path / "model", format=name)
    assert rows["openvino"]["bytes"] < 0.8 * before["openvino"]["bytes"]
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"openvino: {len(layers)} of {len(layers)} quantised layers compute in integers" in card
