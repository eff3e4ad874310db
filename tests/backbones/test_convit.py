"""ConViT, against timm's with the same weights; its gates; and its attention, pair by pair."""

import pytest
import timm
import torch
from torch.nn import functional as F

from foveate.backbones import create_model
from foveate.ops.convit import GatedPositionalSelfAttention


@pytest.mark.paper("convit")
def test_timms_outputs(twins):
    reference, ours = twins("convit_tiny")
    seen = {}
    for key, module in (("theirs", reference.blocks[9]), ("ours", ours.stages[0])):
        module.register_forward_hook(lambda m, i, out, key=key: seen.update({key: out}))
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), reference(images), atol=1e-4, rtol=1e-4)
    rows = seen["ours"].flatten(2).mT
    torch.testing.assert_close(rows, seen["theirs"], atol=1e-4, rtol=1e-4)


@pytest.mark.paper("convit")
@pytest.mark.parametrize("name", ["convit_tiny", "convit_small", "convit_base"])
def test_timms_beginning_and_size(name):
    """Values, places and gates are not drawn, so both begin with the same numbers."""
    with torch.device("meta"):
        ours = sum(p.numel() for p in create_model(name).parameters())
        assert ours == sum(p.numel() for p in timm.create_model(name).parameters())
    theirs = timm.create_model(name, depth=2, local_up_to_layer=1).blocks[0].attn
    op = GatedPositionalSelfAttention(theirs.dim, theirs.num_heads)
    assert torch.equal(op.v.weight.flatten(1), theirs.v.weight)
    assert torch.equal(op.pos_proj.weight, theirs.pos_proj.weight)
    assert torch.equal(op.gating_param, theirs.gating_param)


def test_places_mix_as_all_pairs_do():
    """The whole matrix of equation 8 against its two factors; outputs and gradients."""
    torch.manual_seed(0)
    op = GatedPositionalSelfAttention(8, heads=4, strength=0.3).double()
    for parameter in op.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64, requires_grad=True)
    offset = torch.tensor(
        [[[k % 5 - q % 5, k // 5 - q // 5] for k in range(15)] for q in range(15)]
    ).double()
    r = torch.cat((offset, offset.square().sum(-1, keepdim=True)), dim=-1)
    near = op.pos_proj(r).permute(2, 0, 1).softmax(-1)
    q, k = op.qk(x).flatten(2).chunk(2, 1)
    q, k = (t.unflatten(1, (4, 2)) for t in (q, k))
    alike = torch.einsum("bhcn,bhcm->bhnm", q, k).div(2**0.5).softmax(-1)
    gate = op.gating_param.sigmoid().view(4, 1, 1)
    weights = (1 - gate) * alike + gate * near
    torch.testing.assert_close(op.attention(x), weights / weights.sum(-1, keepdim=True))
    v = op.v(x).flatten(2).unflatten(1, (4, 2))
    slow = torch.einsum("bhnm,bhcm->bhcn", weights, v).flatten(1, 2).unflatten(2, (3, 5))
    slow, fast = op.proj(slow), op(x)
    torch.testing.assert_close(fast, slow)
    wanted = [x, *op.pos_proj.parameters(), op.gating_param]
    ours, theirs = (
        torch.autograd.grad(y.square().sum(), wanted, retain_graph=True) for y in (fast, slow)
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.paper("convit")
def test_sharp_heads_with_shut_gates_are_a_convolution():
    """Nine heads, each looking at its own place of a 3x3 kernel (section 2)."""
    torch.manual_seed(0)
    op = GatedPositionalSelfAttention(9, heads=9, strength=40.0)
    torch.nn.init.constant_(op.gating_param, 50.0)
    x = torch.randn(1, 9, 6, 6)
    each = torch.zeros(9, 9, 3, 3)
    for head in range(9):
        right, down = divmod(head, 3)
        each[:, head, down, right] = op.proj.weight[:, head, 0, 0]
    convolved = F.conv2d(x, each, op.proj.bias)
    torch.testing.assert_close(op(x)[:, :, 1:-1, 1:-1], convolved, atol=1e-5, rtol=1e-4)


def test_gates_can_be_read_out():
    model = create_model("convit_mini32", num_classes=2)
    gates = torch.stack(model.gates())
    assert gates.shape == (4, 9)
    torch.testing.assert_close(gates, torch.full((4, 9), 0.7310586))
