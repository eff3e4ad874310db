"""Few bits kept as bits: planes are what the paper's product needs, files are as small as bits say,
and what is loaded computes the same numbers."""

import numpy as np
import pytest
import torch
from torch import nn

import foveate
from foveate.backbones import create_model
from foveate.errors import FoveateError
from foveate.surgery.channels.remove import Narrow
from foveate.surgery.dorefa import DoReFa
from foveate.surgery.gradual_pruning import MaskSmallest
from foveate.surgery.lineage import lineage
from foveate.surgery.low_bits import LowBitLayer, Pack, PackedLayer, pack, unpack, whole_and_step
from foveate.surgery.quant_whitepaper import Quantise
from foveate.surgery.reste import Binarise
from foveate.surgery.storage import Store


def net(width=16):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * 9, 24),
        nn.ReLU(),
        nn.Linear(24, 10),
    ).eval()


EDITS = [
    DoReFa(weight_bits=1, activation_bits=2),
    DoReFa(weight_bits=3, activation_bits=None),
    DoReFa(weight_bits=8, activation_bits=8, bound="absolute", ends=True),
    Binarise(),
    Binarise(activations=False),
]


@pytest.fixture
def images():
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.paper("dorefa")
@pytest.mark.parametrize(("bits", "count"), [(1, 1), (1, 64), (2, 9), (3, 100), (8, 17)])
def test_planes_hold_codes_and_are_multiplied_bit_by_bit(bits, count):
    torch.manual_seed(bits)
    x, y = (torch.randint(0, 2**bits, (count,)) for _ in "xy")
    planes = [pack(codes, bits) for codes in (x, y)]
    assert planes[0].shape == (bits, -(-count // 8))
    assert torch.equal(unpack(planes[0], count).long(), x)
    ones = [
        int(np.unpackbits((planes[0][m] & planes[1][k]).numpy()).sum()) << (m + k)
        for m in range(bits)
        for k in range(bits)
    ]
    assert sum(ones) == (x * y).sum()  # equation 3 of the paper
    assert planes[0][0, 0] & 1 == x[0] & 1


def test_codes_span_a_symmetric_range_without_zero():
    for bits in range(1, 9):
        whole, step = whole_and_step(torch.arange(2.0**bits), torch.tensor(0.5), bits)
        assert torch.equal(whole, whole.round())
        found = whole * step
        wanted = torch.linspace(-0.5, 0.5, 2**bits)
        torch.testing.assert_close(found, wanted)
        assert found[0] == -0.5
        assert found[-1] == 0.5
        assert (found != 0).all()


@pytest.mark.paper("dorefa")
@pytest.mark.paper("reste")
@pytest.mark.parametrize("edit", EDITS, ids=repr)
def test_packed_saved_and_loaded_bit_for_bit(edit, images, tmp_path):
    model, _ = edit.apply(net(), images)
    packed, coverage = Pack().apply(model)
    assert all(line.changed for line in coverage)
    assert torch.equal(packed(images), model(images))
    for name, each in (("learning", model), ("packed", packed)):
        foveate.save(each, tmp_path / name)
        again = foveate.load_network(tmp_path / name, net)
        assert torch.equal(again(images), model(images))
        for key, value in each.state_dict().items():
            assert torch.equal(again.state_dict()[key], value)
    state = packed.state_dict()
    for name, layer in packed.named_modules():
        if isinstance(layer, PackedLayer):
            assert f"{name}.weight" not in state
            assert state[f"{name}.planes"].dtype == torch.uint8
            size = state[f"{name}.planes"].nbytes
            assert size == layer.bits * -(-layer.shape.numel() // 8)


@pytest.mark.paper("dorefa")
@pytest.mark.paper("reste")
def test_files_are_as_small_as_their_bits(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(4)))
    x = torch.randn(2, 512)
    foveate.save(model, tmp_path / "float")
    for name, edit in (("1", Binarise(ends=True)), ("3", DoReFa(weight_bits=3, ends=True))):
        packed, _ = Pack().apply(edit.apply(model, x)[0])
        foveate.save(packed, tmp_path / name)
        files = [tmp_path / each / "model.safetensors" for each in ("float", name)]
        sizes = [file.stat().st_size for file in files]
        assert sizes[0] / sizes[1] == pytest.approx(32 / int(name), rel=0.01)


@pytest.mark.paper("dorefa")
@pytest.mark.parametrize("edit", EDITS[::3], ids=repr)
def test_among_other_edits(edit, images, tmp_path):
    """Narrower first, then few bits, then packed, and the ends that stayed in float in 4 bits."""
    model = net()
    for each in (Narrow(share=0.25), edit, Pack(), Store()):
        model, _ = each.apply(model, images)
    names = [step["edit"] for step in lineage(model)]
    assert names == ["Narrow", type(edit).__name__, "Pack", "Store"]
    foveate.save(model, tmp_path)
    again = foveate.load_network(tmp_path, net)
    assert torch.equal(again(images), model(images))
    assert {v.dtype for v in model.state_dict().values() if v.numel() > 100} == {torch.uint8}


@pytest.mark.paper("dorefa")
def test_the_ends_stay_in_float(images):
    model, coverage = DoReFa().apply(net(), images)
    told = {line.name: line.why for line in coverage}
    assert told["0"] == "left in float as the first layer"
    assert told["11"] == "left in float as the last layer"
    assert told["3"] == "1-bit weights, 2-bit inputs"
    assert [n for n, m in model.named_modules() if isinstance(m, LowBitLayer)] == ["3", "6", "9"]
    model, coverage = DoReFa(ends=True, skip=("6",)).apply(net(), images)
    assert [line.changed for line in coverage] == [True, True, False, True, True]
    assert coverage[0].why == "1-bit weights, 2-bit inputs; what is negative of these is lost"


@pytest.mark.paper("dorefa")
@pytest.mark.paper("reste")
@pytest.mark.parametrize("edit", [EDITS[0], EDITS[3]], ids=repr)
def test_sums_are_the_same_in_any_order(edit, images):
    """Whole numbers are added, so a layer gives the same bits in every memory layout."""
    layer = edit.apply(net(), images)[0][3]
    x = torch.randn(8, 16, 8, 8)
    wanted = layer(x)
    permuted = torch.randperm(16)
    with torch.no_grad():
        layer.weight.copy_(layer.weight[:, permuted])
    assert torch.equal(layer(x[:, permuted]), wanted)
    layer.to(memory_format=torch.channels_last)
    x = x[:, permuted].to(memory_format=torch.channels_last)
    assert torch.equal(layer(x), wanted)


@pytest.mark.paper("dorefa")
@pytest.mark.paper("reste")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("edit", EDITS[::3], ids=repr)
def test_openvino_runs_what_is_packed(edit, images):
    openvino = pytest.importorskip("openvino")
    model = net()
    model[4].bias.data.uniform_(-1, 1)  # as trained norms have it, so that no sum is a tie
    packed, _ = Pack().apply(edit.apply(model, images)[0])
    with torch.no_grad():
        program = openvino.convert_model(torch.export.export(packed, (images,)))
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    got = torch.from_numpy(openvino.compile_model(program, "CPU", config)(images.numpy())[0])
    torch.testing.assert_close(got, packed(images), atol=1e-4, rtol=1e-4)


FAMILIES = [
    "resnet10t",
    "regnetx_002",
    "densenet121",
    "efficientnet_lite0",
    "mobilenetv3_small_050",
    "convnext_atto",
    "inception_next_atto",
    "fastvit_t8",
    "levit_128s",
    "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "pvt_v2_b0",
    "mixer_s32_224",
    "ese_vovnet19b_dw",
    "ghostnet_050",
]


@pytest.mark.slow
@pytest.mark.parametrize("edit", [DoReFa(), Binarise()], ids=["dorefa", "reste"])
@pytest.mark.parametrize("name", FAMILIES)
def test_families(name, edit, tmp_path):
    torch.manual_seed(0)
    model = create_model(f"timm/{name}", num_classes=8).eval()
    x = torch.randn(1, 3, 224, 224)
    edited, coverage = edit.apply(model, x)
    assert all(line.changed or "in float as the" in line.why for line in coverage)
    packed, _ = Pack().apply(edited)
    foveate.save(packed, tmp_path)
    again = foveate.load_network(tmp_path)
    with torch.no_grad():
        wanted = edited(x)
        assert wanted.isfinite().all()
        assert torch.equal(packed(x), wanted)
        assert torch.equal(again(x), wanted)


def test_double_precision(images):
    packed, _ = Pack().apply(DoReFa().apply(net(), images)[0])
    assert packed.double()(images.double()).dtype == torch.float64


def test_mistakes(images):
    low, _ = DoReFa().apply(net(), images)
    with pytest.raises(FoveateError, match="nothing to change"):
        Pack().apply(net())
    with pytest.raises(FoveateError, match="its weight is in float"):
        Pack().apply(DoReFa(weight_bits=None).apply(net(), images)[0])
    with pytest.raises(FoveateError, match="quantised already"):
        Binarise().apply(low, images)
    with pytest.raises(FoveateError, match="quantised already"):
        Quantise().apply(low, images)
    with pytest.raises(FoveateError, match="begin with a model that is not pruned"):
        DoReFa().apply(MaskSmallest().apply(net())[0], images)
