"""GLMix, against PyTorch's attention and the clustering written out."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foveate.errors import FoveateError
from foveate.measure import count
from foveate.ops.glmix import GLMix


def written_out(op: GLMix, x: torch.Tensor, seed: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of places, one step after the other; the attention is PyTorch's."""
    dim = x.shape[1]
    attention = nn.MultiheadAttention(dim, heads, batch_first=True).double()
    attention.in_proj_weight = nn.Parameter(op.attn.qkv.weight.flatten(1))
    attention.in_proj_bias = op.attn.qkv.bias
    attention.out_proj.weight = nn.Parameter(op.attn.proj.weight.flatten(1))
    attention.out_proj.bias = op.attn.proj.bias
    rows = x.permute(0, 2, 3, 1).flatten(1, 2)
    if op.slots is None:
        first = F.adaptive_avg_pool2d(seed, op.side).permute(0, 2, 3, 1).flatten(1, 2)
    else:
        first = op.slots
    logits = F.normalize(first, dim=-1) @ (op.scale * F.normalize(rows, dim=-1)).mT
    slots = logits.softmax(-1) @ rows
    slots, _ = attention(slots, slots, slots, need_weights=False)
    back = logits.mT.softmax(-1) @ slots
    return back.mT.reshape_as(x) + op.local(x)


@pytest.mark.paper("glmix")
@pytest.mark.parametrize("learnt", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (7, 10), (3, 2)])
def test_the_clustering_written_out(size, learnt):
    torch.manual_seed(0)
    op = GLMix(8, heads=2, slots=16, learnt=learnt).double()
    for p in op.parameters():
        nn.init.normal_(p, std=0.5)
    x, seed = (torch.randn(2, 8, *size, dtype=torch.float64, requires_grad=True) for _ in range(2))
    wanted = (x,) if learnt else (x, seed)
    found = op(x, seed)
    expected = written_out(op, x, seed, 2)
    torch.testing.assert_close(found, expected)
    for ours, twin in zip(
        torch.autograd.grad(found.square().sum(), wanted),
        torch.autograd.grad(expected.square().sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(ours, twin)


@pytest.mark.paper("glmix")
def test_the_cost_is_linear_in_places():
    op = GLMix(32, heads=1, slots=16)
    macs = {side: count(op, torch.zeros(1, 32, side, side)).macs for side in (16, 32)}
    among_slots = 16 * 32 * 4 * 32 + 2 * 16 * 16 * 32
    assert macs[32] - among_slots == 4 * (macs[16] - among_slots)
    places = 16 * 16
    grid = places * (2 * 32 * 32 + 25 * 32)
    assert macs[16] - among_slots == grid + 3 * 16 * 32 * places


@pytest.mark.paper("glmix")
def test_slots_part_what_differs():
    """Two halves of a map that differ fill different slots."""
    op = GLMix(4, heads=1, slots=4)
    op.scale.data.fill_(20.0)
    x = torch.zeros(1, 4, 8, 8)
    x[:, 0, :, :4], x[:, 1, :, 4:] = 1.0, 1.0
    shares = op.logits(x).softmax(1).unflatten(2, (8, 8))[0]  # of slots, at each place
    left = shares[[0, 2], :, :4].sum(0)
    right = shares[[1, 3], :, 4:].sum(0)
    assert left.min() > 0.99
    assert right.min() > 0.99


def test_a_map_of_zeros_gives_no_nan():
    op = GLMix(8, heads=2, slots=4)
    assert op(torch.zeros(1, 8, 6, 6)).isfinite().all()


def test_slots_that_form_no_square():
    with pytest.raises(FoveateError, match="square"):
        GLMix(8, slots=10)
    assert GLMix(8, slots=10, learnt=True)(torch.randn(1, 8, 5, 5)).shape == (1, 8, 5, 5)
