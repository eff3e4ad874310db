"""What an edit of a model is, and the table that says what it did."""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from foveate.errors import FoveateError

Images = Iterable[Tensor] | Tensor | None
"""Batches of the model's inputs, or one."""


@dataclass(frozen=True)
class Covered:
    """A line of an edit's coverage table.

    Attributes:
        name: of the part, as `named_modules` has it.
        kind: its class.
        changed: whether the edit changed it.
        why: what was done, or why it was left.
    """

    name: str
    kind: str
    changed: bool
    why: str


@dataclass(frozen=True)
class Edit:
    """A change to any model, decided by its fields alone. Subclasses write `change`."""

    def apply(self, model: nn.Module, data: Images = None) -> tuple[nn.Module, list[Covered]]:
        """Edit a copy of a model.

        Args:
            model: stays as it is.
            data: inputs to look at, for edits that need some.

        Returns: the edited copy, and a line for every part that the edit looked at.
        Raises: FoveateError if nothing could be changed, or the edit needs data.
        """
        edited = copy.deepcopy(model)
        coverage = self.change(edited, data)
        self.demand_change(model, coverage)
        return edited, coverage

    def demand_change(self, model: nn.Module, coverage: list[Covered]) -> None:
        """Raises: FoveateError if the coverage of a model says that nothing was changed."""
        if not any(line.changed for line in coverage):
            reasons = "; ".join(f"{line.name}: {line.why}" for line in coverage[:3])
            raise FoveateError(
                f"{type(self).__name__} found nothing to change in {type(model).__name__} "
                f"({reasons or 'it has no layer of the right kind'}): give another model, or "
                "another edit"
            )

    def change(self, model: nn.Module, data: Images) -> list[Covered]:
        """Change a model in place, and say what was done and what was left."""
        raise NotImplementedError

    def batches(self, data: Images) -> Iterator[Tensor]:
        """The batches of `data`.

        Raises: FoveateError if there are none.
        """
        if isinstance(data, Tensor):
            data = [data]
        found = False
        for batch in data or ():
            found = True
            yield batch
        if not found:
            raise FoveateError(f"{type(self).__name__} needs images: give batches of them as data")
