"""SQ-b: what a layer norm makes is shifted and scaled, channel by channel, so that a grid that all
channels share, and whose middle is zero, serves it.

Source: mptq_vit (arXiv 2401.14895); the scales are SmoothQuant's (arXiv 2211.10438, equation 4).
"""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.chains import readers
from foveate.surgery.edit import Covered, Edit, Images, Plan
from foveate.surgery.layers import matches
from foveate.surgery.quant_whitepaper_qualcomm.equalise import CLOSE

Link = dict[str, Any]
"""A norm's name, and those of the layers that alone take what it makes."""


@implements("mptq_vit")
@dataclass(frozen=True, kw_only=True)
class ShiftAndSmooth(Edit):
    """Make of each layer norm's output y rather (y - shift) / scale, which the layers that take it
    make up for: the model computes what it did, and its activations are easier to round.

    Norms and layers are proposed by the order of calls, and each is proved: with random shifts and
    scales, in float64, outputs must stay. Apply it before `SimulateTransformer`.

    Args:
        shift: "mean" of a channel over the data, as the paper has it; "middle" of its extremes,
            which leaves them as far from zero on both sides; None for SmoothQuant without bias.
        strength: how much of the range moves into the weights: a channel's scale is
            |y|^strength / |w|^(1 - strength), of the largest magnitudes once y is shifted.
        skip: names of norms to leave as they are, or patterns of them.

    Raises: FoveateError that names the field.
    """

    shift: Literal["mean", "middle"] | None = "mean"
    strength: float = 0.5
    skip: tuple[str, ...] = ()

    refuses: ClassVar[dict[str, str]] = {
        "integers": "smooth first, and quantise then",
        "mixtures": "fold them into plain layers first",
        "chosen filters": "smooth the model without the heads",
        "constants": "smooth first, and capture the graph then",
    }

    def __post_init__(self) -> None:
        if self.shift not in ("mean", "middle", None):
            raise FoveateError(f"shift is {self.shift!r}: give mean, middle or None")
        if not 0 <= self.strength <= 1:
            raise FoveateError(f"strength is {self.strength}: give 0 to 1")

    def decide(self, model: nn.Module, data: Images) -> tuple[Plan, list[Covered]]:
        x = next(self.batches(data))[:2]
        found = readers(model, x, _is_norm)
        links: list[Link] = []
        reasons: dict[str, str] = {}
        for name, module in model.named_modules():
            if _is_norm(module):
                layers = found.get(name)
                reasons[name] = self._obstacle(model, name, name in found, layers)
                if not reasons[name]:
                    links.append({"norm": name, "layers": layers})
        for link in _refuted(model, links, x):
            reasons[link["norm"]] = f"left because scales do not reach {link['layers'][0]} alone"
        links = [link for link in links if not reasons[link["norm"]]]
        told = {link["norm"]: f"made up for by {', '.join(link['layers'])}" for link in links}
        coverage = [
            Covered(name, type(model.get_submodule(name)).__name__, not why, why or told[name])
            for name, why in reasons.items()
        ]
        return {"links": links}, coverage

    def _obstacle(self, model: nn.Module, name: str, called: bool, layers: list[str] | None) -> str:
        """Why a norm cannot be a candidate, or ""."""
        norm: Any = model.get_submodule(name)
        if matches(name, self.skip):
            return "left because skip names it"
        if not called:
            return "left because the model did not call it"
        if norm.weight is None or norm.bias is None or norm.weight.ndim != 1:
            return "left because it has no scale and shift for each channel"
        if not layers:
            return "left because not only layers, called once, take what it makes"
        for layer in layers:
            if not _makes_up(model.get_submodule(layer), len(norm.weight)):
                return f"left because {layer} pads, has groups, or sees other channels"
        return ""

    def rebuild(self, model: nn.Module, plan: Plan) -> nn.Module:
        for link in plan["links"]:
            for name in link["layers"]:
                layer: Any = model.get_submodule(name)
                if layer.bias is None:
                    layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))
        return model

    @torch.no_grad()
    def fit(self, model: nn.Module, plan: Plan, data: Images) -> None:
        norms = {link["norm"]: model.get_submodule(link["norm"]) for link in plan["links"]}
        seen = self._look(model, norms, data)
        for link in plan["links"]:
            norm: Any = norms[link["norm"]]
            layers = [model.get_submodule(name) for name in link["layers"]]
            low, high, mean = seen[link["norm"]]
            shift = {"mean": mean, "middle": (low + high) / 2, None: torch.zeros_like(mean)}
            middle = shift[self.shift]
            size = torch.maximum(high - middle, middle - low)
            weights = torch.stack([_by_channel(layer).abs().amax(0) for layer in layers]).amax(0)
            scale = size**self.strength / weights.clamp(min=1e-5) ** (1 - self.strength)
            scale = torch.where(size > 0, scale, 1.0).clamp(min=1e-5)
            transform(norm, layers, middle.to(norm.weight.dtype), scale.to(norm.weight.dtype))

    def _look(
        self, model: nn.Module, norms: dict[str, nn.Module], data: Images
    ) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """The least, the largest and the mean of each channel that the norms make."""
        rows: dict[str, list[Tensor]] = {name: [] for name in norms}
        handles = []
        for name, norm in norms.items():

            def look(norm: Any, args: Any, out: Tensor, name: str = name) -> None:
                values = _channels_last(norm, out).flatten(0, -2).double()
                ends = values.amin(0), values.amax(0), values.sum(0)
                count = torch.full_like(ends[0], len(values))
                rows[name].append(torch.stack((*ends, count)))

            handles.append(norm.register_forward_hook(look))
        was_training = model.training
        try:
            model.eval()
            for batch in self.batches(data):
                model(batch)
        finally:
            model.train(was_training)
            for handle in handles:
                handle.remove()
        found = {}
        for name, values in rows.items():
            low, high, total, count = torch.stack(values, 1)
            found[name] = (low.amin(0), high.amax(0), total.sum(0) / count.sum(0))
        return found


