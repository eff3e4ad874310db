"""How to spend s times the arithmetic: on depth, width or resolution, and what it does to time.

Source: fast_scaling (arXiv 2103.06877, sections 3 and 4). Activations, and not
operations, tell how long a scaled network takes; widening grows them least.
"""

from typing import NamedTuple

from foveate.catalog import implements
from foveate.errors import FoveateError


class Shares(NamedTuple):
    """Exponents of s in the arithmetic that depth, width and resolution bring; their sum is 1."""

    depth: float
    width: float
    resolution: float

    @property
    def activations(self) -> float:
        """Exponent of s in the activations."""
        return self.depth + self.width / 2 + self.resolution


class Factors(NamedTuple):
    """By how much depth, width and resolution grow."""

    depth: float
    width: float
    resolution: float


COMPOUND = {
    "d": Shares(1, 0, 0),
    "w": Shares(0, 1, 0),
    "r": Shares(0, 0, 1),
    "dw": Shares(1 / 2, 1 / 2, 0),
    "dwr": Shares(1 / 3, 1 / 3, 1 / 3),
}
"""Common ways to scale."""


@implements("fast_scaling")
def fast(alpha: float = 0.8) -> Shares:
    """dWr: a share `alpha` of the growth is width's, the rest is divided evenly.

    Raises: FoveateError unless 0 <= alpha <= 1.
    """
    if not 0 <= alpha <= 1:
        raise FoveateError(f"alpha is {alpha}: give a share between 0 and 1")
    return Shares((1 - alpha) / 2, alpha, (1 - alpha) / 2)


def factors(s: float, shares: Shares) -> Factors:
    """Factors that make a network cost `s` times the arithmetic: operations grow with depth, and
    with the squares of width and resolution."""
    return Factors(s**shares.depth, s ** (shares.width / 2), s ** (shares.resolution / 2))
