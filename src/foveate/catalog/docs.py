"""Writes docs/papers.md and checked.json: `python -m foveate.catalog.docs`, or `make docs`.

Both say what the source says, so neither is edited by hand.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from foveate.catalog.evidence import CHECKED, OUTCOMES, PACKAGE, Evidence, Status, checkout_tests
from foveate.catalog.rows import Paper, papers
from foveate.errors import FoveateError

_HEADING = """\
# The papers

*Made by `make docs` from the code, the tests and the recorded verdicts; not edited by hand.*

Foveate exists to make these papers work. A paper is **implemented** when a public class or
function bears its slug, **checked** when a test compares that with an independent truth, and
**claimed** when its claim has been run and a verdict recorded, which may be that it fails.
`foveate papers WORDS` searches them, and `foveate papers show SLUG` says what each is about.
"""


def page(rows: list[Paper], evidence: Evidence, source: str = "../src/foveate") -> str:
    """The text of docs/papers.md.

    Args:
        rows: the papers.
        evidence: what was found for them.
        source: the way from the page to the package's folder.
    """
    states = {row.slug: evidence.status(row.slug) for row in rows}
    parts = [_HEADING, _summary(rows, states)]
    for kind in sorted({row.kind for row in rows}, key=lambda kind: _urgency(rows, kind)):
        parts.append(f"## {kind.capitalize()}\n")
        for tier in sorted({row.tier for row in rows if row.kind == kind}):
            chosen = [row for row in rows if (row.kind, row.tier) == (kind, tier)]
            parts.append(f"### {kind.capitalize()}, tier {tier}\n")
            parts.append(_table(chosen, states, source))
    return "\n".join(parts)


def checked(evidence: Evidence) -> str:
    """The text of checked.json: the tests that check each paper, for packages without tests."""
    return json.dumps(evidence.tests, indent=1) + "\n"


def generated() -> dict[Path, str]:
    """The files that are generated from this checkout, and what they should say.

    Raises: FoveateError if Foveate does not run from a checkout.
    """
    tests = checkout_tests()
    if tests is None:
        raise FoveateError(
            f"{PACKAGE} is an installed package without its tests: "
            "run this in a clone of the repository, where `make docs` installs it in place"
        )
    found = Evidence.scan(PACKAGE, tests)
    return {
        tests.parent / "docs" / "papers.md": page(papers(), found),
        CHECKED: checked(found),
    }


def _urgency(rows: list[Paper], kind: str) -> tuple[int, str]:
    """Kinds with the most papers of tier 1 come first."""
    return -sum((row.kind, row.tier) == (kind, 1) for row in rows), kind


def _summary(rows: list[Paper], states: dict[str, Status]) -> str:
    lines = [
        "| tier | papers | implemented | checked | claimed | " + " | ".join(OUTCOMES) + " |",
        "|---|" + "---:|" * (4 + len(OUTCOMES)),
    ]
    for tier in sorted({row.tier for row in rows}):
        lines.append(_counts(str(tier), [states[row.slug] for row in rows if row.tier == tier]))
    lines.append(_counts("all", list(states.values())))
    return "\n".join(lines) + "\n"


def _counts(label: str, states: list[Status]) -> str:
    counts = [
        len(states),
        sum(state.implemented for state in states),
        sum(state.checked for state in states),
        sum(state.claimed is not None for state in states),
        *(sum(state.claimed == outcome for state in states) for outcome in OUTCOMES),
    ]
    return f"| {label} | " + " | ".join(map(str, counts)) + " |"


def _table(rows: Iterable[Paper], states: dict[str, Status], source: str) -> str:
    lines = [
        "| slug | paper | group | implemented | checked | claimed |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        state = states[row.slug]
        cells = [
            f"`{row.slug}`",
            _title(row),
            row.group.replace("|", r"\|"),
            _code(state, source),
            _tests(state, source),
            str(state.verdict or ("not run yet" if state.claim else "")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _title(row: Paper) -> str:
    title = row.title.replace("|", r"\|")
    linked = f"[{title}]({row.arxiv_url})" if row.arxiv_url else title
    return f"{linked}, {row.year}" if row.year else linked


def _code(state: Status, source: str) -> str:
    places = (symbol.split(":") for symbol in state.symbols)
    return ", ".join(f"[{name}]({source}/{file})" for file, name in places)


def _tests(state: Status, source: str) -> str:
    files = sorted({test.split("::")[0] for test in state.tests})
    root = source.removesuffix("src/foveate")
    return ", ".join(f"[{Path(file).name}]({root}{file})" for file in files)


def main() -> None:
    """Write the generated files, and say which."""
    try:
        for file, text in generated().items():
            file.write_text(text, encoding="utf-8")
            print(file)
    except FoveateError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
