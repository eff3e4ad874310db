"""Every round asks every side, and what libraries print there is not taken for an answer."""

import pytest

SIDE = """
import sys
import os
from apart import asked_side, serve

told = asked_side(sys.argv[1:])
calls = []

def call():
    calls.append(1)
    print("a library says something")
    os.write(1, b"and one in C does too")
    if told["breaks"] and len(calls) > 4:
        os._exit(3)

serve(call, last_word=lambda: f"{told['name']} {len(calls)}")
"""


@pytest.fixture
def side(script, tmp_path, monkeypatch):
    apart = script("apart")
    monkeypatch.setenv("PYTHONPATH", str(apart.__file__).rsplit("/", 1)[0], prepend=":")
    path = tmp_path / "side.py"
    path.write_text(SIDE)
    return path


def test_all_sides_take_part_in_every_round(script, side):
    apart = script("apart")
    told = {name: {"name": name, "breaks": False} for name in "ab"}
    found = apart.in_turns(side, told, seconds=0.0, least=5)
    assert {name: len(of.seconds) for name, of in found.items()} == {"a": 5, "b": 5}
    calls = apart.WARM_UP + 5
    assert [found[name].said for name in "ab"] == [f"a {calls}", f"b {calls}"]
    assert all((of.seconds > 0).all() for of in found.values())


def test_a_side_that_ends_early_is_named(script, side):
    sides = {"weak": {"name": "weak", "breaks": True}}
    with pytest.raises(RuntimeError, match="'weak' ended with 3"):
        script("apart").in_turns(side, sides, seconds=0.0, least=5)


def test_only_a_started_side_is_told_something(script):
    apart = script("apart")
    assert apart.asked_side(["--side", '{"name": "a"}']) == {"name": "a"}
    assert apart.asked_side(["convnext_atto"]) is None
