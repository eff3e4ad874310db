"""How far each paper has come, read off code, tests and recorded verdicts.

Nothing that is scanned is imported. Tests do not travel in a wheel, so an
installed package reads what they checked from `checked.json`, which
`python -m foveate.catalog.docs` writes.

A claim is `claims/<slug>.py`, and each time that it runs it adds a line to
`claims/results.jsonl`: a JSON object with `slug`, `verdict` (holds, fails or
inconclusive), `figure`, `interval` (low and high), and what else it likes.
"""

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from foveate.catalog.marks import implementations, marked_tests
from foveate.catalog.rows import paper
from foveate.errors import FoveateError

PACKAGE = Path(__file__).resolve().parents[1]
CHECKED = Path(__file__).with_name("checked.json")

Outcome = Literal["holds", "fails", "inconclusive"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True)
class Verdict:
    """What a claim found when it last ran: its figure and the interval around it."""

    outcome: Outcome
    figure: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.outcome}: {self.figure:g} ({low:g} to {high:g})"


@dataclass(frozen=True)
class Status:
    """How far a paper has come.

    `symbols` are its public classes and functions, as "ops/eca.py:Name" within
    the package; `tests` those that check it, as pytest names them; `claim` the
    claim's file, and `verdict` what it found when it last ran.
    """

    symbols: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    claim: str | None = None
    verdict: Verdict | None = None

    @property
    def implemented(self) -> bool:
        """Whether a public symbol is marked as this paper's."""
        return bool(self.symbols)

    @property
    def checked(self) -> bool:
        """Whether a test compares it with an independent truth."""
        return bool(self.tests)

    @property
    def claimed(self) -> Outcome | None:
        """What its claim found when it last ran; None if it has none or never ran."""
        return self.verdict.outcome if self.verdict else None

    def as_json(self) -> dict[str, Any]:
        """The three answers, as each row of `foveate papers --json` has them."""
        return {
            "implemented": self.implemented,
            "checked": self.checked,
            "claimed": self.claimed,
        }


@dataclass(frozen=True)
class Evidence:
    """What was found for every paper that anything was found for, by slug."""

    symbols: dict[str, list[str]] = field(default_factory=dict)
    tests: dict[str, list[str]] = field(default_factory=dict)
    claims: dict[str, str] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    @classmethod
    def scan(cls, package: Path, tests: Path | None = None) -> "Evidence":
        """Read the evidence off a package's source and its tests.

        Args:
            package: the package's folder.
            tests: the folder of its tests; without it, what they checked is
                read from the package's `catalog/checked.json`.

        Raises: FoveateError if a mark's slug is not written out, or a recorded
            verdict cannot be read.
        """
        rooms = package / "claims"
        claims = {
            file.stem: file.relative_to(package).as_posix()
            for file in sorted(rooms.glob("*.py"))
            if not file.stem.startswith("_")
        }
        verdicts = _verdicts(rooms / "results.jsonl")
        return cls(
            symbols=implementations(package),
            tests=marked_tests(tests) if tests else _checked(package),
            claims=claims,
            verdicts={slug: verdicts[slug] for slug in claims if slug in verdicts},
        )

    @property
    def slugs(self) -> set[str]:
        """Every slug that code, a test or a claim names."""
        return {*self.symbols, *self.tests, *self.claims}

    def status(self, slug: str) -> Status:
        """The status of a paper, empty where nothing was found."""
        return Status(
            symbols=tuple(self.symbols.get(slug, ())),
            tests=tuple(self.tests.get(slug, ())),
            claim=self.claims.get(slug),
            verdict=self.verdicts.get(slug),
        )


def status(slug: str) -> Status:
    """How far a paper has come in this copy of Foveate.

    Raises: FoveateError, with the nearest slugs, if there is no such paper.
    """
    return evidence().status(paper(slug).slug)


@cache
def evidence() -> Evidence:
    """The evidence in this copy of Foveate, scanned once in a process."""
    return Evidence.scan(PACKAGE, checkout_tests())


def checkout_tests() -> Path | None:
    """The tests beside a source checkout; None in an installed package."""
    root = PACKAGE.parent.parent
    is_checkout = PACKAGE.parent.name == "src" and (root / "pyproject.toml").is_file()
    return root / "tests" if is_checkout and (root / "tests").is_dir() else None


def _checked(package: Path) -> dict[str, list[str]]:
    file = package / "catalog" / CHECKED.name
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _verdicts(file: Path) -> dict[str, Verdict]:
    """The last verdict recorded for each slug."""
    if not file.is_file():
        return {}
    lines = file.read_text(encoding="utf-8").splitlines()
    return dict(_verdict(line, f"{file}:{n}") for n, line in enumerate(lines, 1) if line.strip())


def _verdict(line: str, where: str) -> tuple[str, Verdict]:
    try:
        row = json.loads(line)
        low, high = row["interval"]
        verdict = Verdict(row["verdict"], float(row["figure"]), (float(low), float(high)))
        if verdict.outcome not in OUTCOMES:
            raise ValueError(verdict.outcome)
        return row["slug"], verdict
    except (KeyError, TypeError, ValueError) as error:
        raise FoveateError(
            f"the verdict at {where} cannot be read: a line is a JSON object with slug, "
            f"verdict ({', '.join(OUTCOMES)}), figure and interval [low, high]"
        ) from error
