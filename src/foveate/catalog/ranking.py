"""Search the catalogue: by words, in either spelling, a little misspelt too."""

import difflib
import math
import re
from collections import Counter
from functools import cache
from itertools import pairwise

from foveate.catalog.evidence import OUTCOMES, Status, evidence
from foveate.catalog.rows import Paper, papers
from foveate.catalog.words import stem, words
from foveate.errors import FoveateError

STATUSES = ("implemented", "checked", "claimed", *OUTCOMES, "open")

# How much a word counts by where it stands.
_WEIGHTS = {"slug": 6.0, "title": 5.0, "group": 4.0, "kind": 2.0, "what": 1.5, "claim": 1.0}

# How much a word counts by how it was met: itself, its beginning, a part of a name, a misspelling.
_SAME, _BEGINNING, _PART, _ALIKE = 1.0, 0.5, 0.4, 0.6

# What two words of the query count for besides, where they stand side by side.
_SIDE_BY_SIDE = 2.0

# A paper of exactly this slug comes first.
_NAMED = 100.0

# How alike two words are that may be one misspelt, and how much less than the most alike.
_LEAST_ALIKE, _LESS_ALIKE = 0.75, 0.06


def search(
    query: str = "", *, kind: str | None = None, tier: int | None = None, status: str | None = None
) -> list[Paper]:
    """The papers that fit, the best first; without a query, by tier.

    Args:
        query: words to look for in slug, title, group, kind, what and claim;
            papers that have all of them, or else those that have most. An
            arXiv id finds its paper.
        kind: only papers of this kind, such as "backbone".
        tier: only papers of this tier.
        status: only papers that are implemented, checked or claimed; whose
            claim holds, fails or is inconclusive; or that are open (nothing
            implements them yet).

    Raises: FoveateError, with the choices, if kind, tier or status is none of them.
    """
    chosen = papers()
    if kind is not None:
        _known("kind", kind, sorted({paper.kind for paper in chosen}))
        chosen = [paper for paper in chosen if paper.kind == kind]
    if tier is not None:
        _known("tier", tier, sorted({paper.tier for paper in papers()}))
        chosen = [paper for paper in chosen if paper.tier == tier]
    if status is not None:
        _known("status", status, STATUSES)
        found = evidence()
        chosen = [paper for paper in chosen if _has(found.status(paper.slug), status)]
    if not query.strip():
        return sorted(chosen, key=lambda paper: paper.tier)
    scores = _scores(query)
    return sorted(
        (paper for paper in chosen if paper.slug in scores), key=lambda paper: -scores[paper.slug]
    )


def _known(option: str, value: object, choices: tuple | list) -> None:
    if value not in choices:
        listed = ", ".join(map(str, choices))
        raise FoveateError(f"no paper can have the {option} {value!r}: choose one of {listed}")


def _has(status: Status, wanted: str) -> bool:
    if wanted == "open":
        return not status.implemented
    if wanted in OUTCOMES:
        return status.claimed == wanted
    return bool(getattr(status, wanted))


class _Index:
    """Which stems stand where in each paper, and how rare they are."""

    def __init__(self, rows: list[Paper]) -> None:
        self.fields = {row.slug: _stems(row) for row in rows}
        self.arxiv = {row.arxiv: row.slug for row in rows if row.arxiv}
        everything = {word for row in rows for name in _WEIGHTS for word in _field(row, name)}
        self.words = {word: stem(word) for word in sorted(everything)}
        self.stems = set(self.words.values())
        self.names = {
            s for fields in self.fields.values() for s in fields["slug"] + fields["title"]
        }
        self._papers_with = Counter(
            s for fields in self.fields.values() for s in set().union(*fields.values())
        )

    def rarity(self, known: str) -> float:
        return math.log(1 + len(self.fields) / self._papers_with[known])

    def meanings(self, query: list[str]) -> list[dict[str, float]]:
        """For each word of a query, the stems that it may mean and how well each fits."""
        meant = [self._meaning(word) for word in query]
        for i, joined in enumerate(stem(first + second) for first, second in pairwise(query)):
            if joined in self.stems:
                meant[i] = meant[i] | {joined: _SAME}
                meant[i + 1] = meant[i + 1] | {joined: _SAME}
        return meant

    def _meaning(self, word: str) -> dict[str, float]:
        bare = stem(word)
        fits = {known: _PART for known in self.names if len(bare) > 3 and bare in known}
        if len(bare) > 2:
            fits |= {known: _BEGINNING for known in self.stems if known.startswith(bare)}
        if bare in self.stems:
            fits[bare] = _SAME
        return fits or self._alike(word)

    def _alike(self, word: str) -> dict[str, float]:
        """The stems of the words most like a word that is not in the catalogue."""
        near = difflib.get_close_matches(word, self.words, n=5, cutoff=_LEAST_ALIKE)
        alike = {known: difflib.SequenceMatcher(None, known, word).ratio() for known in near}
        least = max(alike.values(), default=0.0) - _LESS_ALIKE
        return {self.words[known]: _ALIKE for known, ratio in alike.items() if ratio >= least}


@cache
def _index() -> _Index:
    return _Index(papers())


def _field(paper: Paper, name: str) -> list[str]:
    text = str(getattr(paper, name))
    return words(text) + ([text.replace("_", "")] if name == "slug" and "_" in text else [])


def _stems(paper: Paper) -> dict[str, list[str]]:
    return {name: [stem(word) for word in _field(paper, name)] for name in _WEIGHTS}


def _scores(query: str) -> dict[str, float]:
    """A score for every paper that has all words of the query, or else most of them."""
    index = _index()
    asked = query.strip().lower()
    if asked in index.arxiv:
        return {index.arxiv[asked]: 1.0}
    meanings = index.meanings(words(asked))
    named = re.sub(r"[\s-]+", "_", asked)
    found: dict[str, list[float]] = {}
    for slug, fields in index.fields.items():
        parts = [_word_score(index, fields, meaning) for meaning in meanings]
        if any(parts):
            found[slug] = [*parts, _NAMED * (slug == named) + _phrase_score(fields, meanings)]
    most = max((_met(parts) for parts in found.values()), default=0)
    return {slug: sum(parts) for slug, parts in found.items() if _met(parts) == most}


def _met(parts: list[float]) -> int:
    """How many words of the query a paper has."""
    return sum(part > 0 for part in parts[:-1])


def _word_score(index: _Index, fields: dict[str, list[str]], meaning: dict[str, float]) -> float:
    return sum(
        weight
        * max((meaning[s] * index.rarity(s) for s in fields[name] if s in meaning), default=0)
        for name, weight in _WEIGHTS.items()
    )


def _phrase_score(fields: dict[str, list[str]], meanings: list[dict[str, float]]) -> float:
    return sum(
        _SIDE_BY_SIDE * weight
        for name, weight in _WEIGHTS.items()
        for first, second in pairwise(meanings)
        if any(a in first and b in second for a, b in pairwise(fields[name]))
    )
