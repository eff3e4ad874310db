"""Stored weights: bit for bit what was put in, half a byte each, and no farther than a grid is."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import foveate
from foveate import FoveateError
from foveate.deploy.overflow import fitting_bits
from foveate.surgery.mixturegrowth import Templates
from foveate.surgery.quant_whitepaper_qualcomm.bias import CorrectBias
from foveate.surgery.quant_whitepaper_qualcomm.rounding import AdaRound
from foveate.surgery.quant_whitepaper_qualcomm.simulate import Simulate
from foveate.surgery.storage import Store, StoredWeight, pack, unpack

pytestmark = pytest.mark.paper("quant_whitepaper_qualcomm")


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=16, bias=False),
        nn.Flatten(),
        nn.Linear(16 * 36, 10),
    ).eval()


@pytest.fixture
def images():
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("count", [1, 2, 7, 256])
def test_two_codes_in_a_byte(count):
    codes = torch.randint(0, 16, (count,), dtype=torch.uint8)
    packed = pack(codes)
    assert packed.dtype == torch.uint8
    assert len(packed) == (count + 1) // 2
    assert packed[0] == codes[0] + (16 * codes[1] if count > 1 else 0)
    assert torch.equal(unpack(packed, count), codes)


@pytest.mark.parametrize("group", [None, 10, 64])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_each_weight_is_at_most_half_a_step_away(bits, group):
    """And half of what rounds zero and the scale, which has 8 bits, at the ends."""
    torch.manual_seed(0)
    weight = torch.randn(6, 5, 3, 3) * torch.logspace(-6, 2, 6).view(-1, 1, 1, 1)
    weight[2] = 0
    stored = StoredWeight.of(weight, bits, group)
    again = stored()
    assert again.shape == weight.shape
    assert torch.equal(again[2], weight[2])
    rows = weight.flatten(1)
    for start in range(0, 45, group or 45):
        part = rows[:, start : start + (group or 45)]
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        step = (high - low) / (2**bits - 1)
        error = (again.flatten(1)[:, start : start + (group or 45)] - part).abs().amax(1)
        assert (error <= step * (1.01 + 2**bits / 256)).all()
        assert (error >= 0.1 * step).all()
    fewer = weight.flatten(1)[:, :40].reshape(6, 5, 8)
    assert StoredWeight.of(fewer, bits, group)().shape == fewer.shape


def test_smaller_groups_are_nearer(images):
    model, errors = net(), []
    for group in (8, 64, None):
        stored, _ = Store(group=group).apply(model)
        errors.append((stored(images) - model(images)).square().mean().item())
    assert errors[0] < errors[1] < errors[2]


def test_what_was_rounded_is_stored_exactly(images):
    model, _ = Simulate(weight_bits=4, activation_bits=None, per_channel=True).apply(net(), images)
    model, _ = AdaRound(steps=20).apply(model, images)
    stored, coverage = Store().apply(model)
    assert [line.why for line in coverage] == ["stored in 4 bits a weight"] * 3
    assert torch.equal(stored(images), model(images))
    _, coverage = Store(skip=("3",)).apply(model)
    assert [line.changed for line in coverage] == [True, False, True]
    for bits, fields in ((3, {"per_channel": False}), (8, {"symmetric": False})):
        model, _ = Simulate(weight_bits=bits, **fields).apply(net(), images)
        stored, _ = Store().apply(model)
        assert torch.equal(stored(images), model(images))


def test_what_was_not_rounded_stays_until_it_is_stored_too(images):
    model, _ = Simulate(skip=("0",)).apply(net(), images)
    stored, coverage = Store().apply(model)
    assert {line.name: line.changed for line in coverage} == {"0": False, "3": True, "5": True}
    assert torch.equal(stored(images), model(images))
    again, coverage = Store(bits=8).apply(stored)
    assert [(line.name, line.why) for line in coverage] == [("0", "stored in 8 bits a weight")]
    torch.testing.assert_close(again(images), stored(images), rtol=0, atol=0.1)


class Positions(nn.Module):
    """Positions made where a layer's weight is and of its kind, as EdgeNeXt and ConViT do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, x):
        weight = self.layer.weight
        places = torch.arange(4, device=weight.device).to(weight.dtype)
        return self.layer(x.flatten(1)[:, :4] + places)


