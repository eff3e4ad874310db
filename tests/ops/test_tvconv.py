"""Kernels of places: a locally connected layer, computed once or each time."""

import pytest
import torch

from foveate.errors import FoveateError
from foveate.ops.merge import merge
from foveate.ops.tvconv import TvConv


@pytest.mark.paper("tvconv")
@pytest.mark.parametrize("stride", [1, 2])
def test_a_locally_connected_depthwise_layer(stride):
    """Against a loop over places."""
    torch.manual_seed(0)
    op = TvConv(3, (6, 5), stride=stride)
    torch.nn.init.normal_(op.affinity)
    x = torch.randn(2, 3, 6, 5)
    weights, padded = op.weights()[0], torch.nn.functional.pad(x, (1, 1, 1, 1))
    out = op(x)
    for i in range(out.shape[2]):
        for j in range(out.shape[3]):
            seen = padded[:, :, i * stride : i * stride + 3, j * stride : j * stride + 3]
            expected = (seen.flatten(2) * weights[:, :, i, j]).sum(2)
            torch.testing.assert_close(out[:, :, i, j], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.paper("tvconv")
def test_kernels_kept_are_kernels_made():
    torch.manual_seed(0)
    op = TvConv(4, (7, 7))
    torch.nn.init.normal_(op.affinity)
    x = torch.randn(2, 4, 7, 7)
    before = op(x)
    merge(op)
    torch.testing.assert_close(op(x), before)
    assert list(op.parameters()) == []
    merge(op)
    torch.testing.assert_close(op(x), before)


@pytest.mark.paper("tvconv")
def test_the_authors_parameters():
    """4 affinity maps; 3x3 convolutions 4 to 16 to 16 to 9 C, no bias; norms over whole maps."""
    op = TvConv(32, (14, 14))
    convolutions = 9 * (4 * 16 + 16 * 16 + 16 * 9 * 32)
    assert sum(p.numel() for p in op.parameters()) == (
        4 * 14 * 14 + convolutions + 2 * 2 * 16 * 14 * 14
    )


def test_another_size_is_refused():
    with pytest.raises(FoveateError, match="made for"):
        TvConv(2, (4, 4))(torch.zeros(1, 2, 5, 4))
