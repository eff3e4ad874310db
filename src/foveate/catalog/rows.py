"""The catalogue's rows, and the mark that ties code to one of them."""

import difflib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from foveate.errors import FoveateError

T = TypeVar("T")

_ROWS = Path(__file__).with_name("papers.jsonl")


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A paper of the catalogue.

    `tier` is the order of work, 1 first. `what` says what to build, `claim`
    what the paper found, `check` how to see whether it holds on a small
    machine, and `needs` which ingredients it is built from (often, but not
    always, other papers' slugs). `arxiv` and `repo` are "" and `year` is None
    where they are not known.
    """

    slug: str
    title: str
    arxiv: str
    year: int | None
    tier: int
    kind: str
    group: str
    what: str
    claim: str
    check: str
    repo: str
    needs: tuple[str, ...]

    @property
    def arxiv_url(self) -> str:
        """Where the paper is read, or "" where it has no arXiv id."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else ""

    @property
    def repo_url(self) -> str:
        """Where the authors' code is, or "" where none is known."""
        return f"https://github.com/{self.repo}" if self.repo else ""

    def as_json(self) -> dict[str, Any]:
        """The row as it stands in `papers.jsonl`."""
        return {**asdict(self), "needs": list(self.needs)}


@cache
def _by_slug() -> dict[str, Paper]:
    lines = _ROWS.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return {row["slug"]: Paper(**{**row, "needs": tuple(row["needs"])}) for row in rows}


def papers() -> list[Paper]:
    """All papers, in the catalogue's order."""
    return list(_by_slug().values())


def paper(slug: str) -> Paper:
    """The paper of this slug.

    Raises: FoveateError, with the nearest slugs, if there is none.
    """
    try:
        return _by_slug()[slug]
    except KeyError:
        near = difflib.get_close_matches(slug.lower(), _by_slug(), n=3, cutoff=0.5)
        nearest = f"the nearest are {', '.join(near)}; " if near else ""
        raise FoveateError(
            f"no paper of the catalogue has the slug {slug!r}: "
            f"{nearest}`foveate papers WORDS` searches for one"
        ) from None


def implements(slug: str) -> Callable[[T], T]:
    """Mark a public class or function as the code of a paper.

    The object comes back as it was, with the slug as its `__paper__`. Write the
    slug out as a literal, since status is read off the source without running it.

    Raises: FoveateError, when the module is imported, if no paper has this slug.
    """
    found = paper(slug)

    def mark(code: T) -> T:
        code.__paper__ = found.slug  # pyright: ignore[reportAttributeAccessIssue]
        return code

    return mark
