"""Every kernel compiles for an H100, at real sizes and without spilling; no GPU is needed."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@pytest.mark.slow
@pytest.mark.skipif(not (TOOLS / "ptxas").exists(), reason="this Triton comes without ptxas")
def test_every_launch_compiles_and_fits_the_registers():
    compiler = Path(__file__).with_name("compile_for_h100.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, compiler], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    sorts = 2 * 2 * 3  # types, layouts, sizes
    assert Counter(one["kernel"] for one in found) == {
        "_convolution": 8 * sorts,
        "_weight_gradient": 7 * sorts,
        "_mixer": 2 * sorts,
        "_normalise": sorts,
        "_differentiate": sorts,
        "_shift_tile": 2 * sorts,
    }
    assert [one for one in found if one["spilled"]] == []
