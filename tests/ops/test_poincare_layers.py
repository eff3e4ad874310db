"""The Poincaré ball's operations: derivatives, memory, and laws of its geometry."""

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from foveate.errors import FoveateError
from foveate.ops import poincare_ball as ball
from foveate.ops import poincare_resnet as layers
from foveate.ops.poincare_ball import expmap0, logmap0, midpoint, mobius_add
from foveate.ops.poincare_resnet import PoincareBatchNorm2d, PoincareConv2d, PoincareLinear

C = torch.tensor(0.7, dtype=torch.float64)
DRAWN = torch.Generator().manual_seed(0)


def vectors(*shape: int, length: float = 1.0) -> Tensor:
    return length * torch.randn(*shape, dtype=torch.float64, generator=DRAWN)


def plainly(monkeypatch) -> None:
    for module in (ball, layers):
        monkeypatch.setattr(module, "plain", lambda: True)


def results(function, *inputs: Tensor) -> list[Tensor]:
    """The output, and the gradients to all inputs of some function of it."""
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    y = function(*inputs)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return [y.detach(), *torch.autograd.grad((weight * y).sum(), inputs)]


CASES = {
    "expmap0": (expmap0, (vectors(2, 3, 4), C)),
    "far expmap0": (expmap0, (vectors(2, 3, 4, length=50.0), C)),
    "logmap0": (logmap0, (vectors(2, 3, 4, length=0.2), C)),
    "half_log": (lambda x, c: ball.radial(x, c, ball.half_log, 1), (vectors(2, 3, 4), C)),
    "rim_log": (
        lambda x, c: ball.radial(x, c, ball.rim_log, 1),
        (vectors(2, 3, 4, length=0.2), C),
    ),
    "mobius_add": (mobius_add, (vectors(2, 3, 4, length=0.3), vectors(2, 3, 4, length=0.3), C)),
    "planes": (
        lambda *parts: (layers._planes if layers.plain() else layers._Planes.apply)(*parts),
        tuple(vectors(*s) for s in ((2, 3, 4), (2, 1, 4), (2, 1, 4), (3, 1), (3, 1), (3, 1))),
    ),
}


@pytest.mark.paper("poincare_resnet")
@pytest.mark.parametrize("name", CASES)
def test_the_derivatives_written_by_hand(name, monkeypatch):
    """Against differences, and against the automatic derivatives of the plain formula."""
    function, inputs = CASES[name]
    assert torch.autograd.gradcheck(function, [x.clone().requires_grad_() for x in inputs])
    ours = results(function, *inputs)
    plainly(monkeypatch)
    for found, expected in zip(ours, results(function, *inputs), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


def kept(function, *inputs: Tensor) -> int:
    """Bytes that the backward pass will need, the inputs among them once."""
    storages: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        function(*(x.clone().requires_grad_() for x in inputs))
    return sum(storages.values())


@pytest.mark.paper("poincare_resnet")
def test_derivatives_by_hand_need_less_memory(monkeypatch):
    x, y = vectors(2, 16, 8, 8), vectors(2, 16, 8, 8, length=0.1)
    conv, norm = PoincareConv2d(16, 16).double(), PoincareBatchNorm2d(16).double()
    calls = {
        "exp": (lambda x, y: expmap0(x, C)),
        "add": (lambda x, y: mobius_add(x, y, C)),
        "conv": (lambda x, y: conv(x)),
        "norm": (lambda x, y: norm(x)),
    }
    by_hand = {name: kept(call, x, y) for name, call in calls.items()}
    plainly(monkeypatch)
    plain = {name: kept(call, x, y) for name, call in calls.items()}
    assert by_hand["exp"] < 1.2 * x.nbytes
    assert by_hand["add"] < 2.3 * x.nbytes
    assert plain["add"] > 1.4 * by_hand["add"]
    assert plain["conv"] > 1.4 * by_hand["conv"]
    assert all(plain[name] > by_hand[name] for name in calls)


def test_the_laws_of_the_ball():
    x, y, z = (expmap0(vectors(5, 4), C) for _ in range(3))
    torch.testing.assert_close(mobius_add(-x, mobius_add(x, y, C), C), y)
    torch.testing.assert_close(expmap0(logmap0(x, C), C), x)
    v = logmap0(x, C)
    torch.testing.assert_close(
        mobius_add(expmap0(v, C), expmap0(0.5 * v, C), C), expmap0(1.5 * v, C)
    )
    moved = [mobius_add(z[:1].expand_as(t), t, C) for t in (x, y)]
    before, after = mobius_add(-x, y, C), mobius_add(-moved[0], moved[1], C)
    torch.testing.assert_close(before.norm(dim=1), after.norm(dim=1))


def test_the_midpoint_moves_with_its_points():
    x = expmap0(vectors(9, 4), C)
    z = expmap0(vectors(1, 4), C)
    moved = midpoint(mobius_add(z.expand_as(x), x, C), C)
    torch.testing.assert_close(moved, mobius_add(z, midpoint(x, C), C))
    pair = torch.cat((x[:1], -x[:1]))
    assert midpoint(pair, C).abs().max() < 1e-12


@pytest.mark.paper("poincare_resnet")
def test_identity_weights_are_the_identity():
    v = vectors(3, 6, 5, 5)
    torch.testing.assert_close(PoincareConv2d(6, 6, 1).double()(v), v)
    torch.testing.assert_close(PoincareLinear(6, 6).double()(v[..., 0, 0]), v[..., 0, 0])
    layers = [PoincareConv2d(6, 6, 1, identity=False).double() for _ in range(20)]
    assert torch.nn.Sequential(*layers)(v).norm() < 0.01 * v.norm()


def test_a_flat_ball_is_an_ordinary_convolution():
    conv = PoincareConv2d(3, 5, 3, stride=2, curvature=1e-12, identity=False).double()
    torch.nn.init.normal_(conv.bias)
    x = vectors(2, 3, 7, 8)
    filters = conv.weight.T.reshape(5, 3, 3, 3)
    expected = F.conv2d(2 * conv.ratio * x, filters, -2 * conv.weight.norm(dim=0) * conv.bias, 2, 1)
    torch.testing.assert_close(conv(x), expected, atol=1e-5, rtol=1e-5)


def test_the_norm_moves_the_midpoint_where_it_is_told():
    norm = PoincareBatchNorm2d(3).double()
    torch.nn.init.normal_(norm.mean)
    x = vectors(4, 3, 5, 6)
    norm.momentum = 1.0
    norm(x)
    assert norm.running_var != 1
    norm.variance.data.copy_(norm.running_var + 1e-6)
    c = norm.curvature
    found = midpoint(expmap0(norm(x), c), c)
    torch.testing.assert_close(logmap0(found, c).flatten(), norm.mean)
    torch.testing.assert_close(norm.running_mean, midpoint(expmap0(x, c), c).flatten(1))
    torch.testing.assert_close(norm.eval()(x), norm.train()(x))


def test_a_map_of_one_point():
    norm = PoincareBatchNorm2d(3)
    x = torch.ones(2, 3, 4, 4).requires_grad_()
    norm(x).sum().backward()
    assert x.grad.isfinite().all()


def test_mistakes():
    with pytest.raises(FoveateError, match="odd"):
        PoincareConv2d(3, 3, 2)
