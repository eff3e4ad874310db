"""Single calls inside a network: seen in one forward pass, and changed where they stand.

A ReLU that a block calls three times is one module, and an addition is none. What is
called by itself is exchanged as a module; anything else is changed in the graph of the
one module whose forward calls it, which keeps its parts and their names.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from foveate.errors import FoveateError
from foveate.measure.formulas import tensors


@dataclass(frozen=True)
class Call:
    """A call that a model makes, JSON-ready by `to_json`.

    Attributes:
        owner: name of the module whose forward makes it.
        what: name of the part or of the function that is called; "" if it is all that
            the owner does, and takes one value.
        nth, of: which of the owner's calls of that it is, from 0, and how many there are.
    """

    owner: str
    what: str
    nth: int = 0
    of: int = 1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Event:
    """A function that was called.

    Attributes:
        name: of the function, without underscores.
        takes, makes: numbers of the values.
        path: of the innermost module around it.
        call: that makes it, or None where a module around it is called more than once.
    """

    name: str
    takes: tuple[int, ...]
    makes: tuple[int, ...]
    path: str
    call: Call | None


class Watch(TorchFunctionMode):
    """Sees every function that a forward pass calls, in order, and which values go where."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.shapes: dict[int, tuple[int, ...]] = {}
        self._model = model
        self._seen: list[tuple[str, tuple[int, ...], tuple[int, ...], list[_Place]]] = []
        self._visits: Counter[str] = Counter()
        self._stack: list[_Frame] = []
        self._numbers: dict[int, int] = {}
        self._alive: list[Tensor] = []

    @torch.no_grad()
    def events(self, x: Tensor) -> list[Event]:
        """What the model calls for an input, in evaluation mode; its mode is restored.

        A last event without a name takes what the model gives.
        """
        was_training = self._model.training
        handles = [h for name, m in self._model.named_modules() for h in self._hook(name, m)]
        try:
            with self:
                out = self._model.eval()(x)
        finally:
            for handle in handles:
                handle.remove()
            self._model.train(was_training)
        given = tuple(self._number(tensor) for tensor in tensors(out))
        return [*self._told(), Event("", given, (), "", None)]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        takes = tuple(self._number(t) for t in (*tensors(args), *tensors(kwargs or {})))
        out = func(*args, **(kwargs or {}))
        name = plain_name(func)
        results = list(tensors(out))
        if results and self._stack:
            makes = tuple(self._number(t, new=True) for t in results)
            self._stack[-1].calls[name] += 1
            whats = [*(frame.path for frame in self._stack[1:]), name]
            places = [
                (frame, what, frame.calls[what] - 1)
                for frame, what in zip(self._stack, whats, strict=True)
            ]
            self._seen.append((name, takes, makes, places))
        return out

    def _told(self) -> list[Event]:
        """The events, once it is known how often each module was called."""
        paths = [places[-1][0].path for *_, places in self._seen]
        functions = Counter(paths)
        told = []
        for path, (name, takes, makes, places) in zip(paths, self._seen, strict=True):
            has_parts = any(True for _ in self._model.get_submodule(path).children())
            lone = functions[path] == self._visits[path] and not has_parts
            told.append(Event(name, takes, makes, path, self._call(name, places, lone)))
        return told

    def _call(self, name: str, places: "list[_Place]", lone: bool) -> Call | None:
        """The call that an event is; that of its module, where the module does nothing else."""
        if lone and self._visits[places[-1][0].path] == 1 and name != "add":
            return Call(places[-1][0].path, "")
        around = places[:-1] if lone else places
        if not around or any(self._visits[frame.path] > 1 for frame, *_ in around):
            return None
        frame, what, nth = around[-1]
        inner = what
        if lone:
            inside = f"{frame.path}." if frame.path else ""
            if not what.startswith(inside):
                return None  # it belongs to another part, and is only lent
            inner = what.removeprefix(inside)
        return Call(frame.path, inner, nth, frame.calls[what])

    def _number(self, tensor: Tensor, new: bool = False) -> int:
        """The number of a value; what is changed in place becomes a new one."""
        if new or id(tensor) not in self._numbers:
            self._alive.append(tensor)
            self._numbers[id(tensor)] = len(self._alive)
            self.shapes[len(self._alive)] = tuple(tensor.shape)
        return self._numbers[id(tensor)]

    def _hook(self, name: str, module: nn.Module) -> list[Any]:
        def before(module: nn.Module, args: Any) -> None:
            if self._stack:
                self._stack[-1].calls[name] += 1
            self._visits[name] += 1
            self._stack.append(_Frame(name, Counter()))

        def after(module: nn.Module, args: Any, out: Any) -> None:
            self._stack.pop()

        return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


