"""Bits taken away greedily, against all ways there are to take them."""

import copy
import itertools
import json

import pytest
import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.surgery.lineage import lineage
from foveate.surgery.mptq_vit.bits import Item, MixBits, allocate, allocate_slowly
from foveate.surgery.mptq_vit.simulate import SimulateTransformer, fit_grid, quantisers
from foveate.surgery.quant_whitepaper_qualcomm.simulate import Simulate, none, switched
from foveate.surgery.replay import replay

pytestmark = pytest.mark.paper("mptq_vit")


class Convex:
    """A loss that each bit less makes four times as large, item by item."""

    def __init__(self, seed, count):
        generator = torch.Generator().manual_seed(seed)
        self.weights = (4 * torch.randn(count, generator=generator)).exp().tolist()
        self.asked = 0

    def __call__(self, bits):
        self.asked += 1
        return sum(w * 4.0**-b for w, b in zip(self.weights, bits.values(), strict=True))


def spent(items, bits):
    return sum(item.size * bits[item.name] for item in items)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("equal", [True, False])
def test_nothing_with_as_few_bits_loses_less(seed, equal):
    """Convex and additive, greedy is optimal for the bits that it spends; where sizes are equal,
    for the budget, too."""
    sizes = [1, 1, 1, 1] if equal else [3, 1, 4, 2]
    items = [Item(f"i{n}", "weight", size, 6) for n, size in enumerate(sizes)]
    loss = Convex(seed, 4)
    bits = allocate(items, {"weight": 4.0}, 2, loss)
    total = 4.0 * sum(sizes)
    assert spent(items, bits) <= total
    allowed = total if equal else spent(items, bits)
    ways = (
        {f"i{n}": b for n, b in enumerate(way)} for way in itertools.product(range(2, 7), repeat=4)
    )
    best = min(loss(way) for way in ways if spent(items, way) <= allowed)
    assert loss(bits) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_prices_measured_when_needed_choose_alike(seed):
    items = [Item(f"i{n}", "ab"[n % 2], 1 + n % 3, 8) for n in range(12)]
    losses = Convex(seed, 12), Convex(seed, 12)
    budgets = {"a": 5.0, "b": 4.0}
    fast, slow = (
        way(items, budgets, 2, loss)
        for way, loss in zip((allocate, allocate_slowly), losses, strict=True)
    )
    assert fast == slow
    assert losses[0].asked < 0.4 * losses[1].asked
    for kind, mean in budgets.items():
        part = [item for item in items if item.kind == kind]
        assert spent(part, fast) <= mean * sum(item.size for item in part)


def test_kinds_without_a_budget_keep_their_bits():
    items = [Item("a", "weight", 1, 8), Item("b", "activation", 1, 8)]
    assert allocate(items, {"activation": 5.0}, 3, Convex(0, 2)) == {"a": 8, "b": 5}
    with pytest.raises(FoveateError, match="3 bits for each are not few enough"):
        allocate(items, {"weight": 2.5}, 3, Convex(0, 2))


def sensitive():
    """A network whose layers take rounding very differently."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(16, 32),
        nn.GELU(),
        nn.Linear(32, 32),
        nn.GELU(),
        nn.Linear(32, 16),
        nn.Linear(16, 6),
    )
    with torch.no_grad():
        net[4].weight.mul_(0.05)
        net[5].weight.mul_(20)
        net[2].weight[:, ::2].mul_(8)
    return net.eval(), torch.randn(64, 16)


def divergence(model, x):
    with switched(model, none):
        wanted = model(x).log_softmax(-1)
    return (wanted.exp() * (wanted - model(x).log_softmax(-1))).sum(-1).mean().item()


def test_in_a_network_it_beats_equal_bits_and_nears_the_best():
    net, x = sensitive()
    begun, _ = SimulateTransformer(weight_bits=6, activation_bits=None).apply(net, x)
    mixed, coverage = MixBits(weight_bits=4.0, activation_bits=None, least=2).apply(begun, x)
    names = [line.name for line in coverage]
    sizes = [quantisers(mixed)[n].high.numel() for n in names]
    sizes = [mixed.get_submodule(n.removesuffix(".weight_grid")).weight.numel() for n in names]

    def lost(way):
        model = copy.deepcopy(begun)
        for name, bits in zip(names, way, strict=True):
            grid = quantisers(model)[name]
            if bits < grid.bits:
                grid.bits = bits
                layer = model.get_submodule(name.removesuffix(".weight_grid"))
                fit_grid(grid, layer.weight_rows().detach())
        return divergence(model, x)

    ways = [
        w
        for w in itertools.product(range(2, 7), repeat=4)
        if sum(map(int.__mul__, w, sizes)) <= 4 * sum(sizes)
    ]
    found = tuple(quantisers(mixed)[n].bits for n in names)
    assert found in ways
    losses = sorted(lost(way) for way in ways)
    assert lost(found) == pytest.approx(divergence(mixed, x), rel=1e-5)
    assert divergence(mixed, x) < 0.5 * lost((4, 4, 4, 4))
    assert divergence(mixed, x) <= losses[len(losses) // 50]


def test_transformers_mix_and_load_again():
    import timm

    torch.manual_seed(0)
    net = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, depth=1, num_classes=4
    ).eval()
    x = torch.randn(3, 3, 16, 16)
    begun, _ = SimulateTransformer(weight_bits=6, activation_bits=6).apply(net, x)
    mixed, coverage = MixBits(weight_bits=5.0, activation_bits=5.5, least=4).apply(begun, x)
    grids = quantisers(mixed)
    assert {line.name for line in coverage} == set(grids)
    weights = {n: g for n, g in grids.items() if n.endswith("weight_grid")}
    sizes = {n: mixed.get_submodule(n.removesuffix(".weight_grid")).weight.numel() for n in weights}
    assert sum(g.bits * sizes[n] for n, g in weights.items()) <= 5 * sum(sizes.values())
    assert {g.bits for g in grids.values()} <= {4, 5, 6}
    steps = json.loads(json.dumps(lineage(mixed)))
    again = replay(copy.deepcopy(net), steps)
    again.load_state_dict(mixed.state_dict())
    assert torch.equal(again.eval()(x), mixed(x))


def test_mistakes():
    for fields, message in (
        ({"weight_bits": 2.0}, "weight_bits is 2.0: give 3 to 8"),
        ({"activation_bits": 9}, "activation_bits is 9"),
        ({"least": 1}, "least is 1"),
        ({"weight_bits": None, "activation_bits": None}, "give one at least"),
    ):
        with pytest.raises(FoveateError, match=message):
            MixBits(**fields)
    net, x = sensitive()
    with pytest.raises(FoveateError, match="apply Simulate or"):
        MixBits().apply(net, x)
    rounded, _ = Simulate(weight_bits=4, activation_bits=4).apply(net, x)
    with pytest.raises(FoveateError, match="found nothing to change"):
        MixBits(weight_bits=4.0, activation_bits=4.0).apply(rounded, x)
