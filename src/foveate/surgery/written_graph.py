"""A captured graph as JSON, and back: which operations, on what, with which constants.

Only named ATen operations and arithmetic on sizes can be written, and only those
are read, so a graph that somebody else wrote can do nothing else.
"""

import math
import operator
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from foveate.errors import FoveateError

NAMESPACES = ("aten", "torchvision")
ARITHMETIC = ("getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow")
ARITHMETIC += ("eq", "ne", "lt", "le", "gt", "ge")
KINDS: dict[str, type] = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
}


def written(graph: fx.GraphModule) -> dict[str, Any]:
    """A graph as JSON-ready data; its constants' values belong into a state dict.

    Raises: FoveateError that names an operation that cannot be written.
    """
    held = {**dict(graph.named_parameters()), **dict(graph.named_buffers())}
    nodes = [
        [node.op, node.name, _target(node), _plain(list(node.args)), _plain(dict(node.kwargs))]
        for node in graph.graph.nodes
    ]
    return {
        "nodes": nodes,
        "constants": {
            name: [list(tensor.shape), _plain(tensor.dtype), isinstance(tensor, nn.Parameter)]
            for name, tensor in held.items()
        },
        "outputs": _outputs(graph),
    }


def read(text: dict[str, Any]) -> fx.GraphModule:
    """The graph that `written` wrote, for any batch size that it took; its constants are zero.

    Raises: FoveateError if there is an operation that is not known here.
    """
    root = nn.Module()
    for name, (sizes, dtype, is_parameter) in text["constants"].items():
        owner, _, own = name.rpartition(".")
        place = _module(root, owner)
        tensor = torch.zeros(sizes, dtype=_value(dtype, {}))
        if is_parameter:
            place.register_parameter(own, nn.Parameter(tensor, tensor.is_floating_point()))
        else:
            place.register_buffer(own, tensor)
    graph, nodes = fx.Graph(), {}
    for op, name, target, args, kwargs in text["nodes"]:
        arguments = tuple(_value(args, nodes)), _value(kwargs, nodes)
        called = _operation(target) if op == "call_function" else target
        nodes[name] = graph.create_node(op, called, *arguments, name=name)
    names = [name for op, name, *_ in text["nodes"] if op == "placeholder"]
    taken = pytree.tree_structure(((0,) * len(names), {}))
    given = pytree.treespec_loads(text["outputs"])
    graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(names, taken, given)))
    graph.lint()
    return fx.GraphModule(root, graph)


def keep_all(graph: fx.GraphModule) -> fx.GraphModule:
    """Have a captured graph's constants stand in its state dict, all of them."""
    for module in graph.modules():
        module._non_persistent_buffers_set.clear()
    return graph


def _outputs(graph: fx.GraphModule) -> str:
    """How the outputs lie in the tuples and dicts that are returned."""
    codegen = graph.graph._codegen
    if isinstance(codegen, _PyTreeCodeGen) and codegen.pytree_info.out_spec is not None:
        return pytree.treespec_dumps(codegen.pytree_info.out_spec)
    given = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    return pytree.treespec_dumps(pytree.tree_structure(given))


def _module(root: nn.Module, name: str) -> nn.Module:
    """The submodule of a name; it and those around it are made if they are not there."""
    for part in filter(None, name.split(".")):
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    return root


def _target(node: fx.Node) -> str:
    if node.op != "call_function":
        return str(node.target)
    name = str(node.target)
    if isinstance(node.target, torch._ops.OpOverload) and name.split(".")[0] in NAMESPACES:
        return name
    own = getattr(node.target, "__name__", "")
    if getattr(operator, own, None) is node.target and own in ARITHMETIC:
        return f"operator.{own}"
    raise FoveateError(
        f"the graph calls {name}, which cannot be written as a plain operation: edit the modules "
        "before the graph is captured, or leave that part out of the graph"
    )


def _operation(name: str) -> Any:
    space, *path = name.split(".")
    if space == "operator" and path[0] in ARITHMETIC:
        return getattr(operator, path[0])
    if space in NAMESPACES:
        if space == "torchvision":
            import torchvision  # noqa: F401, which registers its operations
        try:
            found: Any = getattr(torch.ops, space)
            for part in path:
                found = getattr(found, part)
            if isinstance(found, torch._ops.OpOverload):
                return found
        except AttributeError:
            pass
    raise FoveateError(f"there is no operation {name!r} here: use the version that wrote the model")


def _plain(value: Any) -> Any:
    """An argument as JSON-ready data; what is no list, number or text stands in a dict."""
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {"fields": {key: _plain(item) for key, item in value.items()}}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for kind, type_ in KINDS.items():
        if isinstance(value, type_):
            return {kind: str(value).removeprefix("torch.")}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise FoveateError(f"the graph has an argument {value!r}, which cannot be written")


def _value(plain: Any, nodes: dict[str, fx.Node]) -> Any:
    """The opposite of `_plain`."""
    if isinstance(plain, list):
        return [_value(item, nodes) for item in plain]
    if not isinstance(plain, dict):
        return plain
    [(kind, inner)] = plain.items()
    if kind == "fields":
        return {key: _value(item, nodes) for key, item in inner.items()}
    if kind == "node":
        return nodes[inner]
    if kind == "float":
        return float(inner)
    if kind == "device":
        return torch.device(inner)
    found = getattr(torch, inner, None)
    if kind not in KINDS or not isinstance(found, KINDS[kind]):
        raise FoveateError(f"the graph has an argument {plain}, which is not known here")
    return found