@dataclass
class _Frame:
    """A module that is being called, and what it has called so far."""

    path: str
    calls: Counter[str]


_Place = tuple[_Frame, str, int]
"""A module, which part or function it has called, and how often before."""


def plain_name(func: Any) -> str:
    """A function's name, alike for operators, methods and what works in place."""
    name = getattr(func, "__name__", str(func)).strip("_")
    return {"iadd": "add", "radd": "add"}.get(name, name)


# ---------------------------------------------------------------- changing them

Change = Callable[[fx.Graph, fx.Node], None]
"""Changes a graph at the node of a call."""


def skip(graph: fx.Graph, node: fx.Node) -> None:
    """Have a call of one value hand it on as it is."""
    node.replace_all_uses_with(node.all_input_nodes[0])
    graph.erase_node(node)


def pad(operand: int, margins: list[int]) -> Change:
    """Have a call take one of its operands padded with zeros, or cut where margins are negative."""

    def change(graph: fx.Graph, node: fx.Node) -> None:
        with graph.inserting_before(node):
            padded = graph.call_function(F.pad, (node.args[operand], margins))
        node.update_arg(operand, padded)

    return change


def only(operand: int) -> Change:
    """Have a call of two values hand one of them on as it is."""

    def change(graph: fx.Graph, node: fx.Node) -> None:
        kept, other = node.args[operand], node.args[1 - operand]
        assert isinstance(kept, fx.Node)
        node.replace_all_uses_with(kept)
        graph.erase_node(node)
        if isinstance(other, fx.Node) and not other.users and other.target is F.pad:
            graph.erase_node(other)

    return change


def is_traceable(model: nn.Module, call: Call) -> bool:
    """Whether a call can be changed."""
    if call.what == "":
        return True
    try:
        _found(_traced(model.get_submodule(call.owner)), call)
    except Exception:  # whatever a forward of somebody else's does with values that are no tensors
        return False
    return True


def change(model: nn.Module, changes: Iterable[tuple[Call, Change]]) -> nn.Module:
    """Change calls in a model, in place.

    Returns: the model, or the graph of it if its own forward makes one of the calls.
    Raises: FoveateError if a call is not there.
    """
    by_owner: defaultdict[str, list[tuple[Call, Change]]] = defaultdict(list)
    for call, done in changes:
        by_owner[call.owner].append((call, done))
    for owner, wanted in by_owner.items():
        if any(call.what == "" for call, _ in wanted):
            model.set_submodule(owner, nn.Identity())
            continue
        graph = _traced(model.get_submodule(owner))
        nodes = [_found(graph, call) for call, _ in wanted]
        for node, (_, done) in zip(nodes, wanted, strict=True):
            done(graph.graph, node)
        graph.graph.lint()
        graph.recompile()
        if owner:
            model.set_submodule(owner, graph)
        else:
            model = graph
    return model


class _OneLevel(fx.Tracer):
    """Follows one module's own forward, and none of its parts'."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _traced(module: nn.Module) -> fx.GraphModule:
    return fx.GraphModule(module, _OneLevel().trace(module), type(module).__name__)


def _found(graph: fx.GraphModule, call: Call) -> fx.Node:
    """The node of a call in its owner's graph."""
    nodes = []
    for node in graph.graph.nodes:
        is_part = node.op == "call_module" and node.target == call.what
        by_name = node.op == "call_method" and node.target.strip("_") == call.what
        is_function = node.op == "call_function" and plain_name(node.target) == call.what
        if is_part or by_name or is_function:
            nodes.append(node)
    if len(nodes) != call.of:
        raise FoveateError(
            f"{call.owner or 'the model'} calls {call.what} {len(nodes)} times and not {call.of}: "
            "give the network that the plan was made for"
        )
    return nodes[call.nth]
