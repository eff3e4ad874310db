"""docs/backbones.md says what the code says."""

import re

import pytest

from foveate.backbones import sizes
from foveate.backbones._page import DOCS, _counted, backbones_page

PAGE = DOCS / "backbones.md"

if not PAGE.exists():
    pytest.skip("Foveate does not run from a checkout", allow_module_level=True)


def test_every_size_has_a_line():
    listed = re.findall(r"^\| `(\w+)` \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(sizes()), "run `make docs`"


@pytest.mark.parametrize("name", ["convnext_tiny", "hornet_mini32", "lsnet_t"])
def test_lines_are_current(name):
    params, macs = _counted(name)
    line = next(x for x in PAGE.read_text("utf-8").splitlines() if x.startswith(f"| `{name}` |"))
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert abs(float(cells[2]) - params / 1e6) < 0.051
    assert abs(float(cells[3]) - macs / 1e9) < 0.0051


@pytest.mark.slow
def test_the_whole_page_is_current():
    assert PAGE.read_text("utf-8") == backbones_page(), "run `make docs`"
