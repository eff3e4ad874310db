"""What papers claim, as functions that measure it and say whether it holds here.

One file per paper, named by its slug. Each has one function that bears
`@claim`, takes a `Lab`, and returns a `Finding`.
"""

from foveate.claims._lab import Lab
from foveate.claims._verdicts import Claim, Finding, claim, find_claim, slugs

__all__ = ["Claim", "Finding", "Lab", "claim", "find_claim", "slugs"]
