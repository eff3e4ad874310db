"""What a rule reads of an operation: the labels of what it takes, and the shapes."""

from typing import Any

from torch import fx

from foveate.surgery.channels.labels import Fields, Labels
from foveate.surgery.graphs import place

CONSTANTS = ("full", "zeros", "ones", "empty", "scalar_tensor")


class Reading:
    """An operation, and what is known of the labels before it.

    Args:
        node: the operation.
        values: fields of every node before it; a list of them where one has several results.
        labels: and what is known of them, to be added to.
    """

    def __init__(self, node: fx.Node, values: dict[fx.Node, Any], labels: Labels) -> None:
        self.node, self.labels, self.values = node, labels, values
        self.name = str(node.target)
        self.args: Any = node.args
        self.where = place(node) or "the network"
        self.reason = f"it passes {self.name} in {self.where}, which ties it to what stays"

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        return tuple(node.meta["val"].shape)

    def fields(self, node: Any) -> Fields:
        return self.values[node] if isinstance(node, fx.Node) else []

    def taken(self) -> Fields:
        """All fields that the operation takes."""
        found: Fields = []
        for given in self.node.all_input_nodes:
            value = self.values[given]
            found += [one for part in value for one in part] if is_several(given) else value
        return found

    def unknown(self) -> Any:
        self.labels.fix(self.taken(), f"it goes into {self.name}, which is not understood")
        return [[] for _ in self.node.meta["val"]] if is_several(self.node) else []

    def is_agnostic(self, node: fx.Node) -> bool:
        """Whether a value is the same wherever one looks, so that it fits any size."""
        own = str(node.target)
        if node.op != "call_function" or not own.startswith("aten."):
            return False
        own = own.split(".")[1]
        if own.startswith((*CONSTANTS, "new_")) or own.endswith("_like"):
            return True
        inputs = node.all_input_nodes
        return bool(inputs) and all(map(self.is_agnostic, inputs))


def is_several(node: fx.Node) -> bool:
    """Whether an operation has several results."""
    return isinstance(node.meta.get("val"), list | tuple)
