"""The catalogue's rows are all there, and `implements` ties code to one of them."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict

import pytest

from foveate.catalog import implements, paper, papers
from foveate.errors import FoveateError


def test_every_row_is_there_once():
    slugs = [row.slug for row in papers()]
    assert len(slugs) == len(set(slugs)) == 443
    assert Counter(row.tier for row in papers()) == {1: 43, 2: 197, 3: 156, 4: 47}
    assert all(row.slug.isidentifier() for row in papers()), "a slug names files and modules"


def test_rows_are_those_of_the_source_and_links_it_lacks_are_filled_in(shared):
    lines = (shared / "catalog.jsonl").read_text("utf-8").splitlines()
    source = [json.loads(line) for line in lines]
    assert [row.slug for row in papers()] == [row["slug"] for row in source]
    for ours, theirs in zip(papers(), source, strict=True):
        differing = {name for name, value in asdict(ours).items() if _plain(value) != theirs[name]}
        assert differing <= {"arxiv", "repo"}, f"{ours.slug} says otherwise: {differing}"
        assert not any(theirs[name] for name in differing), f"{ours.slug}: a link was replaced"


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def test_a_row_says_what_it_is_and_where():
    row = paper("inceptionnext")
    assert row.title == "InceptionNeXt: When Inception Meets ConvNeXt"
    assert (row.year, row.tier, row.kind) == (2023, 1, "backbone")
    assert row.needs == ("convnext",)
    assert row.arxiv_url == "https://arxiv.org/abs/2303.16900"
    assert row.repo_url == "https://github.com/sail-sg/inceptionnext"


def test_a_paper_may_be_without_links():
    row = paper("instella_t2i")
    assert (row.arxiv, row.arxiv_url) == ("", "")
    assert len(row.needs) > 1


def test_a_paper_cannot_be_changed():
    with pytest.raises(AttributeError):
        paper("eca").tier = 2  # type: ignore[misc]


def test_a_wrong_slug_is_told_the_nearest():
    with pytest.raises(FoveateError, match="inceptionnext"):
        paper("inceptionext")


def test_implements_marks_a_class_and_changes_nothing_else():
    class Gate:
        """A gate."""

    marked = implements("eca")(Gate)
    assert marked is Gate
    assert marked.__paper__ == "eca"


def test_implements_marks_a_function():
    @implements("eca")
    def gate(x):
        return x + 1

    assert gate(1) == 2
    assert gate.__paper__ == "eca"


def test_implements_refuses_an_unknown_slug():
    with pytest.raises(FoveateError, match="'no_such_paper'"):
        implements("no_such_paper")


def test_importing_the_catalogue_needs_no_torch():
    code = (
        "import sys, foveate.catalog, foveate.catalog.show;"
        "print({'torch', 'numpy', 'timm', 'torchvision'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
