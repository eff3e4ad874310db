"""Clipped softmax and gated attention for any network that attends, and what outliers it has.

Both are for training: from the beginning, or gates for a network that is trained already.
A network trained with either keeps its activations in ranges that 8 bits serve.

Source: quantizable_transformers (arXiv 2306.12929, sections 4 and 5, appendices B.1 and B.6).
The paper's ViT also has a layer norm behind its patch embedding; that is a choice of
architecture (`embed_norm_layer` or `pre_norm` of timm's VisionTransformer), and no edit.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.ops.quantizable_transformers import (
    AttentionGate,
    ClippedSoftmax,
    Kind,
    require_gate,
    require_stretch,
)
from foveate.surgery.attention import Attend, Attending, attend_by, attending, cover_attention
from foveate.surgery.edit import Covered, Edit, Images, Plan
from foveate.surgery.integers import REFUSED
from foveate.surgery.layers import matches

CLIPPING, GATE = "clipping", "attention_gate"


@implements("quantizable_transformers")
@dataclass(frozen=True, kw_only=True)
class ClipSoftmax(Edit):
    """Stretch the probabilities of every attention below 0, and clip them there.

    A head can then look at nothing without driving its scores apart. Fused attention is
    written out. To be applied before training: a trained network expects what it had.

    Args:
        alpha, gamma, zeta: of `ClippedSoftmax`.
        skip: names of modules to leave as they are, or patterns of them.

    Raises: FoveateError that names the field.
    """

    alpha: float | None = 0.6
    gamma: float | None = None
    zeta: float = 1.0
    skip: tuple[str, ...] = ()

    looks_at = "shapes"
    refuses: ClassVar[dict[str, str]] = {
        **REFUSED,
        "constants": "clip first, and capture the graph then",
    }

    def __post_init__(self) -> None:
        require_stretch(self.alpha, self.gamma, self.zeta)

    def decide(self, model: nn.Module, data: Images) -> tuple[Plan, list[Covered]]:
        found = attending(model, next(self.batches(data)))
        coverage = cover_attention(model, found, self.skip, CLIPPING, "its softmax is clipped")
        return {"modules": [line.name for line in coverage if line.changed]}, coverage

    def rebuild(self, model: nn.Module, plan: Plan) -> nn.Module:
        for name in plan["modules"]:
            part = _Clipping(self.alpha, self.gamma, self.zeta)
            attend_by(model.get_submodule(name), CLIPPING, part)
        return model


@implements("quantizable_transformers")
@dataclass(frozen=True, kw_only=True)
class GateAttention(Edit):
    """Multiply what every head attends to by a gate that sees the token that asks.

    A head can then add nothing by closing its gate. Fused attention stays fused.

    Args:
        kind, hidden, opened, neutral: of `AttentionGate`; with `neutral` the edited model
            computes what it did, and is to be trained further.
        skip: names of modules to leave as they are, or patterns of them.
        seed: of the gates' weights.

    Raises: FoveateError that names the field.
    """

    kind: Kind = "linear"
    hidden: int = 4
    opened: float = 0.5
    neutral: bool = False
    skip: tuple[str, ...] = ()
    seed: int = 0

    looks_at = "shapes"
    refuses: ClassVar[dict[str, str]] = {
        **REFUSED,
        "constants": "gate first, and capture the graph then",
    }

    def __post_init__(self) -> None:
        require_gate(self.kind, self.hidden, self.opened)

    def decide(self, model: nn.Module, data: Images) -> tuple[Plan, list[Covered]]:
        found = attending(model, next(self.batches(data)))
        links, coverage = [], []
        for line in cover_attention(model, found, self.skip, GATE, f"gated ({self.kind})"):
            why = _ungateable(found[line.name], self.kind) if line.changed else line.why
            if not why:
                dim, heads = _dim(found[line.name]), found[line.name].heads
                links.append({"name": line.name, "dim": dim, "heads": heads})
            coverage.append(Covered(line.name, line.kind, not why, why or line.why))
        return {"modules": links}, coverage

    def rebuild(self, model: nn.Module, plan: Plan) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            for link in plan["modules"]:
                module = model.get_submodule(link["name"])
                gate = AttentionGate(
                    link["dim"], link["heads"], self.kind, self.hidden, self.opened, self.neutral
                )
                like = next(module.parameters())
                attend_by(module, GATE, _Gate(gate.to(like.device, like.dtype)))
        return model


class _Clipping(Attend):
    def __init__(self, alpha: float | None, gamma: float | None, zeta: float) -> None:
        super().__init__()
        self.softmax = ClippedSoftmax(alpha, gamma, zeta)

    def weights(self, p: Tensor) -> Tensor:
        return self.softmax.clipped(p)


class _Gate(Attend):
    keeps_fused = True

    def __init__(self, gate: AttentionGate) -> None:
        super().__init__()
        self.gate = gate

    def prepare(self, x: Any) -> Tensor:
        return self.gate(x)

    def output(self, x: Tensor, prepared: Any) -> Tensor:
        return x * prepared


def _dim(found: Attending) -> int:
    return found.takes[2] if len(found.takes) == 3 else found.takes[1]


def _ungateable(found: Attending, kind: Kind) -> str:
    """Why a module's attention can have no gates, or ""."""
    if len(found.takes) not in (3, 4) or len(found.gives) != 4:
        return "left because it does not take tokens or a map, or does not attend in heads"
    tokens = found.takes[1] if len(found.takes) == 3 else found.takes[2] * found.takes[3]
    if tokens != found.gives[2]:
        return f"left because of its {tokens} tokens {found.gives[2]} ask"
    if kind != "all_heads" and _dim(found) % found.heads:
        return f"left because its {found.heads} heads do not share the {_dim(found)} channels"
    return ""


