"""Any network as a graph of ATen operations, where edits meet layers whatever module calls them."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from foveate.errors import FoveateError
from foveate.surgery.exported import is_on_grids

aten = torch.ops.aten
COPIES = {aten.clone.default, aten.alias.default, aten.detach.default, aten._to_copy.default}
VIEWS = {aten.view.default, aten._unsafe_view.default}
CHECKS = {aten._assert_tensor_metadata.default}


def capture(model: nn.Module, images: Tensor) -> fx.GraphModule:
    """The graph of a model in evaluation mode, without in-place operations, for any batch size.

    Args:
        model: stays as it is; its weights are shared with the graph.
        images: a batch that it takes, of two or more.

    Raises: FoveateError if the model's Python cannot be followed.
    """
    batch = torch.export.Dim("batch", min=1, max=4096)
    if len(images) < 2:
        images = torch.cat([images, images])
    try:
        with torch.no_grad():
            model.eval()(images)  # some networks keep tables that their first pass fills
        shapes = ({0: batch},)
        program = torch.export.export(model, (images,), dynamic_shapes=shapes)
        graph = program.run_decompositions({}).module(check_guards=False)
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        raise FoveateError(
            f"the graph of {type(model).__name__} cannot be captured ({first}): deploy it without "
            "graph edits, or keep Python that depends on values out of its forward"
        ) from error
    assert isinstance(graph, fx.GraphModule)
    _hold_tables(graph)
    _simplify(graph)
    return graph


def _hold_tables(graph: fx.GraphModule) -> None:
    """Make buffers of tensors that the network's Python keeps beside its own, such as tables."""
    held = {name for name, _ in [*graph.named_parameters(), *graph.named_buffers()]}
    for node in graph.graph.nodes:
        if node.op == "get_attr" and node.target not in held:
            owner, _, own = str(node.target).rpartition(".")
            place = graph.get_submodule(owner)
            tensor = getattr(place, own)
            if isinstance(tensor, Tensor) and own not in {**place._parameters, **place._buffers}:
                delattr(place, own)
                place.register_buffer(own, tensor.detach())


def _simplify(graph: fx.GraphModule) -> None:
    """Take out copies and checks, free views of layouts, compute what only weights decide."""
    for node in list(graph.graph.nodes):
        if node.target in CHECKS:
            graph.graph.erase_node(node)
        elif node.target in COPIES and value(node).dtype == value(node.args[0]).dtype:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        elif (folded := _folded(graph, node)) is not None:
            with graph.graph.inserting_before(node):
                node.replace_all_uses_with(add_constant(graph, node.name, folded))
            graph.graph.erase_node(node)
        elif node.target in VIEWS:
            node.target = aten.reshape.default
    tidy(graph)


def _folded(graph: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """What an operation on weights alone computes, or None if it takes anything else."""
    if node.op != "call_function" or not isinstance(node.meta["val"], Tensor):
        return None
    if is_on_grids(node):  # a weight made of codes is to be stored as codes
        return None
    if not node.all_input_nodes:
        return None
    held = {arg: constant(graph, arg) for arg in node.all_input_nodes}
    if any(tensor is None for tensor in held.values()):
        return None
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda arg: held[arg])
    return node.target(*args, **kwargs)  # pyright: ignore


def tidy(graph: fx.GraphModule) -> None:
    """Drop what nothing uses, weights too, and make the graph runnable again."""
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    held = [name for name, _ in [*graph.named_parameters(), *graph.named_buffers()]]
    for name in held:
        if name not in used:
            owner, _, own = name.rpartition(".")
            delattr(graph.get_submodule(owner), own)
    graph.graph.lint()
    graph.recompile()


def value(node: fx.Node) -> Tensor:
    """What a node computes, as a tensor that has a shape and a type but no numbers."""
    return node.meta["val"]


def shape(node: fx.Node) -> tuple[Any, ...]:
    """The shape of what a node computes; the batch is a symbol."""
    return tuple(value(node).shape)


def same_shape(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two shapes are known to be equal, symbols included."""
    return len(a) == len(b) and all(str(x) == str(y) for x, y in zip(a, b, strict=True))


def place(node: fx.Node) -> str:
    """Name of the module that a node belongs to, as `named_modules` has it."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return paths[-1] if paths else node.name


def constant(graph: fx.GraphModule, node: Any) -> Tensor | None:
    """The tensor that a node stands for if it is a weight or a buffer, else None."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    owner, _, own = str(node.target).rpartition(".")
    held = getattr(graph.get_submodule(owner), own)
    return held.detach() if isinstance(held, Tensor) else None


def add_constant(graph: fx.GraphModule, name: str, tensor: Tensor) -> fx.Node:
    """A new weight, as a node where the graph's insertion point is."""
    free = name.replace(".", "_")
    while hasattr(graph, free):
        free += "_"
    graph.register_buffer(free, tensor.detach().contiguous())
    node = graph.graph.get_attr(free)
    node.meta["val"] = tensor.detach().to("meta")
    return node


def call(graph: fx.GraphModule, target: Any, args: tuple[Any, ...], like: fx.Node) -> fx.Node:
    """A new operation at the insertion point; what it computes is known from its arguments."""
    node = graph.graph.call_function(target, args)
    known = fx.map_arg(args, lambda arg: arg.meta["val"])
    mode = next((v.fake_mode for v in _fakes(known)), None)
    if mode is None:
        node.meta["val"] = target(*known)
    else:
        with mode:
            inside = map_aggregate(known, lambda v: _as_fake(mode, v))
            node.meta["val"] = target(*inside)
    node.meta["nn_module_stack"] = like.meta.get("nn_module_stack", {})
    return node


def _fakes(known: Any) -> list[Any]:
    found: list[Any] = []
    map_aggregate(known, lambda v: found.append(v) if hasattr(v, "fake_mode") else None)
    return found


def _as_fake(mode: Any, held: Any) -> Any:
    if isinstance(held, Tensor) and not hasattr(held, "fake_mode"):
        return torch.empty(held.shape, dtype=held.dtype, device="cpu")
    return held


class Recorder(fx.Interpreter):
    """Runs a graph and keeps what every node computed, in `env`."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph, garbage_collect_values=False)

    @torch.inference_mode()
    def record(self, images: Tensor) -> dict[fx.Node, Any]:
        """Run it on images (B, C, H, W)."""
        self.run(images)
        return self.env


def is_call(node: Any, *targets: Any) -> bool:
    """Whether a node calls one of some operations."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def norm_of(node: Any) -> fx.Node | None:
    """The batch norm whose output a node picks, or None."""
    if is_call(node, operator.getitem) and node.args[1] == 0:
        norm = node.args[0]
        if is_call(norm, aten._native_batch_norm_legit_no_training.default):
            return norm
    return None
