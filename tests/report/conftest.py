"""The runs that the report's tests read."""

from pathlib import Path

import pytest
from example_runs import LABELS, arrays, facts, leave, metrics


@pytest.fixture
def whole_run(tmp_path: Path) -> Path:
    return leave(tmp_path / "whole", facts(LABELS), metrics(), arrays())


@pytest.fixture
def begun_run(tmp_path: Path) -> Path:
    return leave(tmp_path / "begun", {"foveate": "0.1.0", "asked": {"minutes": 10}, "minutes": {}})
