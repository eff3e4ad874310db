"""LeViT, against timm's with the same weights; its merged form; and the authors' own names."""

import pytest
import torch

from foveate.backbones import create_model, load_weights
from foveate.backbones.levit import SIZES
from foveate.ops.levit import LevitAttention, offset_bias
from foveate.ops.merge import merge

SLUGS = [name for name in SIZES if "mini" not in name]


@pytest.mark.paper("levit")
@pytest.mark.parametrize("name", ["levit_128s", "levit_192"])
def test_timms_outputs_and_maps(agrees_with_timm, name):
    agrees_with_timm(name, (224, 224))


@pytest.mark.paper("levit")
@pytest.mark.parametrize("name", SLUGS)
def test_timms_parameters(has_timms_parameters, name):
    has_timms_parameters(name)


def test_published_parameter_counts():
    """Table 3 of arXiv 2104.01136, in millions."""
    published = {"128s": 7.8, "128": 9.2, "192": 10.9, "256": 18.9, "384": 39.1}
    for name, millions in published.items():
        with torch.device("meta"):
            found = sum(p.numel() for p in create_model(f"levit_{name}").parameters())
        assert found / 1e6 == pytest.approx(millions, abs=0.06), name


def test_the_authors_names_load(tmp_path):
    """Blocks numbered in one row; normal and shrinking attention, and indices that are kept."""
    torch.manual_seed(0)
    model = create_model("levit_128s", num_classes=3)
    official, block = {}, 0
    state = model.state_dict()

    def move(old: str, new: str) -> None:
        for name in [n for n in state if n.startswith(old)]:
            rest = name.removeprefix(old).replace("q.", "q.1.") if new else name
            official[new + rest.replace(".conv.", ".c.").replace(".norm.", ".bn.")] = state[name]

    move("stem.", "patch_embed.")
    for i, depth in enumerate((2, 3, 4)):
        places = [f"stages.{i}.downsample.{j}." for j in range(2 if i else 0)]
        for old in places + [f"stages.{i}.blocks.{j}." for j in range(2 * depth)]:
            move(old, f"blocks.{block}.")
            block += 1
    for end in ("", "_dist"):
        for old, new in ((f"norm{end}.", f"head{end}.bn."), (f"fc{end}.", f"head{end}.l.")):
            move(f"head.{old}", new)
    assert len(official) == len(state)
    official["blocks.0.m.attention_bias_idxs"] = torch.zeros(196, 196).long()
    torch.save({"model": official}, tmp_path / "official.pth")
    fresh = create_model("levit_128s", num_classes=3)
    load_weights(fresh, tmp_path / "official.pth")
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_classes_may_differ_from_the_checkpoints(tmp_path):
    torch.save(create_model("levit_mini32", num_classes=7).state_dict(), tmp_path / "a.pth")
    model = create_model("levit_mini32", num_classes=3)
    report = load_weights(model, tmp_path / "a.pth")
    assert sorted(report.skipped) == [
        f"head.fc{end}.{kind}" for end in ("", "_dist") for kind in ("bias", "weight")
    ]
    model.reset_classifier(5)
    assert model.head.fc_dist.out_features == 5


def test_merging_leaves_no_norm():
    model = merge(create_model("levit_mini32", num_classes=5))
    assert not [m for m in model.modules() if "BatchNorm" in type(m).__name__]


@pytest.mark.parametrize("stride", [1, 2])
def test_attention_pair_by_pair(stride):
    """Outputs and gradients, on a map that is not square, with biases of their own size."""
    torch.manual_seed(0)
    op = LevitAttention(6, key_dim=2, heads=3, ratio=2, side=4, stride=stride).double()
    torch.nn.init.normal_(op.attention_biases)
    torch.nn.init.ones_(op.proj[1].norm.weight)
    op.eval()
    x = torch.randn(2, 6, 4, 4, dtype=torch.float64, requires_grad=True)
    seen = (op.kv if stride > 1 else op.qkv)(x).unflatten(1, (3, -1))
    small = x[:, :, ::stride, ::stride]
    if stride > 1:
        q, k, v = op.q(small).unflatten(1, (3, 2)), seen[:, :, :2], seen[:, :, 2:]
    else:
        q, k, v = seen[:, :, :2], seen[:, :, 2:4], seen[:, :, 4:]
    rows = []
    for y in range(0, 4, stride):
        for z in range(0, 4, stride):
            apart = [abs(y - i) * 4 + abs(z - j) for i in range(4) for j in range(4)]
            here = q[..., y // stride, z // stride]
            scores = torch.einsum("bhc,bhcm->bhm", here, k.flatten(3)) / 2**0.5
            weights = (scores + op.attention_biases[:, apart]).softmax(-1)
            rows.append(torch.einsum("bhm,bhcm->bhc", weights, v.flatten(3)).flatten(1))
    slow = op.proj(torch.stack(rows, -1).unflatten(2, small.shape[2:]))
    fast = op(x)
    torch.testing.assert_close(fast, slow)
    wanted = (x, op.attention_biases)
    ours, theirs = (
        torch.autograd.grad(y.square().sum(), wanted, retain_graph=True) for y in (fast, slow)
    )
    torch.testing.assert_close(ours, theirs)


def test_biases_of_other_sizes_are_scaled():
    table = torch.arange(4.0).repeat(1, 4).view(1, 16)  # grows to the right
    bias = offset_bias(table, 4, torch.Size((2, 8)))
    assert bias.shape == (1, 16, 16)
    assert (bias[0, 0, :8].diff() >= 0).all()
    assert torch.equal(bias, bias.mT)