@implements("mptq_vit")
@torch.no_grad()
def transform(norm: Any, layers: list[nn.Module], shift: Tensor, scale: Tensor) -> None:
    """Have a norm make (y - shift) / scale, and layers compute from that what they did from y.

    Args:
        norm: with a weight and a bias, (channels,) each.
        layers: linear ones, or convolutions without padding and groups; each with a bias.
        shift, scale: (channels,).
    """
    norm.weight.div_(scale)
    norm.bias.sub_(shift).div_(scale)
    for layer in layers:
        weight: Any = layer.weight
        sums = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
        layer.bias.add_(sums @ shift)  # pyright: ignore[reportCallIssue]
        weight.mul_(scale.view(-1, *[1] * (weight.ndim - 2)))


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm)


def _makes_up(layer: Any, channels: int) -> bool:
    """Whether a layer can make up for shifted and scaled channels."""
    if layer.weight.shape[1] != channels:
        return False
    unpadded = isinstance(layer, nn.Linear) or layer.padding in ("valid", (0, 0))
    return unpadded and getattr(layer, "groups", 1) == 1


def _by_channel(layer: Any) -> Tensor:
    """A layer's weights in a column for each channel of its input."""
    return layer.weight.transpose(0, 1).flatten(1).T


def _channels_last(norm: nn.LayerNorm, out: Tensor) -> Tensor:
    """Norms of maps have their channels second."""
    first = out.ndim == 4 and type(norm).__name__.endswith("2d")
    return out.movedim(1, -1) if first else out


@torch.no_grad()
def _refuted(model: nn.Module, links: list[Link], x: Tensor) -> list[Link]:
    """The links whose layers do not make up for what is done to their norm."""
    trial = ShiftAndSmooth().rebuild(copy.deepcopy(model), {"links": links}).double().eval()
    x = x.double() if x.is_floating_point() else x
    generator = torch.Generator().manual_seed(0)

    def noise(size: Any) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    for param in trial.parameters():
        step = 0.1 * param.abs().mean().clamp(min=1e-2) * noise(param.shape).to(param.device)
        param.add_(step)
    wanted = trial(x)

    def holds(some: list[Link]) -> bool:
        changed = copy.deepcopy(trial)
        for link in some:
            norm: Any = changed.get_submodule(link["norm"])
            layers = [changed.get_submodule(name) for name in link["layers"]]
            shift, scale = noise(len(norm.weight)), (noise(len(norm.weight)) / 2).exp()
            transform(norm, layers, shift.to(norm.weight.device), scale.to(norm.weight.device))
        return bool((changed(x) - wanted).abs().max() < CLOSE * wanted.abs().max())

    return [] if holds(links) else [link for link in links if not holds([link])]
