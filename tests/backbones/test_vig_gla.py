"""ViG, against the authors' outputs; three forms of one recurrence; linear cost."""

import pytest
import torch
from torch.nn import functional as F

from foveate.backbones import create_model, load_weights
from foveate.errors import FoveateError
from foveate.measure import count
from foveate.ops.vig_gla import BidirectionalGla, gla_chunked, gla_parallel, gla_recurrent


@pytest.mark.paper("vig_gla")
def test_the_authors_outputs(oracle):
    official = oracle("vig_gla__vig_t")
    model = official.load(create_model("vig_t"))
    assert sum(p.numel() for p in model.parameters()) == official.facts["params"]
    found = set(official.agrees(model, {"patch_embed": "stem.4", "pos_drop": "stem"}))
    assert {"patch_embed", "pos_drop", "blocks.0", "blocks.11", "norm", "head"} <= found


@pytest.mark.paper("vig_gla")
def test_published_parameter_counts():
    """Table 1 of arXiv 2405.18425, in millions."""
    for name, millions in {"t": 6, "s": 23, "b": 89}.items():
        with torch.device("meta"):
            found = sum(p.numel() for p in create_model(f"vig_{name}").parameters())
        assert round(found / 1e6) == millions, name


@pytest.mark.paper("vig_gla")
def test_the_pyramid_has_the_authors_names_and_sizes(tmp_path):
    """Their 29, 50 and 89 million parameters; and a checkpoint named as theirs."""
    for name, millions in {"t": 29, "s": 50, "b": 89}.items():
        with torch.device("meta"):
            found = sum(p.numel() for p in create_model(f"vig_h_{name}").parameters())
        assert round(found / 1e6) == millions, name
    model = create_model("vig_h_t", num_classes=3)
    state = model.state_dict()
    moved = {"stem.0": "0", "stem.1": "2", "stem.3": "5", "stem.4": "7"}
    official = {}
    for name, tensor in state.items():
        for ours, theirs in moved.items():
            name = name.replace(f"{ours}.", f"patch_embed.{theirs}.") if "stem" in name else name
        for i in (1, 2, 3):
            for ours, theirs in (("0", "1"), ("1", "3")):
                old = f"stages.{i}.downsample.{ours}."
                name = name.replace(old, f"layers.{i - 1}.downsample.{theirs}.")
        name = name.replace("stages.3.norm.", "classifier.norm.").replace("stages.", "layers.")
        name = name.replace("head.fc.", "classifier.head.").replace(".norm1.", ".norm.")
        name = name.replace(".attn.", ".op.").replace(".local.", ".in_proj.0.")
        official[name] = tensor
    torch.save({"model": official}, tmp_path / "official.pth")
    fresh = create_model("vig_h_t", num_classes=3)
    assert not load_weights(fresh, tmp_path / "official.pth").skipped
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(fresh.eval()(images), model.eval()(images))


def inputs(n, strength=1.0, dtype=torch.float64):
    torch.manual_seed(0)
    q, k = (torch.randn(2, 3, n, 4, dtype=dtype, requires_grad=True) for _ in range(2))
    v = torch.randn(2, 3, n, 5, dtype=dtype, requires_grad=True)
    gates = F.logsigmoid(strength * torch.randn(2, 3, n, 4, dtype=dtype)).requires_grad_()
    return q, k, v, gates


@pytest.mark.paper("vig_gla")
@pytest.mark.parametrize("n", [1, 7, 16, 50])
@pytest.mark.parametrize("chunk", [1, 8, 64])
def test_the_forms_agree(n, chunk):
    values = inputs(n)
    forms = [gla_recurrent, gla_parallel, lambda *a: gla_chunked(*a, chunk=chunk)]
    found = []
    for form in forms:
        out = form(*values)
        found.append((out, *torch.autograd.grad(out.square().sum(), values)))
    for other in found[1:]:
        for ours, reference in zip(other, found[0], strict=True):
            torch.testing.assert_close(ours, reference)


def test_strong_gates_stay_finite():
    q, k, v, gates = inputs(128, 8.0, torch.float32)
    out = gla_chunked(q, k, v, gates / 16)
    torch.testing.assert_close(out, gla_recurrent(q, k, v, gates / 16), atol=1e-4, rtol=1e-3)


@pytest.mark.paper("vig_gla")
def test_both_directions_in_one_pass():
    """Each pixel hears of those before it and of those after it, and turning the image round with
    the gates exchanged turns the output round."""
    torch.manual_seed(0)
    op = BidirectionalGla(8, 2).double()
    x = torch.randn(1, 8, 3, 4, dtype=torch.float64, requires_grad=True)
    for place in (0, 5, 11):
        (gradient,) = torch.autograd.grad(op(x).flatten(2)[0, :, place].sum(), x)
        assert (gradient != 0).all()
    turned = BidirectionalGla(8, 2).double()
    turned.load_state_dict(op.state_dict())
    with torch.no_grad():
        for parameter in (turned.gk_proj[1].weight, turned.gk_proj[1].bias):
            parameter.copy_(torch.cat(parameter.chunk(2)[::-1]))
        turned.local.weight.copy_(turned.local.weight.flip((2, 3)))
    torch.testing.assert_close(turned(x.flip((2, 3))).flip((2, 3)), op(x))


@pytest.mark.paper("vig_gla")
def test_the_cost_is_linear_in_pixels():
    macs = [count(BidirectionalGla(32, 2), torch.zeros(1, 32, s, s)).macs for s in (16, 32, 64)]
    assert macs[1] == pytest.approx(4 * macs[0], rel=0.01)
    assert macs[2] == pytest.approx(4 * macs[1], rel=0.01)


def test_mistakes():
    with pytest.raises(FoveateError, match="heads"):
        BidirectionalGla(10, 4)
    with pytest.raises(FoveateError, match="depth"):
        create_model("vig_t", depth=10)
