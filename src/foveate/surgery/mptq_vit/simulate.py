"""A transformer that computes as integers would: the inputs of every product are rounded, those of
attention's products, too.

Source: mptq_vit (arXiv 2401.14895), on the simulation of quant_whitepaper_qualcomm.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.surgery.attention import Attend, attend_by, attending, cover_attention
from foveate.surgery.edit import Covered, Images, Plan
from foveate.surgery.mptq_vit.regions import RegionQuantiser
from foveate.surgery.quant_whitepaper_qualcomm.quantiser import Quantiser
from foveate.surgery.quant_whitepaper_qualcomm.ranges import Sample, Setter, set_range
from foveate.surgery.quant_whitepaper_qualcomm.simulate import Simulate, fill

PRODUCTS = "products"


@implements("mptq_vit")
@dataclass(frozen=True, kw_only=True)
class SimulateTransformer(Simulate):
    """Round weights, and what comes into every layer and into both products of attention.

    Unlike `Simulate` it leaves what comes out of layers as it is: integers are added up in 32
    bits, and norms, softmax and GELU take what they add up to. Probabilities and what GELU makes
    are rounded in regions, with ratios that the data decides. Fused attention is written out, as
    it shows neither its scores nor its probabilities; what it computes else stays the same.

    Args:
        symmetric_activations: grids of activations have zero in their middle, as integer
            products want it; otherwise they are affine.
        regions: round in regions where softmax or GELU makes it; otherwise on grids.

    The other arguments are those of `Simulate`; `logits_range` has nothing to set.
    """

    symmetric_activations: bool = True
    regions: bool = True

    def decide(self, model: nn.Module, data: Images) -> tuple[Plan, list[Covered]]:
        plan, coverage = super().decide(model, data)
        if self.activation_bits is None:
            return {**plan, "modules": []}, coverage
        done = f"its products take {self.activation_bits} bits"
        found = attending(model, next(self.batches(data)))
        of_attention = cover_attention(model, found, self.skip, PRODUCTS, done)
        names = [line.name for line in of_attention if line.changed]
        return {**plan, "modules": names}, coverage + of_attention

    def rebuild(self, model: nn.Module, plan: Plan) -> nn.Module:
        model = super().rebuild(model, plan)
        if self.activation_bits is None:
            return model
        for link in plan["layers"]:
            layer: Any = model.get_submodule(link["name"])
            in_regions = self.regions and link["maker"] == "gelu"
            layer.input_grid, layer.output_grid = self._grid(in_regions), None
            layer.train(layer.training)
        for name in plan["modules"]:
            grids = [self._grid(kind == "p" and self.regions) for kind in "qkpv"]
            attend_by(model.get_submodule(name), PRODUCTS, _RoundedProducts(*grids))
        like = next(model.parameters())
        return model.to(like.device)

    def _grid(self, in_regions: bool) -> Quantiser:
        assert self.activation_bits is not None
        if in_regions:
            return RegionQuantiser(self.activation_bits)
        return Quantiser(self.activation_bits, self.symmetric_activations)

    def _set_activations(self, model: nn.Module, plan: Plan, data: Images) -> None:
        grids = [g for name, g in quantisers(model).items() if not name.endswith("weight_grid")]
        samples = {grid: Sample() for grid in grids}
        fill(model, samples, self.batches(data))
        for grid, sample in samples.items():
            fit_grid(grid, sample.values(), self.activation_range, self.percentile)


class _RoundedProducts(Attend):
    """Both products of attention, each side on its own grid."""

    def __init__(self, q: Quantiser, k: Quantiser, p: Quantiser, v: Quantiser) -> None:
        super().__init__()
        self.q_grid, self.k_grid, self.p_grid, self.v_grid = q, k, p, v

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return self.q_grid(q) @ self.k_grid(k)

    def mix(self, p: Tensor, v: Tensor) -> Tensor:
        return self.p_grid(p) @ self.v_grid(v)


def quantisers(model: nn.Module) -> dict[str, Quantiser]:
    """Every quantiser of a simulated model, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Quantiser)}


@torch.no_grad()
def fit_grid(
    grid: Quantiser, values: Tensor, how: Setter = "mse", percentile: float = 99.99
) -> None:
    """Set a quantiser's range, or its regions, by values (rows, n): a row for each range."""
    if isinstance(grid, RegionQuantiser):
        grid.fit(values)
        return
    low, high = set_range(values, grid.bits, grid.symmetric, how, percentile)
    grid.set_range(low.view_as(grid.high), high.view_as(grid.high))
