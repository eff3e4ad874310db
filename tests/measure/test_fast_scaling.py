"""Exponents of the paper's section 3, and factors that spend what they are told to."""

import pytest
import torch

from foveate.claims.fast_scaling import plain_net
from foveate.errors import FoveateError
from foveate.measure import count
from foveate.measure.fast_scaling import COMPOUND, Shares, factors, fast


@pytest.mark.paper("fast_scaling")
def test_exponents_of_the_activations_are_the_papers():
    """Table 2 and figure 3: d and r grow activations by s, w by the root of s, dWr by s^0.6."""
    powers = {name: shares.activations for name, shares in COMPOUND.items()}
    assert powers == pytest.approx({"d": 1, "w": 0.5, "r": 1, "dw": 0.75, "dwr": 5 / 6})
    assert fast(0.8).activations == pytest.approx(0.6)
    assert fast(1.0) == COMPOUND["w"]
    assert fast(0.0) == Shares(0.5, 0.0, 0.5)


@pytest.mark.paper("fast_scaling")
def test_four_times_the_arithmetic():
    """A convolutional network so scaled has four times the multiply-adds inside its stages, and
    its activations grow with the exponent that the formula says."""
    for way, exact in {
        "d": (16, 24, 48),
        "w": (4, 48, 48),
        "r": (4, 24, 96),
    }.items():
        by = factors(4, COMPOUND[way])
        depth, width, side = 4 * by.depth, 24 * by.width, 48 * by.resolution
        assert (depth, width, side) == pytest.approx(exact)
        before = _stage(4, 24, 48)
        after = _stage(round(depth), round(width), round(side))
        assert after[0] == 4 * before[0]
        assert after[1] == before[1] * 4 ** COMPOUND[way].activations


def test_the_shares_sum_to_one():
    for shares in (*COMPOUND.values(), fast(0.3)):
        assert sum(shares) == pytest.approx(1)


def test_a_share_beyond_everything():
    with pytest.raises(FoveateError, match=r"1\.5"):
        fast(1.5)


def _stage(depth: int, width: int, side: int) -> tuple[int, int]:
    """Multiply-adds and activations of the first stage's convolutions."""
    found = count(plain_net(depth, width), torch.zeros(1, 3, side, side))
    convs = [layer for layer in found.layers if layer.name.endswith(".conv")][:depth]
    return sum(c.macs for c in convs), sum(c.activations for c in convs)
