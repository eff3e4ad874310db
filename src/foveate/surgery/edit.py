"""What an edit of a model is: it decides, rebuilds and fits, and what it decided is its plan.

    decide    looks at a model, and at data if it needs some, and leaves both as they are
    rebuild   gives a model its new structure, from the plan alone
    fit       sets numbers, from data

`apply` does the three, with `prepare` before `rebuild` for numbers that only the old
structure can tell. Whoever loads a model does `rebuild` only, and then the weights: so
what an edit made is made again by the very code that made it, with no data and no pickle.
"""

import copy
import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, fx, nn

from foveate.errors import FoveateError
from foveate.surgery.lineage import record

Images = Iterable[Tensor] | Tensor | None
"""Batches of the model's inputs, or one."""

Plan = dict[str, Any]
"""What an edit decided, JSON-ready: with it, `rebuild` needs nothing else."""


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
    """A change to any model: its fields say what is wanted, its plan what was decided.

    A subclass is a frozen dataclass that writes `decide`, `rebuild` and, where
    it must set numbers from data, `fit`. Fields are JSON-ready; one that is not
    has `compare=False`, is left out of the lineage, and is not needed by `rebuild`.

    A module that holds weights otherwise than plain layers do says how in a class
    attribute `weights_as`; graphs hold them as "constants".

    Attributes:
        looks_at: "images" if what data shows decides, "shapes" if any images of the
            right size do, "nothing" if the edit needs none.
        refuses: which of these ways this edit cannot work on, with reason and mend.
    """

    looks_at: ClassVar[Literal["images", "shapes", "nothing"]] = "images"
    refuses: ClassVar[dict[str, str]] = {}

    def apply(self, model: nn.Module, data: Images = None) -> tuple[nn.Module, list[Covered]]:
        """Edit a copy of a model, and record it in the copy's lineage.

        Args:
            model: stays as it is.
            data: inputs to look at, for edits that need some.

        Returns: the edited copy, and a line for every part that the edit looked at.
        Raises: FoveateError if nothing could be changed, the edit needs data, or it
            cannot follow an edit that was made before.
        """
        self.demand_weights(model)
        if isinstance(data, Iterator):
            data = list(data)
        edited = copy.deepcopy(model)
        plan, coverage = self.decide(edited, data)
        self.demand_change(model, coverage)
        self.prepare(edited, plan)
        edited = self.rebuild(edited, plan)
        self.fit(edited, plan, data)
        self.note(plan, model, edited)
        return edited, coverage

    def decide(self, model: nn.Module, data: Images) -> tuple[Plan, list[Covered]]:
        """What is to be done to a model, and the coverage table; the model stays as it is."""
        raise NotImplementedError

    def prepare(self, model: nn.Module, plan: Plan) -> None:
        """Set in place what must know the structure that goes; most edits have nothing to set."""

    def rebuild(self, model: nn.Module, plan: Plan) -> nn.Module:
        """Give a model the structure that a plan says, in place or as another module.

        Every tensor of the result must have its final name, shape and type, and
        stand in its state dict unless the model's constructor makes it.
        """
        raise NotImplementedError

    def fit(self, model: nn.Module, plan: Plan, data: Images) -> None:
        """Set what data decides in a rebuilt model, in place; most edits have nothing to set."""

    def note(self, plan: Plan, before: nn.Module, after: nn.Module) -> None:
        """Record this edit in the lineage of the model that it made of another."""
        step = {"edit": type(self).__name__, "fields": self.to_json(), "plan": plan, "at": ""}
        record(step, before, after)

    def demand_weights(self, model: nn.Module) -> None:
        """Raises: FoveateError if a model holds weights in a way that this edit refuses."""
        for name, module in model.named_modules():
            held = _weights_as(module)
            if held in self.refuses:
                raise FoveateError(
                    f"{type(self).__name__} cannot be made here, as {name or 'the model'} "
                    f"({type(module).__name__}) holds weights as {held}: {self.refuses[held]}"
                )

    def demand_change(self, model: nn.Module, coverage: list[Covered]) -> None:
        """Raises: FoveateError if the coverage of a model says that nothing was changed."""
        if not any(line.changed for line in coverage):
            reasons = "; ".join(f"{line.name}: {line.why}" for line in coverage[:3])
            raise FoveateError(
                f"{type(self).__name__} found nothing to change in {type(model).__name__} "
                f"({reasons or 'it has no layer of the right kind'}): give another model, or "
                "another edit"
            )

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

    def to_json(self) -> dict[str, Any]:
        """The fields, JSON-ready."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.compare}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Edit":
        """The opposite of `to_json`. Raises: FoveateError if the edit has no such field."""
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - known)
        if unknown:
            raise FoveateError(
                f"{cls.__name__} has no field {unknown[0]!r}: it has {', '.join(sorted(known))}"
            )
        return cls(**{name: _tuples(value) for name, value in fields.items()})


def _weights_as(module: nn.Module) -> str:
    """How a module holds weights, or "" if as plain layers do."""
    if isinstance(module, fx.GraphModule):
        return "" if any(node.op == "call_module" for node in module.graph.nodes) else "constants"
    return getattr(module, "weights_as", "")


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that frozen dataclasses hold."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
