"""What several verbs take and print."""

import json
import re
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a machine to read.")]


def milliseconds(text: str) -> float:
    """A duration such as 5ms, 0.005s or 5 (milliseconds), in milliseconds."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(us|µs|ms|s)?\s*", text)
    if match is None or float(match[1]) <= 0:
        raise typer.BadParameter(f"{text!r} is not a duration: write it as 5ms, 800us or 0.01s")
    return float(match[1]) * {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}[match[2] or "ms"]


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))
