"""What a claim is, what it finds, and how a figure becomes a verdict."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.errors import FoveateError
from foveate.measure import Ratio

if TYPE_CHECKING:
    from foveate.claims._lab import Lab

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Finding:
    """What a claim found: a verdict that follows from an interval, never from a point.

    Attributes:
        verdict: `holds`, `fails` or `inconclusive`.
        figure, low, high: what was measured, with its interval.
        unit: of the figure.
        details: whatever else was measured, JSON-ready, for the page.
        note: what a reader must know, such as how this differs from the paper.
    """

    verdict: str
    figure: float
    low: float
    high: float
    unit: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @classmethod
    def above(cls, line: float, estimate: tuple[float, float, float], **more: Any) -> "Finding":
        """Holds if the whole interval lies above `line`, fails if it lies below."""
        figure, low, high = estimate
        verdict = "holds" if low > line else "fails" if high < line else "inconclusive"
        return cls(verdict, figure, low, high, **more)

    @classmethod
    def below(cls, line: float, estimate: tuple[float, float, float], **more: Any) -> "Finding":
        """Holds if the whole interval lies below `line`, fails if it lies above."""
        figure, low, high = estimate
        verdict = "holds" if high < line else "fails" if low > line else "inconclusive"
        return cls(verdict, figure, low, high, **more)

    @classmethod
    def speedup(cls, line: float, ratio: Ratio, **more: Any) -> "Finding":
        """Whether the second call of a `paired` comparison is `line` times as fast as the first."""
        return cls.above(line, (ratio.median, ratio.low, ratio.high), unit="x", **more)


@dataclass(frozen=True)
class Claim:
    """A paper's claim and how it is measured.

    Attributes:
        slug: the paper's.
        says: the claim in a sentence, as it is tested here.
        paper: the paper's own figure, in words.
        minutes: that a verdict takes on two cores, about.
        run: measures it.
    """

    slug: str
    says: str
    paper: str
    minutes: float
    run: Callable[["Lab"], Finding]


def claim(
    slug: str, *, says: str, paper: str, minutes: float = 1.0
) -> Callable[[Callable[["Lab"], Finding]], Claim]:
    """Make a function of a `Lab` the claim of a paper.

    Args:
        slug, says, paper, minutes: as a `Claim` has them.
    """

    def mark(run: Callable[["Lab"], Finding]) -> Claim:
        return Claim(slug, says, paper, minutes, run)

    return mark


def slugs() -> list[str]:
    """The papers that have a claim."""
    return sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))


def find_claim(slug: str) -> Claim:
    """The claim of a paper.

    Raises: FoveateError if there is no such paper, or it has no claim yet.
    """
    from foveate.catalog import paper

    if paper(slug).slug not in slugs():
        raise FoveateError(
            f"{slug} has no claim that runs yet: choose from {', '.join(slugs())}, or write "
            f"claims/{slug}.py"
        )
    module = importlib.import_module(f"foveate.claims.{slug}")
    found = [value for value in vars(module).values() if isinstance(value, Claim)]
    if len(found) != 1 or found[0].slug != slug:
        raise FoveateError(f"claims/{slug}.py needs one function that bears @claim({slug!r}, ...)")
    return found[0]
