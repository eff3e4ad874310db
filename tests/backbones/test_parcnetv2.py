"""ParCNetV2: sizes, names and a block written out as in the paper."""

import pytest
import torch
from torch.nn import functional as F

from foveate.backbones import create_model
from foveate.backbones.parcnetv2 import ParCNetV2, ParCNetV2Block, UnitNorm2d
from foveate.backbones.weights import rename
from foveate.measure import count

# The authors' page: millions of parameters, and of multiply-adds at 224 pixels.
PUBLISHED = {"xt": (7.4, 1.6), "tiny": (25, 4.3), "small": (39, 7.8), "base": (56, 12.5)}


@pytest.mark.paper("parcnetv2")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name):
    with torch.device("meta"):
        found = sum(p.numel() for p in create_model(f"parcnetv2_{name}").parameters())
    millions = PUBLISHED[name][0]
    assert found / 1e6 == pytest.approx(millions, abs=0.05 if name == "xt" else 0.5)


@pytest.mark.paper("parcnetv2")
@pytest.mark.parametrize("name", ["xt", "tiny"])
def test_published_multiply_adds(name):
    model = create_model(f"parcnetv2_{name}").eval()
    found = count(model, torch.zeros(1, 3, 224, 224)).macs
    assert found / 1e9 == pytest.approx(PUBLISHED[name][1], abs=0.05)


def official_names(depths: tuple[int, ...]) -> set[str]:
    """The authors' state dict, by its rules."""
    names = {f"downsample_layers.{i}.conv.{t}" for i in range(4) for t in ("weight", "bias")}
    names |= {"downsample_layers.0.post_norm.weight"}
    names |= {f"downsample_layers.{i}.pre_norm.weight" for i in range(1, 4)}
    layers = ["norm1.weight", "norm2.weight", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight"]
    mixer = ["pwconv1.weight", "pwconv1.bias", "dwconv1.conv_h.weight", "dwconv1.conv_w.weight"]
    mixer += ["dwconv2.weight", "pwconv2.weight"]
    layers += [f"token_mixer.{name}" for name in mixer]
    for i, depth in enumerate(depths):
        scales = ["res_scale1.scale", "res_scale2.scale"] if i >= 2 else []
        names |= {f"stages.{i}.{j}.{name}" for j in range(depth) for name in layers + scales}
    return names | {f"{layer}.{t}" for layer in ("norm", "head") for t in ("weight", "bias")}


@pytest.mark.paper("parcnetv2")
def test_the_authors_names():
    with torch.device("meta"):
        model = create_model("parcnetv2_xt")
    found = {rename(name, ParCNetV2.key_rules) for name in official_names((3, 3, 9, 2))}
    assert found == set(model.state_dict())
    shape = model.stages[0].blocks[0].token_mixer.dwconv1.conv_h.weight.shape
    assert shape == (48, 1, 111, 1)


@pytest.mark.paper("parcnetv2")
@pytest.mark.parametrize("scaled", [True, False])
def test_a_block_written_out(scaled):
    torch.manual_seed(0)
    block = ParCNetV2Block(8, 6, scaled, zoom=True, drop_path=0.0).double().eval()
    for p in block.parameters():
        torch.nn.init.normal_(p)
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)

    def norm(x, weight):
        apart = x - x.mean(1, keepdim=True)
        return apart / apart.norm(dim=1, keepdim=True).clamp_min(1e-6) * weight.view(-1, 1, 1)

    mixer, mlp = block.token_mixer, block.mlp
    value, gate = mixer.pwconv1(norm(x, block.norm1.weight)).chunk(2, 1)
    gate = F.gelu(gate)
    seen = F.conv2d(gate, mixer.dwconv1.conv_h.weight, padding=(5, 0), groups=8)
    seen = F.conv2d(seen, mixer.dwconv1.conv_w.weight, padding=(0, 5), groups=8)
    y = mixer.pwconv2(value * (seen + mixer.dwconv2(gate)))
    x1 = (x * block.scale1 if scaled else x) + y
    value, gate = mlp.fc1(norm(x1, block.norm2.weight)).chunk(2, 1)
    y = mlp.fc2(value * F.gelu(gate))
    expected = (x1 * block.scale2 if scaled else x1) + y
    torch.testing.assert_close(block(x), expected)


def test_vectors_of_length_one():
    norm = UnitNorm2d(12)
    lengths = norm(torch.randn(2, 12, 3, 3)).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
    assert not norm(torch.full((1, 12, 1, 1), 3.0)).any()


def test_training_and_evaluation_agree():
    torch.manual_seed(0)
    model = create_model("parcnetv2_mini32", num_classes=5)
    images = torch.randn(2, 3, 40, 32)
    torch.testing.assert_close(model.train()(images), model.eval()(images))
