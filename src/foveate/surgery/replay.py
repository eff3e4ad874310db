"""Edits by name, and a lineage done again: what turns a fresh model into the edited one."""

import importlib
import pkgutil
from functools import cache

from torch import nn

from foveate.errors import FoveateError
from foveate.surgery.edit import Edit
from foveate.surgery.lineage import Step, remember

ROOMS = ("foveate.surgery", "foveate.adaptive")
"""Where edits are looked for; those of others count once they are imported."""


def replay(model: nn.Module, steps: list[Step]) -> nn.Module:
    """Give a fresh model the structure that a lineage says; weights are to be loaded after.

    Args:
        model: as it was before its first edit; changed in place.
        steps: of `lineage`.

    Returns: the model, or what it has become.
    Raises: FoveateError if an edit is unknown here.
    """
    for step in steps:
        edit = edit_class(step["edit"]).from_json(step["fields"])
        if step["at"]:
            part = edit.rebuild(model.get_submodule(step["at"]), step["plan"])
            model.set_submodule(step["at"], part)
        else:
            model = edit.rebuild(model, step["plan"])
    remember(model, list(steps))
    return model


def edits() -> dict[str, type[Edit]]:
    """Every edit that there is, by the name of its class."""
    _scan()
    found: dict[str, type[Edit]] = {}
    waiting = Edit.__subclasses__()
    while waiting:
        edit = waiting.pop()
        waiting += edit.__subclasses__()
        if "__dataclass_params__" in vars(edit):  # what others build on is no edit itself
            if edit.__name__ in found:
                raise ValueError(f"two edits are called {edit.__name__}")
            found[edit.__name__] = edit
    return dict(sorted(found.items()))


def edit_class(name: str) -> type[Edit]:
    """An edit by its name, in which case, hyphens and underscores don't count.

    Raises: FoveateError that lists those there are.
    """
    known = {_plain(key): edit for key, edit in edits().items()}
    if _plain(name) not in known:
        raise FoveateError(
            f"there is no edit {name!r}: there are {', '.join(edits())}; one of your own counts "
            "once its module is imported"
        )
    return known[_plain(name)]


def _plain(name: str) -> str:
    return name.replace("-", "").replace("_", "").lower()


@cache
def _scan() -> None:
    for room in ROOMS:
        for module in pkgutil.walk_packages(importlib.import_module(room).__path__, f"{room}."):
            importlib.import_module(module.name)
