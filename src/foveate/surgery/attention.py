"""Attention in any network: which modules attend, and how theirs is computed otherwise.

Functions are met rather than classes, while a module's own forward runs: so the same edit
serves timm's modules, one's own, fused attention and attention that is written out. What
fused attention compares and weighs by stays hidden in one function; where an edit needs to
meet that, attention is written out, at the cost of keeping tokens x tokens numbers a head.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from foveate.errors import FoveateError
from foveate.surgery.edit import Covered
from foveate.surgery.layers import matches

FUSED = "scaled_dot_product_attention"
PRODUCTS = {"matmul", "__matmul__", "bmm"}


@dataclass(frozen=True)
class Attending:
    """A module that attends.

    Attributes:
        name: of the module, as `named_modules` has it.
        kind: its class.
        takes: the shape of what it is called with first.
        gives: the shape of what its attention makes, before heads are joined: (B, heads,
            queries, channels of a head).
        keys: how many places each query looks at.
        parts: names of the `Attend`s that it has.
    """

    name: str
    kind: str
    takes: tuple[int, ...]
    gives: tuple[int, ...]
    keys: int
    parts: tuple[str, ...]

    @property
    def heads(self) -> int:
        """How many share the channels."""
        return self.gives[1]


class Attend(nn.Module):
    """The steps of a module's attention; each is what it was, and subclasses change some.

    Attributes:
        keeps_fused: whether fused attention may stay so; of the steps, only `prepare` and
            `output` are met then.
    """

    keeps_fused = False

    def prepare(self, x: Any) -> Any:
        """What `output` wants to know of the module's first argument, None if it is named."""
        return None

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Queries (..., N, d) times keys (..., d, M)."""
        return q @ k

    def weights(self, p: Tensor) -> Tensor:
        """What becomes of softmax's probabilities (..., N, M)."""
        return p

    def mix(self, p: Tensor, v: Tensor) -> Tensor:
        """Weights (..., N, M) times values (..., M, d)."""
        return p @ v

    def output(self, x: Tensor, prepared: Any) -> Tensor:
        """What becomes of the mixed values (..., N, d)."""
        return x


def attend_by(module: nn.Module, name: str, part: Attend) -> None:
    """Have a module's attention go through a part, in place; the part becomes its child.

    Names of weights stay. Several parts follow one another: each meets what those before
    it have made of the attention.

    Args:
        module: that attends.
        name: of the child.
        part: the steps.
    """
    kind = type(module)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        part: Any = getattr(self, name)
        with _Through(part, part.prepare(args[0] if args else None)):
            return kind.forward(self, *args, **kwargs)

    module.add_module(name, part.train(module.training))
    module.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__doc__": kind.__doc__})


@torch.no_grad()
def attending(model: nn.Module, x: Tensor) -> dict[str, Attending]:
    """Every module whose own forward attends, in the order of the calls.

    Args:
        model: run once, in evaluation mode; its mode is restored.
        x: an input of it.
    """
    was_training = model.training
    spy = _Spy()
    try:
        with spy.following(model.eval()), spy:
            model(x)
    finally:
        model.train(was_training)
    return spy.found


def cover_attention(
    model: nn.Module, found: dict[str, Attending], skip: tuple[str, ...], part: str, done: str
) -> list[Covered]:
    """A line for every module that attends, of an edit that gives all that it can a part.

    Args:
        found: of `attending`.
        skip: patterns of names that are to be left.
        part: name of the part that the edit gives.
        done: what it does.

    Raises: FoveateError if the model has nothing of a name in `skip`.
    """
    names = [name for name, _ in model.named_modules()]
    for pattern in skip:
        if not any(matches(name, (pattern,)) for name in names):
            raise FoveateError(f"skip names {pattern!r}, which the model does not have")
    coverage = []
    for name, module in model.named_modules():
        why = ""
        if isinstance(module, nn.MultiheadAttention):
            why = "left because PyTorch's MultiheadAttention is one function from end to end"
        elif name not in found:
            continue
        elif matches(name, skip):
            why = "left because skip names it"
        elif part in found[name].parts:
            why = "left because an edit before did the same"
        coverage.append(Covered(name, type(module).__name__, not why, why or done))
    return coverage


class _Through(TorchFunctionMode):
    """While it lasts, the steps of attention are a part's."""

    def __init__(self, part: Attend, prepared: Any) -> None:
        super().__init__()
        self.part, self.prepared = part, prepared
        self.weighed: torch.Size | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == FUSED:
            way = func if self.part.keeps_fused else self._written_out
            return self.part.output(way(*args, **kwargs), self.prepared)
        if _is_softmax(name, args, kwargs):
            weights = self.part.weights(func(*args, **kwargs))
            self.weighed = weights.shape
            return weights
        if name in PRODUCTS and self.weighed == args[0].shape:
            self.weighed = None
            return self.part.output(self.part.mix(*args), self.prepared)
        if name in PRODUCTS and not any(isinstance(arg, nn.Parameter) for arg in args):
            return self.part.scores(*args)
        return func(*args, **kwargs)

    def _written_out(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """What fused attention computes, step by step."""
        if enable_gqa:
            k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
        scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        scores = self.part.scores(q * scale, k.mT)
        if is_causal:
            attn_mask = scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -math.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask
        weights = self.part.weights(scores.softmax(-1))
        return self.part.mix(F.dropout(weights, dropout_p), v)


class _Spy(TorchFunctionMode):
    """Notes in which module weights are multiplied with values."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Attending] = {}
        self._inside: list[tuple[str, nn.Module, tuple[int, ...]]] = []
        self._weighed: torch.Size | None = None
        self._weigher: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        out = func(*args, **kwargs)
        if name == FUSED:
            key = args[1] if len(args) > 1 else kwargs["key"]
            self._note(out, key.shape[-2])
        elif _is_softmax(name, args, kwargs):
            self._weighed = out.shape
            self._weigher = [name for name, *_ in self._inside]
        elif name in PRODUCTS and self._weighed == args[0].shape:
            self._weighed = None
            if self._inside and self._inside[-1][0] in self._weigher:
                self._note(out, args[0].shape[-1])
        return out

    def _note(self, out: Tensor, keys: int) -> None:
        name, module, takes = self._inside[-1]
        parts = tuple(n for n, child in module.named_children() if isinstance(child, Attend))
        kind = type(module).__name__
        self.found[name] = Attending(name, kind, takes, tuple(out.shape), keys, parts)

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Know whose forward runs."""
        handles = []
        for name, module in model.named_modules():
            if isinstance(module, Attend):
                continue

            def before(module: nn.Module, args: Any, name: str = name) -> None:
                takes = tuple(args[0].shape) if args and isinstance(args[0], Tensor) else ()
                self._inside.append((name, module, takes))

            def after(*_: Any) -> None:
                self._inside.pop()

            handles.append(module.register_forward_pre_hook(before))
            handles.append(module.register_forward_hook(after))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _is_softmax(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a function with these arguments is softmax over the last axis."""
    if name not in ("softmax", "_softmax"):
        return False
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    return args[0].ndim > 2 and dim in (-1, args[0].ndim - 1)
