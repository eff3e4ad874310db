"""Cross-layer equalisation: the channels between two layers scaled so that a grid suits them all.

Source: quant_whitepaper_qualcomm (arXiv 2106.08295, section 3.2), and Nagel et al. 2019
(arXiv 1906.04721, sections 4.1 and 4.2.1), which it comes from.
"""

import copy
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.chains import Chain, chains, link_of
from foveate.surgery.edit import Covered, Edit, Images, Plan
from foveate.surgery.layers import obstacle
from foveate.surgery.quant_whitepaper_qualcomm.folding import expected, fold_norm

CLOSE = 1e-9
"""Of outputs in float64, relative to the largest."""


@implements("quant_whitepaper_qualcomm")
@dataclass(frozen=True, kw_only=True)
class CrossLayerEqualise(Edit):
    """Scale each channel between two layers so that its weights are as large on both sides.

    What a ReLU takes may be scaled before it instead of behind it, so the model computes what it
    did. Batch norms are folded first. Pairs are proposed by the order of calls, and each is proved:
    with random scales and disturbed weights, in float64, outputs must stay. Apply it before
    `Simulate` or `Quantise`; it serves grids that all channels of a layer share.

    Args:
        rounds: over all pairs, at most; fewer if scales have settled.
        absorb: move biases that lift nearly all of a channel above zero into the next layer,
            where norms told how channels are distributed and nothing is padded. This is exact for
            values within three deviations of the mean only.
        skip: names of layers to leave as they are, or patterns of them.

    Raises: FoveateError if rounds is less than 1.
    """

    rounds: int = 20
    absorb: bool = True
    skip: tuple[str, ...] = ()

    looks_at = "shapes"
    refuses: ClassVar[dict[str, str]] = {
        "integers": "equalise first, and quantise then",
        "mixtures": "fold them into plain layers first",
        "chosen filters": "equalise the model without the heads",
        "constants": "equalise first, and capture the graph then",
    }

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise FoveateError(f"rounds is {self.rounds}: give 1 or more")

    def decide(self, model: nn.Module, data: Images) -> tuple[Plan, list[Covered]]:
        x = next(self.batches(data))[:4]
        found = chains(model, x)
        usable = [c for c in found.values() if not obstacle(c.name, c.layer, self.skip)]
        folded = [link_of(chain) for chain in usable]
        trial = _Trial(model, folded, x)
        pairs, coverage = [], []
        for first, second in pairwise(usable):
            why = _misfit(first, second) or trial.refutes(first.name, second.name)
            if not why:
                direct = second.source == first.name and first.top == math.inf
                absorbs = self.absorb and direct and _is_unpadded(second.layer)
                pairs.append({"first": first.name, "second": second.name, "absorb": absorbs})
            told = why or f"its channels equalised with {second.name}"
            coverage.append(Covered(first.name, type(first.layer).__name__, not why, told))
        return {"layers": folded, "pairs": pairs}, coverage

    def rebuild(self, model: nn.Module, plan: Plan) -> nn.Module:
        for link in plan["layers"]:
            fold_norm(model, link["name"], link["norm"])
        return model

    @torch.no_grad()
    def fit(self, model: nn.Module, plan: Plan, data: Images) -> None:
        pairs = [
            (model.get_submodule(pair["first"]), model.get_submodule(pair["second"]))
            for pair in plan["pairs"]
        ]
        for _ in range(self.rounds):
            most = max(_equalise(*pair) for pair in pairs)
            if most < 1.001:
                break
        for pair, layers in zip(plan["pairs"], pairs, strict=True):
            if pair["absorb"]:
                absorb_bias(*layers)


def by_input(layer: Any) -> Tensor:
    """A layer's weights in a row for each input channel."""
    weight, groups = layer.weight, getattr(layer, "groups", 1)
    parts = (
        weight.unflatten(0, (groups, -1)).flatten(3) if weight.ndim > 2 else weight[None, ..., None]
    )
    return parts.transpose(1, 2).flatten(0, 1).flatten(1)


