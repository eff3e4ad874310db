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
from pathlib import Path
from typing import Any

import numpy as np

from foveate.measure import Ratio, median_interval

WARM_UP = 3


def in_turns(
    script: str | Path,
    sides: Mapping[str, dict[str, Any]],
    *,
    seconds: float = 10.0,
    least: int = 7,
    environment: Mapping[str, str] | None = None,
) -> dict[str, np.ndarray]:
    """Seconds of every side's call in each round, (rounds,).

    Args:
        script: started once a side as `python script --side JSON`; it must call `serve`.
        sides: what each process is told, by name.
        seconds: for all rounds together.
        least: fewest rounds.
        environment: variables set for all of them.
    """
    with ExitStack() as stack:
        started = {}
        for name, told in sides.items():
            command = [sys.executable, str(script), "--side", json.dumps(told)]
            process = stack.enter_context(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**os.environ, **(environment or {})},
                )
            )
            stack.callback(process.kill)
            started[name] = process
            _answer(name, process)
        taken: dict[str, list[float]] = {name: [] for name in sides}
        end, order = time.perf_counter() + seconds, list(started)
        while len(taken[order[0]]) < least or time.perf_counter() < end:
            for name in order:
                started[name].stdin.write("go\n")
                started[name].stdin.flush()
                taken[name].append(float(_answer(name, started[name])))
            order.reverse()
    return {name: np.array(values) for name, values in taken.items()}


def ratio(slow: np.ndarray, fast: np.ndarray) -> Ratio:
    """Time of one side over that of another, round by round, with its 99% interval."""
    return Ratio(*median_interval(slow / fast, 0.99), len(slow))


def asked_side(arguments: Sequence[str]) -> dict[str, Any] | None:
    """What this process was told if `in_turns` started it."""
    return json.loads(arguments[1]) if arguments[:1] == ["--side"] else None


def serve(call: Callable[[], Any]) -> None:
    """Warm up, then time one call for each line that comes in, until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    for _ in range(WARM_UP):
        call()
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        call()
        print(time.perf_counter() - start, file=answers, flush=True)


def _answer(name: str, process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"the process of {name!r} ended with {process.wait()} and no answer")
    return line
