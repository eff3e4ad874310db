"""How to get the same again: commands, recipe, machine, versions."""

import shlex
from typing import Any

from foveate.report.folder import Folder, dig
from foveate.report.html import Child, Html, join, missing, short, table, tag


def section(folder: Folder) -> Html:
    """Everything that decides the figures above."""
    tables = [_asked(folder), _recipe(folder), _machine(folder), _minutes(folder)]
    return join([_commands(folder), tag("div", tables, class_="pairs")])


def _commands(folder: Folder) -> Html:
    model = shlex.quote(str(folder.path / "model"))
    command = folder.get("command")
    lines = [str(command)] if command else []
    if folder.get("deploy"):
        source = shlex.quote(str(folder.get("source") or "IMAGES"))
        lines += [f"foveate predict {model} IMAGE", f"foveate eval {model} {source}"]
    if not lines:
        return missing("The command was not recorded.")
    return join([tag("h3", "Commands"), tag("pre", "\n".join(lines))])


def _asked(folder: Folder) -> Html | None:
    head = {name: folder.get(name) for name in ("foveate", "started", "seed", "source")}
    asked = folder.get("asked")
    both = {**head, **(asked if isinstance(asked, dict) else {})}
    return _pairs("What was asked", {k: v for k, v in both.items() if v is not None})


def _recipe(folder: Folder) -> Html | None:
    return _pairs("The recipe", folder.get("recipe"))


def _machine(folder: Folder) -> Html | None:
    machine = folder.get("machine")
    if not isinstance(machine, dict):
        return None
    versions = dig(machine, "versions")
    plain = {k.replace("_gb", " (GB)"): v for k, v in machine.items() if k != "versions"}
    return _pairs("The machine", {**plain, **(versions if isinstance(versions, dict) else {})})


def _minutes(folder: Folder) -> Html | None:
    return _pairs("Minutes per stage", folder.get("minutes"))


def _pairs(title: str, values: Any) -> Html | None:
    """A table of names and values, or nothing."""
    if not isinstance(values, dict) or not values:
        return None
    lines: list[list[Child]] = [[short(k), tag("code", said(v))] for k, v in values.items()]
    return tag("div", tag("h3", title), table(["name", "value"], lines, label=title, text=2))


def said(value: Any) -> str:
    """A value of run.json in words."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {said(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(said, value))
    return short("none" if value is None else value, 200)
