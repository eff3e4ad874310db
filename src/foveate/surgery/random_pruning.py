"""Random masks, fixed before training: what counts is how dense each layer stays.

Source: random_pruning (arXiv 2202.02643, section 3.2). Ratios: `er` of SET (arXiv 1707.04780),
`erk` of RigL (arXiv 1911.11134), SNIP (arXiv 1810.02340) and GraSP (arXiv 2002.07376).
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.gradual_pruning import demand_share, largest
from foveate.surgery.masks import Mask, weights

TEMPERATURE = 200.0
"""What GraSP divides logits by."""


@implements("random_pruning")
@dataclass(frozen=True, kw_only=True)
class MaskAtRandom(Mask):
    """Hold weights at zero that chance chooses, best before the model is trained.

    Args:
        sparsity: share that is held, over all layers.
        ratios: how dense each layer stays: all alike (`uniform`); in proportion to
            (inputs + outputs) / (inputs times outputs), `er`; or to the same with the
            kernel's sides on both sides of the stroke, `erk`.
        densities: of weights by name instead, such as those of `snip_densities`; then
            `sparsity` and `ratios` don't count, and what is not named stays free.
        seed: of chance.

    Raises: FoveateError that names the field.
    """

    sparsity: float = 0.5
    ratios: Literal["uniform", "er", "erk"] = "erk"
    densities: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        demand_share("sparsity", self.sparsity)
        if self.ratios not in ("uniform", "er", "erk"):
            raise FoveateError(f"ratios is {self.ratios!r}: choose uniform, er or erk")
        for name, density in self.densities.items():
            if not 0 <= density <= 1:
                raise FoveateError(f"densities has {density} for {name}: give 0 to 1")

    def choose(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        densities = self.densities or self._densities(weights)
        if unknown := sorted(set(densities) - set(weights)):
            raise FoveateError(f"densities names {unknown[0]!r}, which is no weight of the model")
        chance = torch.Generator().manual_seed(self.seed)
        scores = {name: torch.rand(w.shape, generator=chance) for name, w in weights.items()}
        masks = largest(scores, {name: 1 - densities.get(name, 1.0) for name in scores})
        return {name: mask.to(weights[name].device) for name, mask in masks.items()}

    def _densities(self, weights: Mapping[str, Tensor]) -> dict[str, float]:
        if self.ratios == "uniform":
            return dict.fromkeys(weights, 1 - self.sparsity)
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        return random_graph_densities(shapes, self.sparsity, kernels=self.ratios == "erk")


@implements("random_pruning")
def random_graph_densities(
    shapes: Mapping[str, tuple[int, ...]], sparsity: float, kernels: bool = True
) -> dict[str, float]:
    """Densities of an Erdős-Rényi graph: thin layers stay denser than wide ones.

    Each is in proportion to the sum of the shape's numbers over their product; a layer
    that would be denser than dense stays dense, and the rest makes up for it.

    Args:
        shapes: of weights: outputs, inputs, and the kernel's sides.
        sparsity: share of zeros over all.
        kernels: whether the kernel's sides count.
    """
    sizes = {name: float(torch.Size(shape).numel()) for name, shape in shapes.items()}
    raw = {}
    for name, shape in shapes.items():
        counted = shape if kernels else shape[:2]
        raw[name] = sum(counted) / torch.Size(counted).numel()
    dense: set[str] = set()
    while True:
        rest = [name for name in shapes if name not in dense]
        budget = (1 - sparsity) * sum(sizes.values()) - sum(sizes[name] for name in dense)
        scale = budget / sum(raw[name] * sizes[name] for name in rest)
        full = {name for name in rest if scale * raw[name] > 1}
        if not full:
            return {name: 1.0 if name in dense else scale * raw[name] for name in shapes}
        dense |= {name for name in full if raw[name] == max(raw[other] for other in full)}


@implements("random_pruning")
def snip_densities(
    model: nn.Module, images: Tensor, targets: Tensor, sparsity: float
) -> dict[str, float]:
    """How dense SNIP would leave each layer: weights of the largest |w dL/dw| over all layers stay.

    Args:
        model: stays as it is.
        images, targets: a batch with classes, int64 (B,).
        sparsity: share of zeros over all.
    """
    twin, held = _copied(model)
    loss = cross_entropy(twin(images), targets)
    gradients = torch.autograd.grad(loss, list(held.values()))
    pairs = zip(held.items(), gradients, strict=True)
    return _kept({name: (w * g).abs().detach() for (name, w), g in pairs}, sparsity)


@implements("random_pruning")
def grasp_densities(
    model: nn.Module, images: Tensor, targets: Tensor, sparsity: float
) -> dict[str, float]:
    """How dense GraSP would leave each layer: of w times Hessian times gradient, the largest stay.

    Those are the weights without which gradients would flow least.

    Args:
        model, images, targets, sparsity: as of `snip_densities`.
    """
    twin, held = _copied(model)
    values = list(held.values())
    loss = cross_entropy(twin(images) / TEMPERATURE, targets)
    gradients = torch.autograd.grad(loss, values, create_graph=True)
    flow = sum((g.detach() * g).sum() for g in gradients)
    assert isinstance(flow, Tensor)
    curved = torch.autograd.grad(flow, values)
    pairs = zip(held.items(), curved, strict=True)
    return _kept({name: (w * h).detach() for (name, w), h in pairs}, sparsity)


def _copied(model: nn.Module) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """A copy that trains, and its weights."""
    twin = copy.deepcopy(model).train().requires_grad_()
    return twin, {name: weight.value for name, weight in weights(twin).items()}


def _kept(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, float]:
    demand_share("sparsity", sparsity)
    masks = largest(scores, sparsity)
    return {name: mask.double().mean().item() for name, mask in masks.items()}
