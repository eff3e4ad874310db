"""Random masks: densities by bisection, by counting, and by an explicit Hessian."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from foveate import FoveateError
from foveate.surgery.masks import masked, sparsity
from foveate.surgery.random_pruning import (
    MaskAtRandom,
    grasp_densities,
    random_graph_densities,
    snip_densities,
)

SHAPES = {
    "stem": (16, 3, 3, 3),
    "wide": (64, 64, 3, 3),
    "point": (128, 64, 1, 1),
    "light": (64, 1, 3, 3),
    "head": (10, 128),
}


def by_bisection(shapes, sparsity, kernels):
    """The scale at which min(1, scale times ratio) keeps as many as asked."""
    ratio = {}
    for name, shape in shapes.items():
        numbers = shape if kernels else shape[:2]
        ratio[name] = sum(numbers) / math.prod(numbers)
    total = sum(map(math.prod, shapes.values()))
    low, high = 0.0, 1e6
    for _ in range(200):
        scale = (low + high) / 2
        kept = sum(min(1, scale * ratio[name]) * math.prod(shapes[name]) for name in shapes)
        low, high = (scale, high) if kept < (1 - sparsity) * total else (low, scale)
    return {name: min(1, scale * ratio[name]) for name in shapes}


@pytest.mark.paper("random_pruning")
@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.8, 0.95])
def test_densities_of_random_graphs(share, kernels):
    found = random_graph_densities(SHAPES, share, kernels)
    assert found == pytest.approx(by_bisection(SHAPES, share, kernels), rel=1e-6)
    kept = sum(found[name] * math.prod(shape) for name, shape in SHAPES.items())
    assert kept == pytest.approx((1 - share) * sum(map(math.prod, SHAPES.values())))


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 36, 5)
    )


@pytest.mark.paper("random_pruning")
def test_exactly_as_many_as_said_and_any_of_them():
    uniform, coverage = MaskAtRandom(sparsity=0.75, ratios="uniform").apply(net())
    assert sparsity(uniform).layers == {"0.weight": 0.75, "4.weight": 0.75}
    assert all(line.changed for line in coverage)
    thin, _ = MaskAtRandom(sparsity=0.75, ratios="erk").apply(net())
    assert sparsity(thin).share == pytest.approx(0.75, abs=1e-3)
    zeros = sparsity(thin).layers
    kept = {name: 1 - share for name, share in zeros.items()}
    assert kept["0.weight"] / kept["4.weight"] == pytest.approx((17 / 216) / (293 / 1440), rel=0.02)
    again, _ = MaskAtRandom(sparsity=0.75, ratios="uniform").apply(net())
    other, _ = MaskAtRandom(sparsity=0.75, ratios="uniform", seed=1).apply(net())
    mask, same, another = (masked(m)["4.weight"].mask for m in (uniform, again, other))
    assert torch.equal(mask, same)
    free = int(mask.sum())
    both = int((mask & another).sum())
    deviation = math.sqrt(mask.numel()) / 4
    assert abs(both - free * free / mask.numel()) < 5 * deviation, "chance chooses independently"


@pytest.mark.paper("random_pruning")
def test_snip_by_removing_weights_one_by_one():
    """|w dL/dw| is, to first order, what the loss changes by when a weight goes."""
    model = net().eval().double()
    torch.manual_seed(1)
    x, y = torch.randn(16, 3, 8, 8).double(), torch.randint(0, 5, (16,))
    found = snip_densities(model, x, y, 0.9)
    twin = net().train().double()
    named = {name: twin.get_parameter(name) for name in found}
    moved = []
    for weight in named.values():
        flat = weight.data.view(-1)
        for i in range(len(flat)):
            old, losses = flat[i].item(), []
            for factor in (1 - 1e-4, 1 + 1e-4):
                flat[i] = old * factor
                with torch.no_grad():
                    losses.append(cross_entropy(twin(x), y))
            flat[i] = old
            moved.append(abs(losses[1] - losses[0]).item())
    order = torch.tensor(moved).argsort(descending=True)
    kept = order[: round(0.1 * len(moved))]
    first = named["0.weight"].numel()
    assert found["0.weight"] == pytest.approx(int((kept < first).sum()) / first, abs=0.01)
    assert model[1].num_batches_tracked == 0, "the model stays as it is"


@pytest.mark.paper("random_pruning")
def test_grasp_by_the_whole_hessian():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False))
    model = model.double()
    x, y = torch.randn(20, 4).double(), torch.randint(0, 3, (20,))
    sizes = [20, 15]

    def loss(flat):
        a, b = flat.split(sizes)
        return cross_entropy((x @ a.view(5, 4).T).tanh() @ b.view(3, 5).T / 200, y)

    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    hessian = torch.autograd.functional.hessian(loss, flat)
    score = flat * (hessian @ torch.autograd.functional.jacobian(loss, flat))
    kept = score.argsort(descending=True)[: 35 - round(0.6 * 35)]
    found = grasp_densities(model, x, y, 0.6)
    assert found == {
        "0.weight": pytest.approx(int((kept < 20).sum()) / 20),
        "2.weight": pytest.approx(int((kept >= 20).sum()) / 15),
    }


def test_densities_of_ones_own():
    edited, coverage = MaskAtRandom(densities={"0.weight": 0.25}).apply(net())
    assert sparsity(edited).layers == {"0.weight": 0.75, "4.weight": 0.0}
    assert [line.why for line in coverage] == [
        "75.00% of its weights held at zero",
        "may be pruned",
    ]


def test_mistakes():
    for fields in ({"sparsity": 1.0}, {"ratios": "snip"}, {"densities": {"0.weight": 2}}):
        with pytest.raises(FoveateError, match=next(iter(fields))):
            MaskAtRandom(**fields)
    with pytest.raises(FoveateError, match="densities names 'nose'"):
        MaskAtRandom(densities={"nose": 0.5}).apply(net())
