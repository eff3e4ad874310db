"""`foveate compress --auto`: a model and images in; a compressed model and a page out."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from foveate.compress import load_for_edits
from foveate.data import open as open_data
from foveate.deploy import save
from foveate.deploy.artifact import Draft
from foveate.errors import FoveateError, require
from foveate.guidance.guide import Guided, guide
from foveate.guidance.wish import Wish
from foveate.report.guidance import guidance_page
from foveate.report.html import write_page


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to compress, and where to put it.

    Args:
        model: a model's folder, or an architecture as `foveate.create_model` takes it.
        source: images with labels, as `foveate.data.open` takes them.
        wish: what is wanted.
        out: folder of the compressed model, or None to look only.
        page: the report.
        pretrained: an architecture begins with published weights.
        size: side of an architecture's images.
    """

    model: str
    source: str
    wish: Wish = field(default_factory=Wish)
    out: Path | None = None
    page: Path = Path("compression.html")
    pretrained: bool = False
    size: int | None = None

    @property
    def nearest(self) -> Path | None:
        """Where a model goes that does not meet the wish, lest it be taken for one that does."""
        return self.out and self.out.absolute().with_name(f"{self.out.absolute().name}-nearest")


def compress_guided(asked: Asked, told: Callable[[str], None] = lambda text: None) -> Guided:
    """Guide a compression, and write the page and the model: to `out`, or to `nearest`.

    Raises: FoveateError as `guide` does, or if a place cannot be written to; it is found out
        before anything is measured if `out` holds something that is no model.
    """
    require("optuna", "search")
    drafts = {met: Draft(path) if path else None for met, path in _places(asked).items()}
    try:
        data = open_data(asked.source, seed=asked.wish.seed)
        model = load_for_edits(asked.model, data, size=asked.size, pretrained=asked.pretrained)
        found = guide(model, data.labelled_as(model.labels), asked.wish, told=told)
        write_page(guidance_page(found.facts, Path(asked.model).name), asked.page)
        if draft := drafts[found.met]:
            save(found.model, draft.folder)
            draft.publish()
    finally:
        for draft in filter(None, drafts.values()):
            shutil.rmtree(draft.folder, ignore_errors=True)
    return found


def demand_met(asked: Asked, found: Guided) -> None:
    """Raises: FoveateError if the wish was not met; it says where all that was found is."""
    if found.met:
        return
    kept = f", the nearest model in {asked.nearest}" if asked.nearest else ""
    raise FoveateError(
        f"no composition of edits meets --latency and --guard: the page is {asked.page}{kept}; "
        "allow more time an image or more loss, or give --tune or a larger --budget"
    )


def _places(asked: Asked) -> dict[bool, Path | None]:
    return {True: asked.out and asked.out.absolute(), False: asked.nearest}
