"""The search finds papers by what people type."""

import pytest

from foveate.catalog import Evidence, papers, ranking, search
from foveate.errors import FoveateError


def slugs(query: str = "", **filters) -> list[str]:
    return [paper.slug for paper in search(query, **filters)]


def test_large_kernel_finds_the_large_kernel_nets():
    assert {"unireplknet", "unireplknet_v2", "lkca", "recconv"} <= set(slugs("large kernel")[:5])


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("quantisation", "quantization"),
        ("optimiser", "optimizer"),
        ("colour", "color"),
        ("tokenised", "tokenized"),
        ("Kernels", "kernel"),
        ("pruned", "pruning"),
        ("large-kernel", "large kernel"),
    ],
)
def test_spelling_and_endings_make_no_difference(typed, meant):
    assert slugs(typed) == slugs(meant) != []


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("inceptionext", "inceptionnext"),
        ("inception next", "inceptionnext"),
        ("quantizaton", "gpfq"),
        ("larg kernel", "unireplknet"),
        ("replk", "unireplknet"),
        ("InceptionNeXt: When Inception Meets ConvNeXt", "inceptionnext"),
        ("2303.16900", "inceptionnext"),
        ("token prunning", "tnt_pruning"),
        ("difusion transformer", "delta_dit"),
        ("the Laplace schedule", "laplace_schedule"),
    ],
)
def test_what_was_meant_is_found(typed, meant):
    assert meant in slugs(typed)[:12]


@pytest.mark.parametrize("slug", ["eca", "resnet", "vmoe", "inception_v4", "maco", "var"])
def test_a_slug_finds_its_own_paper_first(slug):
    assert slugs(slug)[0] == slug
    assert slugs(slug.upper().replace("_", "-"))[0] == slug


def test_a_title_finds_its_own_paper_first():
    first = [row for row in papers() if row.tier == 1]
    assert [row.slug for row in first if slugs(row.title)[0] != row.slug] == []


def test_a_long_name_with_a_letter_missing_finds_its_paper():
    long = [row.slug for row in papers() if len(row.slug) > 9 and "_" not in row.slug]
    assert len(long) > 30
    assert [slug for slug in long if slug not in slugs(slug[:5] + slug[6:])[:5]] == []


def test_a_well_spelt_word_finds_nothing_merely_alike():
    assert "quantization" not in slugs("eca")
    assert slugs("eca") == ["eca"]


def test_papers_with_all_words_shut_out_those_with_some():
    both = set(slugs("channel attention"))
    assert both < set(slugs("attention"))


def test_nonsense_finds_nothing():
    assert slugs("xyzzyqq") == []
    assert slugs("of the") == []


def test_without_a_query_every_paper_comes_by_tier():
    tiers = [paper.tier for paper in search()]
    assert len(tiers) == 443
    assert tiers == sorted(tiers)


def test_filters_narrow_what_a_query_finds():
    found = search("kernel", kind="operator", tier=1)
    assert {(paper.kind, paper.tier) for paper in found} == {("operator", 1)}
    assert len(found) < len(search("kernel"))


def test_filter_by_status(monkeypatch):
    made_up = Evidence(
        symbols={"eca": ["ops/eca.py:Attention"], "pvt": ["backbones/pvt.py:PVT"]},
        tests={"eca": ["tests/ops/test_eca.py::test_numbers"]},
    )
    monkeypatch.setattr(ranking, "evidence", lambda: made_up)
    assert set(slugs(status="implemented")) == {"eca", "pvt"}
    assert slugs(status="checked") == ["eca"]
    assert slugs(status="claimed") == slugs(status="fails") == []
    assert len(slugs(status="open")) == 441


@pytest.mark.parametrize(
    ("filters", "choices"),
    [
        ({"kind": "operators"}, "operator"),
        ({"tier": 5}, "1, 2, 3, 4"),
        ({"status": "done"}, "implemented, checked, claimed, holds, fails, inconclusive, open"),
    ],
)
def test_a_wrong_filter_is_told_the_choices(filters, choices):
    with pytest.raises(FoveateError, match=choices):
        search("kernel", **filters)
