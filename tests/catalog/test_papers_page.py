"""The generated files say what the source says."""

import re
import shutil
import subprocess
import sys

from foveate.catalog import Evidence, Verdict, papers
from foveate.catalog.docs import checked, generated, page
from foveate.catalog.evidence import PACKAGE


def test_generated_files_are_current():
    stale = [
        file.name
        for file, text in generated().items()
        if not file.is_file() or file.read_text(encoding="utf-8") != text
    ]
    assert not stale, f"run `make docs`, and commit what it changes in {' and '.join(stale)}"


def test_the_page_links_to_what_is_there():
    (file,) = (file for file in generated() if file.suffix == ".md")
    links = re.findall(r"\]\((?!https?://)([^)]+)\)", generated()[file])
    assert [link for link in links if not (file.parent / link).is_file()] == []


def test_the_page_lists_every_paper_once():
    rows = re.findall(r"^\| `(\w+)` \|", page(papers(), Evidence()), re.MULTILINE)
    assert sorted(rows) == sorted(row.slug for row in papers())


def test_the_page_says_how_far_a_paper_is():
    text = page(
        papers(),
        Evidence(
            symbols={"eca": ["ops/eca.py:Attention"]},
            tests={"eca": ["tests/ops/test_eca.py::test_a", "tests/ops/test_eca.py::test_b"]},
            claims={"eca": "claims/eca.py", "pvt": "claims/pvt.py"},
            verdicts={"eca": Verdict("holds", 1.5, (1.0, 2.0))},
        ),
    )
    assert "| 1 | 43 | 1 | 1 | 1 | 1 | 0 | 0 |" in text
    (eca,) = (line for line in text.splitlines() if line.startswith("| `eca`"))
    assert "[Attention](../src/foveate/ops/eca.py)" in eca
    assert eca.count("[test_eca.py](../tests/ops/test_eca.py)") == 1
    assert "holds: 1.5 (1 to 2)" in eca
    assert "not run yet" in next(line for line in text.splitlines() if line.startswith("| `pvt`"))


def test_table_rows_have_a_cell_for_each_column():
    tables = re.findall(r"(?:^\|.*\|$\n)+", page(papers(), Evidence()), re.MULTILINE)
    for table in tables:
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(bars) == 1, table.splitlines()[2]


def test_an_installed_package_says_that_it_has_no_tests(tmp_path):
    package = tmp_path / "foveate"
    shutil.copytree(PACKAGE / "catalog", package / "catalog")
    shutil.copy(PACKAGE / "errors.py", package)
    (package / "__init__.py").touch()
    done = subprocess.run(
        [sys.executable, "-c", "from foveate.catalog.docs import main; main()"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "clone of the repository" in done.stderr
    assert "Traceback" not in done.stderr


def test_checked_names_the_tests_of_each_paper():
    assert (
        checked(Evidence(tests={"eca": ["tests/a.py::b"]}))
        == '{\n "eca": [\n  "tests/a.py::b"\n ]\n}\n'
    )
