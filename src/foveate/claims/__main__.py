"""`python -m foveate.claims` writes docs/claims.md from the verdicts that are recorded."""

from foveate.catalog.evidence import PACKAGE
from foveate.claims._page import claims_page
from foveate.claims._reproduce import read_results
from foveate.report.html import write_page

if __name__ == "__main__":
    recorded = read_results(PACKAGE / "claims" / "results.jsonl")
    print(write_page(claims_page(recorded), PACKAGE.parents[1] / "docs" / "claims.md"))
