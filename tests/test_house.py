"""The house stands: imports run downward, rooms say what they offer, and the door opens fast."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import foveate

SOURCE = Path(foveate.__file__).parent

FLOORS = {
    "errors": 0,
    "memory": 0,
    "compiled": 0,
    "catalog": 0,
    "measure": 0,
    "data": 1,
    "ops": 1,
    "backbones": 2,
    "vision": 2.5,
    "surgery": 3,
    "adaptive": 3,
    "train": 4,
    "explain": 5,
    "robust": 5,
    "deploy": 6,
    "report": 7,
    "runs": 7,
    "serve": 7,
    "claims": 8,
    "fit": 8,
    "profile": 8,
    "compare": 8,
    "compress": 8,
    "guidance": 8,
    "cli": 9,
    "__main__": 9,
}

# The names that people import; they reach into any room, and no room reaches for them.
FRONT_DOORS = {"__init__", "timm"}

FILES = sorted(SOURCE.rglob("*.py"))
ROOMS = sorted(file.parent.name for file in SOURCE.glob("*/__init__.py"))


def room_of(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_rooms(file: Path) -> Iterator[tuple[int, str]]:
    """Each room that a file imports from, at its top or inside a function, with the line."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            modules = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = _sources(node, file)
        else:
            continue
        for parts in (module.split(".") for module in modules):
            if parts[0] == "foveate" and len(parts) > 1:
                yield node.lineno, parts[1]


def _sources(node: ast.ImportFrom, file: Path) -> list[str]:
    """The modules that a `from … import …` reaches for."""
    package = ["foveate", *file.parent.relative_to(SOURCE).parts]
    within = package[: len(package) - node.level + 1] if node.level else []
    base = ".".join([*within, *filter(None, [node.module])])
    return [f"foveate.{_home(name.name)}" for name in node.names] if base == "foveate" else [base]


def _home(name: str) -> str:
    """The room that a name of `foveate` comes from."""
    return foveate._HOMES.get(name, f"foveate.{name}").split(".")[1]


def id_of(file: Path) -> str:
    return file.relative_to(SOURCE).as_posix()


@pytest.mark.parametrize("file", FILES, ids=id_of)
def test_imports_run_downward(file):
    room = room_of(file)
    if room in FRONT_DOORS:
        return
    assert room in FLOORS, f"give {room} a floor in FLOORS, as docs/architecture.md has it"
    climbs = [
        f"{id_of(file)}:{line} imports {other}, which is above {room}"
        for line, other in imported_rooms(file)
        if FLOORS.get(other, 0) > FLOORS[room]
    ]
    assert climbs == []


def test_a_climb_would_be_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "SOURCE", tmp_path)
    file = tmp_path / "ops" / "eca.py"
    file.parent.mkdir()
    file.write_text(
        "import foveate.fit\n"
        "from foveate import load, report, FoveateError\n"
        "from ..train import Recipe\n"
        "from . import se\n"
        "def late():\n    from foveate.deploy.export import export\n"
    )
    found = {(line, room) for line, room in imported_rooms(file) if room in FLOORS}
    assert found == {
        (1, "fit"),
        (2, "deploy"),
        (2, "report"),
        (3, "train"),
        (4, "ops"),
        (6, "deploy"),
    }


def test_no_file_is_a_drawer():
    drawers = {"utils", "util", "helpers", "misc", "common", "core"}
    assert [id_of(file) for file in FILES if drawers & {file.stem, *file.parts}] == []


@pytest.mark.parametrize("room", ["foveate", *(f"foveate.{room}" for room in ROOMS)])
def test_a_room_lists_what_it_offers(room):
    module = importlib.import_module(room)
    names = getattr(module, "__all__", [])
    assert [name for name in names if not hasattr(module, name)] == []
    assert list(names) == sorted(names, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    assert len(names) == len(set(names))


def test_the_door_opens_without_torch():
    code = "import sys, foveate; print({'torch', 'timm', 'torchvision'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
