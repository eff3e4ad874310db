"""Times of calls that live in processes of their own, taken in turns.

Allocator settings, compilers and thread pools belong to a process, so sides that differ in them
need one each. All are started first; then each is asked for one call after the other, round by
round, so that whatever disturbs one disturbs all. The others wait for a line of text meanwhile.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

WARM_UP = 3


@dataclass(frozen=True)
class Side:
    """What a process had to say: seconds of its call in each round (rounds,), and a last word."""

    seconds: np.ndarray
    said: str = ""

    @property
    def median(self) -> float:
        """Seconds."""
        return float(np.median(self.seconds))


def in_turns(
    script: str | Path,
    sides: Mapping[str, dict[str, Any]],
    *,
    seconds: float = 10.0,
    least: int = 7,
) -> dict[str, Side]:
    """Start a process for every side, and time a call of each in every round.

    Args:
        script: started once a side as `python script --side JSON`; it must call `serve`.
        sides: what each process is told, by name.
        seconds: for all rounds together.
        least: fewest rounds.

    Raises: RuntimeError if a process ends before it was told to.
    """
    with ExitStack() as stack:
        started: dict[str, subprocess.Popen[str]] = {}
        for name, told in sides.items():
            command = [sys.executable, str(script), "--side", json.dumps(told)]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            started[name] = stack.enter_context(process)
            stack.callback(process.kill)
            _hear(name, process)
        taken: dict[str, list[float]] = {name: [] for name in sides}
        order = list(started)
        end = time.perf_counter() + seconds
        while len(taken[order[0]]) < least or time.perf_counter() < end:
            for name in order:
                taken[name].append(float(_ask(name, started[name], "go")))
            order.reverse()
        said = {name: _ask(name, process, "end") for name, process in started.items()}
    return {name: Side(np.array(taken[name]), said[name].strip()) for name in sides}


def asked_side(arguments: Sequence[str]) -> dict[str, Any] | None:
    """What this process was told, if `in_turns` started it."""
    return json.loads(arguments[1]) if arguments[:1] == ["--side"] else None


def serve(call: Callable[[], Any], last_word: Callable[[], str] = str) -> None:
    """Warm up, then time one call whenever asked, until told to end.

    Args:
        call: what is timed.
        last_word: what the other process gets to know at the end, in a line.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    for _ in range(WARM_UP):
        call()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        if line == "end\n":
            print(last_word(), file=answers, flush=True)
            return
        start = time.perf_counter()
        call()
        print(time.perf_counter() - start, file=answers, flush=True)


def _ask(name: str, process: subprocess.Popen[str], word: str) -> str:
    assert process.stdin is not None
    process.stdin.write(f"{word}\n")
    process.stdin.flush()
    return _hear(name, process)


def _hear(name: str, process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"the process of {name!r} ended with {process.wait()} and no answer")
    return line