def scale_between(first: Any, second: Any, scales: Tensor) -> None:
    """Divide the outputs of a layer by scales (channels,), and have the next one make up for it."""
    rest = first.weight.ndim - 1
    first.weight.div_(scales.view(-1, *[1] * rest))
    if first.bias is not None:
        first.bias.div_(scales)
    for part in ("mean", "deviation"):
        if hasattr(first, f"expected_{part}"):
            getattr(first, f"expected_{part}").div_(scales)
    groups = getattr(second, "groups", 1)
    size = len(second.weight) // groups
    spread = scales.view(groups, 1, -1).expand(-1, size, -1).flatten(0, 1)
    second.weight.mul_(spread.view(*spread.shape, *[1] * (second.weight.ndim - 2)))


def _equalise(first: Any, second: Any) -> float:
    """Bring the channels between two layers to equal ranges; the largest factor, 1 or more."""
    before = first.weight.flatten(1).abs().amax(1)
    after = by_input(second).abs().amax(1)
    alive = (before > 0) & (after > 0)
    scales = torch.where(alive, (before / after.clamp(min=1e-30)).sqrt(), 1.0)
    scale_between(first, second, scales)
    return torch.maximum(scales, 1 / scales).max().item()


def absorb_bias(first: Any, second: Any) -> None:
    """Take from a layer's bias what its ReLU nearly never cuts off, and add to the next one's what
    that contributed. Where nothing tells how outputs are distributed, nothing happens."""
    known = expected(first)
    if known is None:
        return
    mean, deviation = known
    surplus = (mean - 3 * deviation).clamp(min=0)
    first.bias.sub_(surplus)
    first.expected_mean.sub_(surplus)
    groups = getattr(second, "groups", 1)
    sums = second.weight.flatten(2).sum(2) if second.weight.ndim > 2 else second.weight
    spread = surplus.view(groups, 1, -1).expand(-1, len(sums) // groups, -1).flatten(0, 1)
    second.bias.add_((sums * spread).sum(1))


class _Trial:
    """A disturbed copy of a model in float64, to prove on that channels may be scaled."""

    def __init__(self, model: nn.Module, folded: list[Plan], x: Tensor) -> None:
        self.model = copy.deepcopy(model).double().eval()
        self.x = x.double() if x.is_floating_point() else x
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for link in folded:
                fold_norm(self.model, link["name"], link["norm"])
            for param in self.model.parameters():
                noise = torch.randn(param.shape, generator=generator, dtype=torch.float64)
                size = param.abs().mean().clamp(min=1e-2)
                param.add_(0.1 * size * noise.to(param.device))
            self.wanted = self.model(self.x)

    @torch.no_grad()
    def refutes(self, first: str, second: str) -> str:
        """Why the channels between two layers cannot be scaled, or ""."""
        layers: list[Any] = [self.model.get_submodule(name) for name in (first, second)]
        states = [copy.deepcopy(layer.state_dict()) for layer in layers]
        generator = torch.Generator().manual_seed(1)
        exponents = torch.rand(len(layers[0].weight), generator=generator, dtype=torch.float64)
        scales = (2 * exponents - 1).exp2().to(layers[0].weight.device)
        scale_between(layers[0], layers[1], scales)
        got = self.model(self.x)
        for layer, state in zip(layers, states, strict=True):
            layer.load_state_dict(state)
        worst = (got - self.wanted).abs().max() / self.wanted.abs().max()
        return "" if worst < CLOSE else f"left because scales do not reach {second} alone"


def _misfit(first: Chain, second: Chain) -> str:
    """Why two layers cannot be a pair, as far as can be seen without computing, or ""."""
    if first.calls > 1 or second.calls > 1:
        return "left because the model calls it, or the layer behind it, more than once"
    if first.top not in (None, math.inf):
        return f"left because its activation is cut off at {first.top:g}"
    if len(first.layer.weight) != second.layer.weight.shape[1] * getattr(second.layer, "groups", 1):
        return f"left because {second.name} has not as many inputs as it has outputs"
    return ""


def _is_unpadded(layer: Any) -> bool:
    return isinstance(layer, nn.Linear) or layer.padding in ("valid", (0, 0))
