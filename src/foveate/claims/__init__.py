"""What papers claim, as functions that measure it and say whether it holds here.

One file per paper, named by its slug. Each has one function that bears
`@claim`, takes a `Lab`, and returns a `Finding`.
"""

from foveate.claims._lab import Lab
from foveate.claims._page import claims_page, figure
from foveate.claims._reproduce import Asked, read_results, reproduce
from foveate.claims._verdicts import Claim, Finding, claim, find_claim, slugs

__all__ = [
    "Asked",
    "Claim",
    "Finding",
    "Lab",
    "claim",
    "claims_page",
    "figure",
    "find_claim",
    "read_results",
    "reproduce",
    "slugs",
]
