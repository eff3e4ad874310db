"""Every paper that Foveate exists for, and how far each has come.

`papers.jsonl` lists them. Code says which paper it is with `@implements("slug")`,
tests with `@pytest.mark.paper("slug")`, and claims by their file's name; status
is read off these, never written by hand.
"""

from foveate.catalog.evidence import Evidence, Status, Verdict, status
from foveate.catalog.ranking import search
from foveate.catalog.rows import Paper, implements, paper, papers

__all__ = [
    "Evidence",
    "Paper",
    "Status",
    "Verdict",
    "implements",
    "paper",
    "papers",
    "search",
    "status",
]
