"""A verdict follows from an interval, and every claim is found by its paper's slug."""

import pytest

from foveate.claims import Claim, Finding, find_claim, slugs
from foveate.errors import FoveateError
from foveate.measure import Ratio


@pytest.mark.parametrize(
    ("interval", "above", "below"),
    [
        ((1.1, 1.3), "holds", "fails"),
        ((0.7, 0.9), "fails", "holds"),
        ((0.9, 1.3), "inconclusive", "inconclusive"),
        ((1.0, 1.3), "inconclusive", "inconclusive"),
        ((0.8, 1.0), "inconclusive", "inconclusive"),
    ],
)
def test_the_whole_interval_decides(interval, above, below):
    low, high = interval
    estimate = ((low + high) / 2, low, high)
    assert Finding.above(1.0, estimate).verdict == above
    assert Finding.below(1.0, estimate).verdict == below


def test_a_ratio_becomes_a_finding():
    found = Finding.speedup(
        1.5, Ratio(median=1.8, low=1.7, high=1.9, pairs=40, a=0.018, b=0.01), note="here"
    )
    assert (found.verdict, found.figure, found.unit, found.note) == ("holds", 1.8, "x", "here")
    assert (found.low, found.high) == (1.7, 1.9)


@pytest.mark.parametrize("slug", slugs())
def test_every_claim_file_holds_its_papers_claim(slug):
    found = find_claim(slug)
    assert isinstance(found, Claim)
    assert found.slug == slug
    assert found.says.endswith(".")
    assert found.paper
    assert found.minutes > 0


def test_a_paper_that_is_not_there():
    with pytest.raises(FoveateError, match="inceptionnext"):
        find_claim("inceptionext")


def test_a_paper_without_a_claim():
    with pytest.raises(FoveateError, match=r"write claims/imagenet32\.py"):
        find_claim("imagenet32")