@pytest.mark.parametrize("weight_bits", [4, 8, None])
def test_networks_may_ask_a_stored_weight_where_and_what_it_is(weight_bits, images):
    model = Positions().eval()
    if weight_bits is not None:
        model, _ = Simulate(weight_bits=weight_bits).apply(model, images)
    stored, _ = Store(bits=8).apply(model)
    weight = stored.layer.weight
    assert not isinstance(weight, nn.Parameter)
    assert (weight.device, weight.dtype) == (torch.device("cpu"), weight().dtype)
    torch.testing.assert_close(stored(images), model(images), rtol=0, atol=0.1)
    assert stored.to("meta").layer.weight.device.type == "meta"


def test_a_file_of_an_eighth(tmp_path):
    """4 bits a weight and a scale and zero point of 24 bits for 64 of them: 7.3 times less."""
    model = nn.Sequential(nn.Linear(1024, 1024, bias=False), nn.Linear(1024, 512, bias=False))
    stored, _ = Store().apply(model)
    for name, each in (("before", model), ("after", stored)):
        save_file(each.state_dict(), tmp_path / name)
    sizes = [(tmp_path / name).stat().st_size for name in ("before", "after")]
    assert sizes[0] / sizes[1] == pytest.approx(32 / (4 + 24 / 64), rel=0.01)


@pytest.mark.parametrize("simulated", [False, True])
def test_saved_and_loaded_bit_for_bit(simulated, images, tmp_path):
    model = net()
    if simulated:
        model, _ = Simulate(weight_bits=4).apply(model, images)
    model, _ = Store(group=7, skip=() if simulated else ("3",)).apply(model)
    foveate.save(model, tmp_path)
    again = foveate.load_network(tmp_path, net)
    assert torch.equal(again(images), model(images))
    states = again.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(states[name], value)
        assert states[name].dtype == value.dtype
    assert states["0.weight.codes"].dtype == torch.uint8
    assert copy.deepcopy(again)(images).equal(model(images))


def test_double_precision(images):
    stored, _ = Store().apply(net())
    assert stored.double()(images.double()).dtype == torch.float64


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batch", [None, torch.export.Dim("batch", min=1, max=64)])
def test_openvino_computes_stored_layers_in_integers(batch, images):
    """With weights of as many bits as fit, on symmetric grids: int8, and uint8 activations."""
    openvino = pytest.importorskip("openvino")
    model, _ = Simulate(weight_bits=fitting_bits()).apply(net(), images)
    stored, _ = Store().apply(CorrectBias().apply(model, images)[0])
    free = None if batch is None else ({0: batch},)
    program = openvino.convert_model(torch.export.export(stored, (images,), dynamic_shapes=free))
    compiled = openvino.compile_model(program, "CPU")
    layers = {"Convolution", "FullyConnected", "MatMul"}
    precisions = [
        info["runtimePrecision"].astype(str)
        for info in (node.get_rt_info() for node in compiled.get_runtime_model().get_ops())
        if info["layerType"].astype(str) in layers
    ]
    assert len(precisions) == 3
    assert set(precisions) <= {"u8", "i8"}
    got = torch.from_numpy(compiled(images.numpy())[0])
    torch.testing.assert_close(got, stored(images), atol=1e-5, rtol=1e-5)


def test_mistakes(images):
    for fields, message in (({"bits": 1}, "bits is 1"), ({"group": 0}, "group is 0")):
        with pytest.raises(FoveateError, match=message):
            Store(**fields)
    stored, _ = Store().apply(net())
    with pytest.raises(FoveateError, match="nothing to change"):
        Store().apply(stored)
    with pytest.raises(FoveateError, match="fold them into plain"):
        Store().apply(Templates().apply(net())[0])
    with pytest.raises(FoveateError, match="quantised already"):
        Simulate().apply(stored, images)
