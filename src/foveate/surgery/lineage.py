"""Which edits a model went through: kept on the model itself, whatever its class.

A lineage is a list of steps, JSON-ready, each with the edit's name, its fields
and its plan, and the name of the submodule that was edited ("" for the whole).
"""

from typing import Any

from torch import fx, nn

from foveate.backbones import architecture_of

Step = dict[str, Any]
"""`{"edit": "Quantise", "fields": {...}, "plan": {...}, "at": ""}`."""


def lineage(model: nn.Module) -> list[Step]:
    """The edits of a model and then of its parts, each in order.

    Where a whole is edited after its parts, its own lineage takes theirs in.
    """
    steps = list(_shelf(model).get("lineage", []))
    for name, module in model.named_modules():
        if name:
            inner = _shelf(module).get("lineage", [])
            steps += [{**step, "at": ".".join(filter(None, (name, step["at"])))} for step in inner]
    return steps


def record(step: Step, before: nn.Module, after: nn.Module) -> None:
    """Note on an edited model what the one before it went through, and one step more."""
    remember(after, [*lineage(before), step])
    if type(after) is not type(before):
        _shelf(after)["architecture"] = architecture_of(before)


def remember(model: nn.Module, steps: list[Step]) -> None:
    """Make this the lineage of a model and all of its parts."""
    for module in model.modules():
        if "lineage" in _shelf(module):
            _shelf(module)["lineage"] = []
    _shelf(model)["lineage"] = steps


def _shelf(module: nn.Module) -> dict[str, Any]:
    """Where a module keeps notes that its copies keep, too: graphs copy only their `meta`."""
    return module.meta if isinstance(module, fx.GraphModule) else vars(module)