@implements("quantizable_transformers")
@dataclass(frozen=True)
class Outliers:
    """How far a part's outputs lie from what a grid serves well.

    Attributes:
        kurtosis: of an image's values, the mean over images: 3 of normal ones, the more the
            more of their variance is a few.
        infinity_norm: the largest magnitude of an image's values, the mean over images.
    """

    kurtosis: float
    infinity_norm: float


@implements("quantizable_transformers")
@torch.no_grad()
def outliers(
    model: nn.Module, data: Images, points: tuple[str, ...] | None = None
) -> dict[str, Outliers]:
    """The outliers in the outputs of a model's parts, by their names.

    The paper sums up by the mean kurtosis, and by the maximum of the norms, over layers.

    Args:
        model: in evaluation mode meanwhile; its mode is restored.
        data: batches of inputs.
        points: patterns of the parts' names; None for every module that attends.

    Raises: FoveateError if there is no such part, or no data.
    """
    batches = [data] if isinstance(data, Tensor) else list(data or ())
    if not batches:
        raise FoveateError("outliers are measured on images: give batches of them as data")
    if points is None:
        points = tuple(attending(model, batches[0]))
    parts = {name: m for name, m in model.named_modules() if matches(name, points)}
    if not parts:
        raise FoveateError("no part of the model is one of points: give patterns of names")
    seen: dict[str, list[Tensor]] = {name: [] for name in parts}
    handles = []
    for name, part in parts.items():

        def look(module: nn.Module, args: Any, out: Tensor, name: str = name) -> None:
            seen[name].append(torch.stack((kurtosis(out), out.flatten(1).abs().amax(1))))

        handles.append(part.register_forward_hook(look))
    was_training = model.training
    try:
        model.eval()
        for batch in batches:
            model(batch)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return {name: Outliers(*torch.cat(v, 1).mean(1).tolist()) for name, v in seen.items() if v}


@implements("quantizable_transformers")
def kurtosis(x: Tensor) -> Tensor:
    """The fourth central moment over the squared second, of each entry of the first axis.

    Shapes: (B, ...) to (B,), float64.
    """
    x = x.double().flatten(1)
    squares = (x - x.mean(1, keepdim=True)).square()
    return squares.square().mean(1) / squares.mean(1).square().clamp(min=1e-300)
