"""Greedy mixed precision: bits are taken away where they cost least for what they save.

Source: mptq_vit (arXiv 2401.14895). The paper's own formula was not to be read; here a step's
price is what it adds to the loss over the share of all bits of its kind that it saves. Quantisers
of weights and of activations have a budget each.
"""

import copy
import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.edit import Covered, Edit, Images, Plan
from foveate.surgery.mptq_vit.simulate import fit_grid, quantisers
from foveate.surgery.quant_whitepaper_qualcomm.quantiser import Quantiser
from foveate.surgery.quant_whitepaper_qualcomm.ranges import Sample
from foveate.surgery.quant_whitepaper_qualcomm.simulate import (
    SimulatedLayer,
    all_of_them,
    fill,
    none,
    simulated,
    switched,
)

Bits = dict[str, int]
"""Of quantisers, by name."""

Loss = Callable[[Bits], float]
"""What a model with so many bits loses, the less the better."""


@dataclass(frozen=True)
class Item:
    """Something whose bits may be taken away.

    Attributes:
        name: its own.
        kind: whose budget it belongs to.
        size: numbers that it rounds.
        bits: that it begins with.
    """

    name: str
    kind: str
    size: int
    bits: int


@implements("mptq_vit")
@dataclass(frozen=True, kw_only=True)
class MixBits(Edit):
    """Give the quantisers of a simulated model fewer bits, each as many as it needs.

    Begin with more bits than wanted, such as 8, in `SimulateTransformer` or `Simulate`. Bits are
    taken one at a time, from the quantiser where the loss that this adds is least for the
    share of bits that it saves, until the mean is as asked. The loss is the divergence of the
    rounded model's predictions from its own without rounding, on the data: labels are not
    needed. Ranges are set anew, for each number of bits, by least squared error.

    Args:
        weight_bits: mean over all weights, or None to leave theirs.
        activation_bits: mean over all numbers of an image that are rounded, or None.
        least: bits that a quantiser keeps.

    Raises: FoveateError that names the field.
    """

    weight_bits: float | None = 5.0
    activation_bits: float | None = 5.0
    least: int = 3

    def __post_init__(self) -> None:
        if self.least not in range(2, 9):
            raise FoveateError(f"least is {self.least}: give 2 to 8")
        for field in ("weight_bits", "activation_bits"):
            bits = getattr(self, field)
            if bits is not None and not self.least <= bits <= 8:
                raise FoveateError(f"{field} is {bits}: give {self.least} to 8, or None")
        if self.weight_bits is None and self.activation_bits is None:
            raise FoveateError("weight_bits and activation_bits are None: give one at least")

    @torch.no_grad()
    def decide(self, model: nn.Module, data: Images) -> tuple[Plan, list[Covered]]:
        batches = list(self.batches(data))
        model = copy.deepcopy(model)
        grids = quantisers(model)
        if not grids:
            raise FoveateError(
                "MixBits works on quantisers of a simulated model: apply Simulate or "
                "SimulateTransformer first"
            )
        items = self._items(model, grids, batches[0])
        values = _values(model, grids, batches)
        states = {
            (item.name, bits): _state(grids[item.name], values[item.name], bits, item.bits)
            for item in items
            for bits in range(min(self.least, item.bits), item.bits + 1)
        }
        with switched(model, none):
            wanted = torch.cat([model(batch) for batch in batches]).log_softmax(-1)

        def loss(bits: Bits) -> float:
            for name, number in bits.items():
                grids[name].bits = number
                grids[name].load_state_dict(states[name, number])
            with switched(model, all_of_them):
                found = torch.cat([model(batch) for batch in batches]).log_softmax(-1)
            return (wanted.exp() * (wanted - found)).sum(-1).mean().item()

        budgets = {"weight": self.weight_bits, "activation": self.activation_bits}
        wishes = {kind: mean for kind, mean in budgets.items() if mean is not None}
        bits = allocate(items, wishes, self.least, loss)
        coverage = []
        for item in items:
            now, changed = bits[item.name], bits[item.name] < item.bits
            told = f"{now} bits of {item.bits}" if changed else f"left with its {now} bits"
            coverage.append(Covered(item.name, type(grids[item.name]).__name__, changed, told))
        return {"bits": {line.name: bits[line.name] for line in coverage if line.changed}}, coverage

    def _items(self, model: nn.Module, grids: dict[str, Quantiser], x: Tensor) -> list[Item]:
        """The quantisers that a pass meets, and how many numbers of an image each rounds."""
        sizes: dict[str, int] = {}
        handles = []
        for name, grid in grids.items():

            def look(grid: nn.Module, args: Any, name: str = name) -> None:
                share = 1 if name.endswith("weight_grid") else len(x)
                sizes[name] = sizes.get(name, 0) + args[0].numel() // share

            handles.append(grid.register_forward_pre_hook(look))
        with switched(model, all_of_them):
            model(x)
        for handle in handles:
            handle.remove()
        return [
            Item(name, "weight" if name.endswith("weight_grid") else "activation", size, grid.bits)
            for name, grid in grids.items()
            if (size := sizes.get(name))
        ]

    def rebuild(self, model: nn.Module, plan: Plan) -> nn.Module:
        for name, bits in plan["bits"].items():
            grid: Any = model.get_submodule(name)
            grid.bits = bits
        return model

    def fit(self, model: nn.Module, plan: Plan, data: Images) -> None:
        grids = {name: grid for name, grid in quantisers(model).items() if name in plan["bits"]}
        for name, values in _values(model, grids, self.batches(data)).items():
            fit_grid(grids[name], values)


