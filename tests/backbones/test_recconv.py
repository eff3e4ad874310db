"""RecNeXt, in both forms, against the authors' outputs; and what recursion costs."""

import pytest
import torch

from foveate.backbones import create_model
from foveate.measure import count
from foveate.ops.recconv import RecConv


@pytest.mark.paper("recconv")
@pytest.mark.parametrize(("file", "deploy"), [("recnext_m0", False), ("m0_fused", True)])
def test_the_authors_outputs(oracle, file, deploy):
    official = oracle(f"recconv__{file}")
    model = official.load(create_model("recnext_m0", deploy=deploy))
    assert sum(p.numel() for p in model.parameters()) == official.facts["params"]
    assert {"stem", "stages.0", "stages.3", "head"} <= set(official.agrees(model))


@pytest.mark.paper("recconv")
@pytest.mark.parametrize("level", range(5))
def test_weights_and_work_grow_as_the_paper_says(level):
    """At most level + 2 times the weights and 5/3 times the work of a kernel, and twice the view
    for each level."""
    op = RecConv(8, 5, level)
    assert sum(p.numel() for p in op.parameters()) == (level + 2) * 8 * 25
    macs = count(op, torch.zeros(1, 8, 64, 64)).macs
    convolutions = 8 * 25 * 64 * 64
    assert convolutions <= macs - _interpolated(level) <= 5 / 3 * convolutions


@pytest.mark.paper("recconv")
def test_the_view_doubles_with_each_level():
    reach = []
    for level in range(4):
        op = RecConv(1, 5, level).double()
        for p in op.parameters():
            torch.nn.init.ones_(p)
        x = torch.zeros(1, 1, 127, 127, dtype=torch.float64, requires_grad=True)
        op(x)[0, 0, 63, 63].backward()
        seen = x.grad[0, 0].nonzero()
        reach.append(int(seen.max() - seen.min()) + 1)
    for level in range(1, 4):
        assert reach[level] >= 5 * 2**level
        assert reach[level] >= 1.8 * reach[level - 1]


def test_a_map_of_one_pixel():
    assert RecConv(4, 5, 3)(torch.randn(1, 4, 1, 1)).shape == (1, 4, 1, 1)


def _interpolated(level: int) -> int:
    """Multiply-adds that the counter charges for scaling maps up."""

    class Up(torch.nn.Module):
        def forward(self, x):
            for i in range(level):
                x[..., :: 2 ** (i + 1), :: 2 ** (i + 1)]
                small = x[..., : 64 // 2 ** (i + 1), : 64 // 2 ** (i + 1)]
                torch.nn.functional.interpolate(small, scale_factor=2, mode="bilinear")
            return x

    return count(Up(), torch.zeros(1, 8, 64, 64)).macs
