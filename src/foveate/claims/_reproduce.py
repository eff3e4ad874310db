"""Running claims, one or all, and keeping what they found."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from foveate.claims._lab import Lab
from foveate.claims._verdicts import Finding, find_claim
from foveate.errors import FoveateError, require
from foveate.measure import machine

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How claims are run.

    Args:
        minutes: for all of them together, divided as their authors weigh
            them; by default what the authors give.
        source: images for claims that train.
        seed: the first seed.
        device: where modules run.
    """

    minutes: float | None = None
    source: str = "digits"
    seed: int = 0
    device: str = "cpu"


def reproduce(
    wanted: Sequence[str],
    results: Path,
    asked: Asked | None = None,
    *,
    jobs: int = 1,
    engine: str = "processes",
    again: bool = False,
    told: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Run claims, and append a line each to a results file as soon as it is there.

    Claims that the file already has an answer to, asked in the same way, are
    not run again: so a stopped run goes on.

    Args:
        wanted: slugs.
        results: JSON lines; made if missing.
        asked: how they are run.
        jobs: how many at once on a machine, which share its cores; timings are
            only to be trusted with 1.
        engine: `processes`, or `ray` for those of a cluster.
        again: run those that are answered, too.
        told: called with each row, old and new.

    Returns: a row a claim, in the order in which they were done.
    Raises: FoveateError for an unknown slug or engine, or a file that cannot be written.
    """
    asked = asked or Asked()
    if engine not in ("processes", "ray"):
        raise FoveateError(f"there is no engine {engine!r}: choose processes or ray")
    claims = [find_claim(slug) for slug in wanted]
    whole = sum(claim.minutes for claim in claims)
    scale = asked.minutes / whole if asked.minutes else 1.0
    answered = {} if again else _answered(results, asked)
    rows = [answered[slug] for slug in wanted if slug in answered]
    for row in rows:
        told(row)
    rest = [
        (claim.slug, claim.minutes * scale, asked) for claim in claims if claim.slug not in answered
    ]
    for row in _run_all(rest, jobs, engine):
        append(results, row)
        told(row)
        rows.append(row)
    return rows


def run_claim(slug: str, minutes: float, asked: Asked) -> Row:
    """Measure one claim: a line of the results file."""
    claim = find_claim(slug)
    start = monotonic()
    lab = Lab(minutes=minutes, source=asked.source, seed=asked.seed, device=asked.device)
    found: Finding = claim.run(lab)
    return {
        "slug": slug,
        "verdict": found.verdict,
        "figure": found.figure,
        "interval": [found.low, found.high],
        "unit": found.unit,
        "says": claim.says,
        "paper": claim.paper,
        "note": found.note,
        "details": found.details,
        "minutes": (monotonic() - start) / 60,
        "asked": asdict(asked),
        "machine": machine(),
    }


def read_results(path: Path) -> list[Row]:
    """The lines of a results file, oldest first.

    Raises: FoveateError if a line cannot be read.
    """
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise FoveateError(
            f"{path} cannot be read as results ({error}): move it away or give another --out"
        ) from error


def append(path: Path, row: Row) -> None:
    """Add a line to a results file, whole or not at all. Raises: FoveateError."""
    line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise FoveateError(f"cannot write {path} ({error.strerror}): give another --out") from error


def _answered(results: Path, asked: Asked) -> dict[str, Row]:
    rows = read_results(results)
    return {row["slug"]: row for row in rows if row.get("asked") == asdict(asked)}


def _run_all(work: list[tuple[str, float, Asked]], jobs: int, engine: str) -> Iterator[Row]:
    threads = max(1, (os.cpu_count() or 1) // jobs)
    if engine == "ray":
        yield from _with_ray(work, threads)
    elif jobs > 1 and len(work) > 1:
        yield from _with_processes(work, jobs, threads)
    else:
        yield from (run_claim(*item) for item in work)


def _with_processes(work: list[tuple[str, float, Asked]], jobs: int, threads: int) -> Iterator[Row]:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
        for future in as_completed([pool.submit(_run_with, threads, *item) for item in work]):
            yield future.result()


def _with_ray(work: list[tuple[str, float, Asked]], threads: int) -> Iterator[Row]:
    ray = require("ray", "ray")
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    run = ray.remote(num_cpus=threads)(_run_with)
    waiting = [run.remote(threads, *item) for item in work]
    while waiting:
        done, waiting = ray.wait(waiting)
        yield from ray.get(done)


def _run_with(threads: int, slug: str, minutes: float, asked: Asked) -> Row:
    import torch

    torch.set_num_threads(threads)
    return run_claim(slug, minutes, asked)
