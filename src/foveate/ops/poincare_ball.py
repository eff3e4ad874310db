"""The Poincaré ball: maps along its radius, addition and midpoints, with derivatives by hand.

A layer's graph then keeps its inputs and not every step between them.

Source: poincare_resnet (arXiv 2303.14027, sections 3 and 4). The authors' code is under Apache-2.0.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TINY = 1e-30
"""Squared lengths below it count as it, so that nothing is divided by 0."""


def rim_of(x: Tensor) -> float:
    """The largest norm that points of the unit ball keep, so that none falls on its rim."""
    return 1 - (1e-5 if x.dtype == torch.float64 else 4e-3)


def precise(x: Tensor) -> Tensor:
    """At least single precision: half of it has no room between 1 and the rim."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def plain() -> bool:
    """Whether the plain formulas are to be traced or used without gradients."""
    return torch.compiler.is_compiling() or not torch.is_grad_enabled()


# ---------------------------------------------------------------- maps along the radius

Profile = Callable[[Tensor, float], tuple[Tensor, Tensor]]
"""From lengths and the rim to new lengths and their slopes."""


def exp(r: Tensor, rim: float) -> tuple[Tensor, Tensor]:
    """Of `expmap0`, held at the rim."""
    t = torch.tanh(r)
    return t.clamp_max(rim), (1 - t * t) * (t < rim)


def log(r: Tensor, rim: float) -> tuple[Tensor, Tensor]:
    """Of `logmap0`, held where the number type ends."""
    most = 1 - torch.finfo(r.dtype).eps
    inside = r < most
    r = r.clamp_max(most)
    return torch.atanh(r), inside / (1 - r * r)


def rim_log(r: Tensor, rim: float) -> tuple[Tensor, Tensor]:
    """Of `logmap0`, held at the rim."""
    t, slope = log(r, rim)
    most = math.atanh(rim)
    return t.clamp_max(most), slope * (t < most)


def half_log(r: Tensor, rim: float) -> tuple[Tensor, Tensor]:
    """The logarithm of r / (1 + sqrt(1 + r^2)), at which no fraction comes near to 1."""
    t, most = torch.asinh(r) / 2, math.atanh(rim)
    return t.clamp_max(most), (t < most) / (2 * torch.sqrt(1 + r * r))


def length_of(x: Tensor, c: Tensor, dim: int) -> Tensor:
    """Lengths of vectors along `dim`, in units of the ball's radius."""
    return torch.sqrt(c * x.square().sum(dim, keepdim=True).clamp_min(TINY))


class _Radial(torch.autograd.Function):
    """Changes lengths and keeps directions; saves the vectors and their lengths alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, c: Tensor, profile: Profile, dim: int) -> Tensor:
        r = length_of(x, c, dim)
        ctx.save_for_backward(x, c, r)
        ctx.profile, ctx.dim = profile, dim
        return x * (profile(r, rim_of(x))[0] / r)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, c, r = ctx.saved_tensors
        t, slope = ctx.profile(r, rim_of(x))
        ratio = t / r
        along = (gradient * x).sum(ctx.dim, keepdim=True)
        to_x = ratio * gradient + (c * (slope - ratio) / r.square() * along) * x
        to_c = None
        if ctx.needs_input_grad[1]:
            to_c = ((slope - ratio) * along).sum() / (2 * c)
        return to_x, to_c, None, None


def radial(x: Tensor, c: Tensor, profile: Profile, dim: int) -> Tensor:
    """Vectors along `dim` with lengths as a profile has them, in units of the ball's radius."""
    if plain():
        r = length_of(x, c, dim)
        return x * (profile(r, rim_of(x))[0] / r)
    return _Radial.apply(x, c, profile, dim)  # pyright: ignore[reportReturnType]


def expmap0(v: Tensor, c: Tensor, dim: int = 1) -> Tensor:
    """Tangent vectors at the origin to points of the ball, kept off its rim.

    Args:
        v: vectors along `dim`.
        c: of the curvature -c, a scalar.
        dim: axis of the vectors.
    """
    return radial(v, c, exp, dim)


def logmap0(x: Tensor, c: Tensor, dim: int = 1) -> Tensor:
    """The opposite of `expmap0`."""
    return radial(x, c, log, dim)


# ---------------------------------------------------------------- addition


class _MobiusAdd(torch.autograd.Function):
    """Saves the points and their three products alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, c: Tensor, dim: int) -> Tensor:
        three = products(x, y, dim)
        ctx.save_for_backward(x, y, c, *three)
        ctx.dim = dim
        return _sum(x, y, c, *three)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, y, c, xx, yy, xy = ctx.saved_tensors
        a, b, below = coefficients(c, xx, yy, xy)
        gx, gy = ((gradient * t).sum(ctx.dim, keepdim=True) for t in (x, y))
        out = (a * gx + b * gy) / below
        cross = 2 * c * (gx - out)
        to_x = (a * gradient + cross * y - 2 * c * (gy + c * yy * out) * x) / below
        to_y = (b * gradient + cross * x + 2 * c * (gx - c * xx * out) * y) / below
        to_c = None
        if ctx.needs_input_grad[2]:
            to_c = ((to_x * x).sum() + (to_y * y).sum() - out.sum()) / (2 * c)
        return to_x, to_y, to_c, None


def products(x: Tensor, y: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inner products of x with itself, of y with itself, and of both."""
    xx, yy, xy = ((s * t).sum(dim, keepdim=True) for s, t in ((x, x), (y, y), (x, y)))
    return xx, yy, xy


def coefficients(c: Tensor, xx: Tensor, yy: Tensor, xy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What x ⊕ y has of x, and of y, and what divides both."""
    both = 1 + 2 * c * xy
    return both + c * yy, 1 - c * xx, (both + c * c * xx * yy).clamp_min(1e-15)


def _sum(x: Tensor, y: Tensor, c: Tensor, xx: Tensor, yy: Tensor, xy: Tensor) -> Tensor:
    a, b, below = coefficients(c, xx, yy, xy)
    return (a * x + b * y) / below


def mobius_add(x: Tensor, y: Tensor, c: Tensor, dim: int = 1) -> Tensor:
    """x ⊕ y, the ball's addition: y carried along the geodesic from the origin to x.

    Args:
        x, y: points along `dim`, of one shape.
        c: of the curvature -c, a scalar.
        dim: axis of the points.
    """
    if plain():
        return _sum(x, y, c, *products(x, y, dim))
    return _MobiusAdd.apply(x, y, c, dim)  # pyright: ignore[reportReturnType]


def midpoint(x: Tensor, c: Tensor) -> Tensor:
    """The gyromidpoint of all points, in closed form, in the place of an iterated Fréchet mean.

    Args:
        x: points (B, dim, ...).
        c: of the curvature -c, a scalar.

    Returns: (1, dim, 1, ...).
    """
    axes = [0, *range(2, x.ndim)]
    weight = 1 / (1 - c * x.square().sum(1, keepdim=True)).clamp_min(1e-15)
    m = (weight * x).sum(axes, keepdim=True) / (weight.sum() - weight.numel() / 2)
    return m / (1 + torch.sqrt(1 - c * m.square().sum(1, keepdim=True)))