@implements("mptq_vit")
def allocate(items: list[Item], budgets: dict[str, float], least: int, loss: Loss) -> Bits:
    """Take bits away, one at a time, until the mean of each kind is within its budget.

    A step's price is the loss that it adds over the share of its kind's numbers that it takes a
    bit from. A price is measured anew when its step seems the cheapest, if another was made
    since: where prices only rise with what else is rounded, the cheapest step is always taken.

    Args:
        items: what there is.
        budgets: mean bits of each kind; kinds without one keep theirs.
        least: bits that an item keeps, or fewer if it has no more.
        loss: of a number of bits for every item.

    Raises: FoveateError if a budget cannot be met.
    """
    bits = {item.name: item.bits for item in items}
    totals = {kind: sum(i.size for i in items if i.kind == kind) for kind in budgets}
    by_name = {item.name: item for item in items}
    now, step = loss(bits), 0

    def price(item: Item) -> tuple[float, float]:
        """What a step costs for what it saves, and the loss behind it."""
        after = loss({**bits, item.name: bits[item.name] - 1})
        return (after - now) * totals[item.kind] / item.size, after

    def is_over(kind: str) -> bool:
        used = sum(item.size * bits[item.name] for item in items if item.kind == kind)
        return kind in budgets and used > budgets[kind] * totals[kind]

    waiting: list[tuple[float, str, int, float]] = []
    for item in items:
        if is_over(item.kind) and item.bits > least:
            cost, after = price(item)
            heapq.heappush(waiting, (cost, item.name, step, after))
    while any(map(is_over, budgets)):
        if not waiting:
            raise FoveateError(f"{least} bits for each are not few enough: give a larger budget")
        _, name, measured, after = heapq.heappop(waiting)
        item = by_name[name]
        if not is_over(item.kind):
            continue
        if measured == step:
            bits[name], now, step = bits[name] - 1, after, step + 1
        if bits[name] > least:
            cost, after = price(item)
            heapq.heappush(waiting, (cost, name, step, after))
    return bits


def allocate_slowly(items: list[Item], budgets: dict[str, float], least: int, loss: Loss) -> Bits:
    """The same with every price measured at every step."""
    bits = {item.name: item.bits for item in items}
    totals = {kind: sum(i.size for i in items if i.kind == kind) for kind in budgets}

    def is_over(kind: str) -> bool:
        used = sum(item.size * bits[item.name] for item in items if item.kind == kind)
        return kind in budgets and used > budgets[kind] * totals[kind]

    while any(map(is_over, budgets)):
        now = loss(bits)
        prices = {
            item.name: (loss({**bits, item.name: bits[item.name] - 1}) - now)
            * totals[item.kind]
            / item.size
            for item in items
            if is_over(item.kind) and bits[item.name] > least
        }
        bits[min(prices, key=lambda name: (prices[name], name))] -= 1
    return bits


def _values(
    model: nn.Module, grids: dict[str, Quantiser], batches: Iterable[Tensor]
) -> dict[str, Tensor]:
    """What quantisers round: a row for each range."""
    samples = {name: Sample() for name in grids if not name.endswith("weight_grid")}
    fill(model, {grids[name]: sample for name, sample in samples.items()}, batches)
    layers: dict[str, SimulatedLayer] = simulated(model)
    rows = {f"{name}.weight_grid": layer.weight_rows().detach() for name, layer in layers.items()}
    found = {name: sample.values() for name, sample in samples.items()}
    return found | {name: values for name, values in rows.items() if name in grids}


def _state(grid: Quantiser, values: Tensor, bits: int, present: int) -> dict[str, Tensor]:
    """What a quantiser's range is with so many bits; with those that it has, as it is."""
    grid = copy.deepcopy(grid)
    if bits < present:
        grid.bits = bits
        fit_grid(grid, values)
    return grid.state_dict()
