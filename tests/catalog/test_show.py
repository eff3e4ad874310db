"""What `foveate papers` prints, for people and for machines."""

import io
import json

import pytest
from rich.console import Console

from foveate.catalog import Evidence, Verdict, paper, search
from foveate.catalog.show import print_paper, print_papers
from foveate.errors import FoveateError


@pytest.fixture
def done(monkeypatch) -> None:
    """As if eca were done, and its claim had failed."""
    made_up = Evidence(
        symbols={"eca": ["ops/eca.py:Attention"]},
        tests={"eca": ["tests/ops/test_eca.py::test_numbers"]},
        claims={"eca": "claims/eca.py"},
        verdicts={"eca": Verdict("fails", 0.4, (-0.1, 0.9))},
    )
    monkeypatch.setattr("foveate.catalog.evidence.evidence", lambda: made_up)


def printed(function, *args, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    function(*args, console=console)
    return console.file.getvalue()


def test_json_is_an_array_of_the_rows_with_their_status(capsys, done):
    print_papers(search("channel attention"), json=True)
    rows = json.loads(capsys.readouterr().out)
    assert rows[0] == {
        **paper("eca").as_json(),
        "status": {"implemented": True, "checked": True, "claimed": "fails"},
    }
    assert rows[1]["status"] == {"implemented": False, "checked": False, "claimed": None}


def test_json_of_nothing_found_is_an_empty_array(capsys):
    print_papers([], json=True)
    assert json.loads(capsys.readouterr().out) == []


def test_json_of_one_paper_says_what_its_status_rests_on(capsys, done):
    print_paper("eca", json=True)
    (row,) = json.loads(capsys.readouterr().out)
    assert row["slug"] == "eca"
    assert row["symbols"] == ["ops/eca.py:Attention"]
    assert row["tests"] == ["tests/ops/test_eca.py::test_numbers"]
    assert row["claim_file"] == "claims/eca.py"
    assert row["verdict"] == {"verdict": "fails", "figure": 0.4, "interval": [-0.1, 0.9]}


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_names_every_paper_whole(width):
    found = search("large kernel")
    text = printed(print_papers, found, width=width)
    assert all(row.slug in text for row in found)
    assert f"{len(found)} papers" in text
    assert max(map(len, text.splitlines())) <= width


def test_the_table_says_how_far_each_is(done):
    text = printed(print_papers, [paper("eca"), paper("pvt")])
    assert all(word in text for word in ("implemented", "checked", "fails", "open"))


def test_nothing_found_says_what_to_do():
    assert "no paper fits" in printed(print_papers, [])


def test_one_paper_in_full(done):
    text = printed(print_paper, "eca", width=200)
    row = paper("eca")
    assert row.title in text
    assert "https://arxiv.org/abs/1910.03151" in text
    assert ", ".join(row.needs) in text
    assert "ops/eca.py:Attention" in text
    assert "tests/ops/test_eca.py::test_numbers" in text
    assert "fails: 0.4 (-0.1 to 0.9)" in text


def test_brackets_are_text_and_not_markup():
    marked = [row for row in search() if "[" in row.what + row.claim + row.check]
    assert marked, "some rows have brackets, which rich would read as styles"
    text = printed(print_paper, marked[0].slug, width=4000)
    assert marked[0].what in text
    assert marked[0].check in text


def test_a_paper_that_is_not_there():
    with pytest.raises(FoveateError, match="inceptionnext"):
        print_paper("inceptionext")
