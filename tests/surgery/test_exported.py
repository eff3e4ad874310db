"""What is exported computes what the edit made, number for number, and stores codes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foveate.surgery.exported import (
    CODES,
    Codes,
    ExportedLayer,
    OnGrid,
    exportable,
    exported_layers,
    is_exported,
)
from foveate.surgery.graphs import capture
from foveate.surgery.lean import lean
from foveate.surgery.quant_whitepaper import Quantise
from foveate.surgery.quant_whitepaper_qualcomm.bias import CorrectBias
from foveate.surgery.quant_whitepaper_qualcomm.simulate import Simulate
from foveate.surgery.storage import Store
from foveate.vision import Preprocess, VisionModel


class Net(nn.Module):
    """A stem, a pool, a depthwise layer beside the identity, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.pool = nn.MaxPool2d(2)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.mix = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16 * 16, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.norm(self.stem(x))))
        x = F.relu6(x + self.mix(F.relu6(self.depth(x))))
        return self.head(x.flatten(1))


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = Net().eval()
    nn.init.uniform_(net.norm.running_mean, -0.3, 0.3)
    nn.init.uniform_(net.norm.running_var, 0.5, 2.0)
    return net


@pytest.fixture
def images():
    return torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))


WAYS = {
    "per channel": [Simulate()],
    "per tensor": [Simulate(per_channel=False)],
    "affine": [Simulate(symmetric=False)],
    "affine per tensor": [Simulate(symmetric=False, per_channel=False)],
    "4 bits": [Simulate(weight_bits=4, activation_bits=4, symmetric=False)],
    "5 bits": [Simulate(weight_bits=5, activation_bits=5, symmetric=False)],
    "biases corrected": [Simulate(per_channel=False), CorrectBias()],
    "weights alone": [Simulate(weight_bits=3, activation_bits=None)],
    "stored": [Simulate(), Store()],
    "4 bits stored": [Simulate(weight_bits=4), Store()],
    "groups": [Store(group=10)],
    "8 bits stored": [Store(bits=8, group=None)],
}


def edited(net, images, edits):
    for edit in edits:
        net, _ = edit.apply(net, images)
    return net


@pytest.mark.parametrize("way", WAYS)
def test_it_computes_what_the_edit_made(net, images, way):
    model = edited(net, images, WAYS[way])
    names = ["stem", "depth", "mix", "head"]
    assert exported_layers(model) == names
    made = exportable(model)
    assert [n for n, m in made.named_modules() if isinstance(m, ExportedLayer)] == names
    assert is_exported(made)
    assert not is_exported(model)
    assert torch.equal(made(images), model(images))


@pytest.mark.parametrize("gemmlowp", [False, True])
@pytest.mark.parametrize("fields", [{}, {"per_channel": False, "activation_bits": 5}])
def test_integers_are_at_most_a_rounding_away(net, images, fields, gemmlowp):
    """IntegerLayer rounds halves up, and gemmlowp twice; a layer alone differs by one step."""
    model, _ = Quantise(gemmlowp=gemmlowp, **fields).apply(net, images)
    for form in (model, edited(model, images, [])):
        made = exportable(form)
        for name in exported_layers(form):
            layer, x = made.get_submodule(name), torch.randn(4, *shape_of(name))
            x = layer.input(x)
            steps = (layer(x) - form.get_submodule(name)(x)) / layer.output.scale
            assert steps.abs().max() < 1 + 1e-3
            assert (steps.abs() > 1e-3).float().mean() < (0.05 if gemmlowp else 0.001)


def shape_of(name):
    return {"stem": (3, 8, 8), "head": (256,)}.get(name, (16, 4, 4))


def test_merged_integers_are_exported_too(net, images):
    from foveate.ops.merge import merge

    model, _ = Quantise().apply(net, images)
    expected = exportable(model)(images)
    merged = merge(model)
    assert exported_layers(merged) == ["stem", "depth", "mix", "head"]
    assert torch.equal(exportable(merged)(images), expected)


def test_a_layer_takes_over_the_grid_of_its_source(net, images):
    """Also where the layer's model was put into another one since."""
    model, _ = Simulate().apply(net, images)
    assert model.depth.source == "stem"
    for whole, prefix in (
        (model, ""),
        (VisionModel(model, Preprocess(size=8), list("abcdefghij")), "backbone."),
        (Store().apply(model)[0], ""),
    ):
        made = exportable(whole)
        given = made.get_submodule(f"{prefix}stem").output
        taken = made.get_submodule(f"{prefix}depth").input
        assert taken is not given
        assert taken.scale == given.scale == model.stem.output_grid.grid()[0][0]


def test_codes_are_signed_where_they_fit():
    scale, shape = torch.tensor([0.5, 2.0]), torch.Size([2, 3])
    for codes, zero, kind in (
        ([[0, 7, 14], [1, 7, 12]], [7, 7], torch.int8),  # 4 bits
        ([[0, 7, 15], [1, 7, 12]], [7, 7], torch.uint8),  # 4 bits only as they are
        ([[0, 7, 31], [1, 7, 12]], [7, 20], torch.int8),
        ([[0, 7, 255], [1, 7, 12]], [7, 20], torch.uint8),
    ):
        held, zeros = torch.tensor(codes), torch.tensor(zero)
        made = Codes(held, scale, zeros, shape)
        assert made.codes.dtype == made.zero.dtype == kind
        assert torch.equal(made(), (held - zeros[:, None]) * scale[:, None])


def test_relu_goes_only_where_the_grid_cuts_off():
    weight = Codes(torch.ones(1, 1, dtype=torch.int8), torch.ones(1), torch.zeros(1), (1, 1))
    x = torch.tensor([[-3.0], [2.0], [9.0]])
    for scale, zero, top, left in (
        (0.1, 0, float("inf"), None),
        (6 / 255, 0, 6.0, None),
        (0.1, 0, 6.0, 6.0),
        (0.1, 9, float("inf"), float("inf")),
    ):
        grid = OnGrid(torch.tensor(scale), torch.tensor(zero), 0, 255)
        layer = ExportedLayer(weight, None, {}, top, None, grid)
        assert layer.top == left
        torch.testing.assert_close(layer(x), x.clamp(0, top), atol=scale / 2, rtol=0)


def test_graphs_keep_codes(net, images):
    """Constants are folded in graphs, but weights stay as small as they are."""
    made = exportable(edited(net, images, [Simulate(weight_bits=4), Store()]))
    for graph in (capture(made, images), lean(made, images)[0]):
        assert is_exported(graph)
        held = {n: t for n, t in graph.state_dict().items() if n.endswith(CODES)}
        assert [n.removesuffix(CODES) for n in held] == ["stem", "depth", "mix", "head"]
        assert all(t.dtype == torch.int8 for t in held.values())
        assert sum(t.numel() for t in graph.state_dict().values() if t.is_floating_point()) < 200
        assert torch.equal(graph(images), made(images))
