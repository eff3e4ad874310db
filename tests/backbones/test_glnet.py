"""GLNet: sizes, names and a block written out as in the authors' equations."""

import pytest
import torch
from torch import nn

from foveate.backbones import create_model, load_weights
from foveate.backbones.glmix import GLNet, GLNetBlock
from foveate.backbones.weights import rename
from foveate.errors import FoveateError
from foveate.measure import count
from foveate.ops.glmix import GLMix
from foveate.ops.merge import merge

# The authors' page: millions of parameters.
PUBLISHED = {
    "4g": 27,
    "9g": 60,
    "16g": 106,
    "4g_tklb": 27,
    "9g_tklb": 61,
    "stl": 30,
    "stl_paramslot": 30,
}


@pytest.mark.paper("glmix")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name):
    with torch.device("meta"):
        found = sum(p.numel() for p in create_model(f"glnet_{name}").parameters())
    assert found / 1e6 == pytest.approx(PUBLISHED[name], abs=0.52)


@pytest.mark.paper("glmix")
@pytest.mark.parametrize(("name", "published"), [("4g", 4.5), ("stl", 4.4)])
def test_published_multiply_adds(name, published):
    model = create_model(f"glnet_{name}").eval()
    found = count(model, torch.zeros(1, 3, 224, 224)).macs
    assert found / 1e9 == pytest.approx(published, rel=0.015)


def of_norm(name: str) -> set[str]:
    return {f"{name}.{t}" for t in ("weight", "bias", "running_mean", "running_var")} | {
        f"{name}.num_batches_tracked"
    }


def of_layer(name: str) -> set[str]:
    return {f"{name}.weight", f"{name}.bias"}


def official_names(name: str) -> set[str]:
    """The authors' state dict of one of their sizes, by its rules."""
    plain, names = name.startswith("stl"), set[str]()
    depths = (2, 2, 6, 2) if plain else (4, 4, 18, 4)
    for i, depth in enumerate(depths):
        stem = [(1, 2), (4, 5)] if i == 0 and not plain else [(1, 0) if plain and i else (0, 1)]
        for conv, norm in stem:
            names |= of_layer(f"downsample_layers.{i}.{conv}")
            names |= of_norm(f"downsample_layers.{i}.{norm}")
        for j in range(depth):
            block = f"stages.{i}.blocks.{j}"
            attends = i == 3 or (i == 2 and j % 2 == 1 and not plain)
            mixer = f"{block}.mha_op" if attends else f"{block}.relation_mha"
            names |= {f"{mixer}.in_proj_weight", f"{mixer}.in_proj_bias"}
            layers = [f"{mixer}.out_proj", f"{block}.norm1", f"{block}.norm2"]
            layers += [f"{block}.mlp.0", f"{block}.mlp.{2 if plain and i == 3 else 3}"]
            layers += [] if plain else [f"{block}.pos_conv", f"{block}.mlp.1"]
            if not attends:
                layers += [f"{block}.feature_conv.{k}" for k in range(3)]
                names |= {f"{block}.slot_scale"}
                names |= {f"{block}.init_slots"} if "param" in name else set()
            names |= {f"{block}.ls{k}.gamma" for k in (1, 2)} if name == "16g" else set()
            names = names.union(*map(of_layer, layers))
    names |= of_layer("tklb_aux_head") if "tklb" in name else set()
    return names | of_norm("norm") | of_layer("head")


@pytest.mark.paper("glmix")
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_authors_names(name):
    with torch.device("meta"):
        model = create_model(f"glnet_{name}")
    found = {rename(official, GLNet.key_rules) for official in official_names(name)}
    assert found == set(model.state_dict())


@pytest.mark.paper("glmix")
@pytest.mark.parametrize("scale", [None, 0.3])
def test_a_block_written_out(scale):
    """Slots begin from what enters, before positions are added and before the norm."""
    torch.manual_seed(0)
    block = GLNetBlock(8, GLMix(8, 2, slots=4), 24, True, scale, drop_path=0.0).double().eval()
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    placed = x + nn.functional.conv2d(
        x, block.pos_conv.weight, block.pos_conv.bias, padding=1, groups=8
    )
    weigh = 1.0 if scale is None else scale
    y = placed + weigh * block.mixer(block.norm1(placed), x)
    inner = block.mlp[0](block.norm2(y))
    seen = nn.functional.conv2d(inner, block.mlp[1].weight, block.mlp[1].bias, padding=1, groups=24)
    expected = y + weigh * block.mlp[3](nn.functional.gelu(inner + seen))
    torch.testing.assert_close(block(x), expected)


@pytest.mark.paper("glmix")
def test_places_add_half_of_their_best_logits():
    torch.manual_seed(0)
    model = create_model("glnet_mini32", num_classes=5, dense=True).eval()
    images = torch.randn(2, 3, 32, 32)
    last = model.head.norm(model.forward_features(images))
    rows = last.flatten(2).mT
    auxiliary = rows @ model.head.auxiliary.weight.flatten(1).T + model.head.auxiliary.bias
    expected = model.head.fc(rows.mean(1)) + 0.5 * auxiliary.max(1)[0]
    torch.testing.assert_close(model(images), expected)
    model.reset_classifier(3)
    assert model(images).shape == (2, 3)
    assert model.head.auxiliary.out_channels == 3


def test_weights_for_other_classes_leave_both_classifiers(tmp_path):
    state = create_model("glnet_mini32", num_classes=5, dense=True).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    report = load_weights(
        create_model("glnet_mini32", num_classes=3, dense=True), tmp_path / "weights.pth"
    )
    assert {name.rsplit(".", 1)[0] for name in report.skipped} == {"head.fc", "head.auxiliary"}


@torch.inference_mode()
def test_merging_changes_no_output():
    torch.manual_seed(0)
    model = create_model("glnet_mini32", num_classes=5).eval().double()
    images = torch.randn(2, 3, 40, 32, dtype=torch.float64)
    before = model(images)
    torch.testing.assert_close(merge(model)(images), before, atol=1e-9, rtol=1e-9)


def test_mixers_that_do_not_exist():
    with pytest.raises(FoveateError, match="hybrid"):
        create_model("glnet_mini32", mixers=("glmix", "mamba", "attention"))
