"""`python -m foveate.backbones` writes docs/backbones.md from the families and what was timed."""

from foveate.backbones._page import DOCS, write_page

if __name__ == "__main__":
    print(write_page(DOCS / "backbones.md"))
