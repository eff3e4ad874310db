"""Status says what the source says: on a small made-up tree, and on this one."""

import json
from pathlib import Path

import pytest

from foveate.catalog import Evidence, papers, status
from foveate.catalog.evidence import PACKAGE, checkout_tests
from foveate.errors import FoveateError

ECA = """
from foveate.catalog import implements
import a_module_that_is_not_there

@implements("eca")
class Attention:
    pass

@implements("se")
class _Hidden:
    pass

class Family:
    @implements("scse")
    def edit(self): ...

@other
@implements("eca")
def attention(): ...

def make():
    @implements("involution")
    class Inner: ...
"""

TESTS = """
import pytest

@pytest.mark.paper("eca")
def test_numbers(): ...

@pytest.mark.paper("eca")
def helper(): ...

@pytest.mark.skip(reason="not today")
@pytest.mark.paper("se")
def test_never_run(): ...

@pytest.mark.parametrize("size", [1, pytest.param(2, marks=pytest.mark.paper("scse"))])
def test_sizes(size): ...

class TestLayer:
    @pytest.mark.paper("eca")
    def test_shape(self): ...
"""


@pytest.fixture
def tree(tmp_path) -> Path:
    """A package `src/house` with an operator and claims, and its tests."""
    for name, text in {
        "src/house/ops/eca.py": ECA,
        "src/house/claims/__init__.py": "",
        "src/house/claims/eca.py": "",
        "src/house/claims/se.py": "",
        "tests/ops/test_eca.py": TESTS,
        "tests/ops/test_pvt.py": 'import pytest\npytestmark = [pytest.mark.paper("pvt")]\n',
        "tests/conftest.py": '@pytest.mark.paper("vovnet")\ndef test_in_no_test_file(): ...',
    }.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


def scan(tree: Path) -> Evidence:
    return Evidence.scan(tree / "src" / "house", tree / "tests")


def record(tree: Path, *rows: dict) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tree / "src/house/claims/results.jsonl").write_text(text)


def verdict(slug: str, outcome: str, figure: float = 1.5) -> dict:
    interval = [figure - 0.5, figure + 0.5]
    return {"slug": slug, "verdict": outcome, "figure": figure, "interval": interval}


def test_public_symbols_implement(tree):
    found = scan(tree)
    assert found.symbols == {
        "eca": ["ops/eca.py:Attention", "ops/eca.py:attention"],
        "scse": ["ops/eca.py:Family.edit"],
    }
    assert found.status("eca").implemented
    assert not found.status("se").implemented, "a hidden class is not for others to use"


def test_marked_tests_check(tree):
    assert scan(tree).tests == {
        "eca": [
            "tests/ops/test_eca.py::TestLayer::test_shape",
            "tests/ops/test_eca.py::test_numbers",
        ],
        "pvt": ["tests/ops/test_pvt.py"],
        "scse": ["tests/ops/test_eca.py::test_sizes"],
    }


def test_nothing_found_is_nothing_done(tree):
    assert scan(tree).status("involution").as_json() == {
        "implemented": False,
        "checked": False,
        "claimed": None,
    }


def test_the_last_verdict_counts(tree):
    record(tree, verdict("eca", "holds", 2.0), verdict("eca", "fails", 1.5))
    state = scan(tree).status("eca")
    assert state.as_json() == {"implemented": True, "checked": True, "claimed": "fails"}
    assert state.claim == "claims/eca.py"
    assert str(state.verdict) == "fails: 1.5 (1 to 2)"


def test_a_claim_that_never_ran_has_no_verdict(tree):
    record(tree, verdict("eca", "holds"))
    state = scan(tree).status("se")
    assert state.claim == "claims/se.py"
    assert state.claimed is None


def test_a_verdict_without_its_claim_does_not_count(tree):
    record(tree, verdict("pvt", "holds"))
    assert scan(tree).status("pvt").claimed is None


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[]",
        json.dumps({"slug": "eca", "verdict": "holds"}),
        json.dumps(verdict("eca", "perhaps")),
        json.dumps({**verdict("eca", "holds"), "interval": [1]}),
    ],
)
def test_a_bad_verdict_is_named_by_its_line(tree, line):
    file = tree / "src/house/claims/results.jsonl"
    file.write_text(json.dumps(verdict("eca", "holds")) + "\n" + line + "\n")
    with pytest.raises(FoveateError, match=r"results\.jsonl:2 "):
        scan(tree)


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("src/house/ops/bad.py", "@implements(SLUG)\nclass Bad: ...\n", 1),
        ("tests/test_bad.py", "@pytest.mark.paper('eca', 'se')\ndef test_bad(): ...\n", 1),
        ("src/house/ops/bad.py", "@implements('eca')\nclass Bad:\n  def (:\n", 3),
    ],
    ids=["slug in a variable", "two slugs", "not Python"],
)
def test_source_that_cannot_be_read_is_named(tree, name, text, line):
    (tree / name).write_text(text)
    with pytest.raises(FoveateError, match=rf"bad\.py:{line} "):
        scan(tree)


def test_an_installed_package_remembers_what_was_checked(tree):
    package = tree / "src" / "house"
    (package / "catalog").mkdir()
    (package / "catalog/checked.json").write_text(
        '{"eca": ["tests/ops/test_eca.py::test_numbers"]}'
    )
    found = Evidence.scan(package, tests=None)
    assert found.status("eca").tests == ("tests/ops/test_eca.py::test_numbers",)
    assert not found.status("pvt").checked


def test_this_checkout_names_only_papers_of_the_catalogue():
    assert checkout_tests() == Path(__file__).resolve().parents[1]
    found = Evidence.scan(PACKAGE, checkout_tests())
    marked = {*found.symbols, *found.tests}
    assert marked <= {row.slug for row in papers()}, "a mark names a paper that is not there"


def test_status_of_an_unknown_paper_is_told_the_nearest():
    with pytest.raises(FoveateError, match="inceptionnext"):
        status("inceptionext")
