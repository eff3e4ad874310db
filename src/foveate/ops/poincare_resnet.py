"""Layers of a network that lives in the Poincaré ball, with derivatives written by hand.

Maps are kept as tangent vectors at the origin, one for each pixel; a layer sends them into the
ball of curvature -c, works there and sends them back.

Source: poincare_resnet (arXiv 2303.14027, sections 3 and 4). The authors' code is under
Apache-2.0. Where it departs from the paper, `as_released` follows it: it has the conformal factor
upside down in the distance to a hyperplane, and norms with the batch's statistics in use too.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.ops.poincare_ball import (
    TINY,
    coefficients,
    exp,
    expmap0,
    half_log,
    length_of,
    log,
    midpoint,
    mobius_add,
    plain,
    precise,
    products,
    radial,
    rim_log,
    rim_of,
)

CURVATURE = 0.1
"""c, as published: the ball's radius is 1 / sqrt(c)."""
FARTHEST = 40.0
"""Distances from a hyperplane are cut there: beyond 44, squares overflow in single precision."""


# ---------------------------------------------------------------- hyperplanes


class _Planes(torch.autograd.Function):
    """sinh(k asinh(a x - b)); saves x and the small factors alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, near: Tensor, far: Tensor, a: Tensor, b: Tensor, k: Tensor):
        ctx.save_for_backward(x, near, far, a, b, k)
        return _planes(x, near, far, a, b, k)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, near, far, a, b, k = ctx.saved_tensors
        u = near * x * a - far * b
        distance = torch.asinh(u)
        angle = k * distance
        slope = gradient * torch.cosh(angle.clamp(-FARTHEST, FARTHEST)) * (angle.abs() < FARTHEST)
        to_k = (slope * distance).sum_to_size(k.shape)
        slope = slope * k / torch.sqrt(1 + u * u)
        along = slope * x
        return (
            slope * near * a,
            (along * a).sum_to_size(near.shape),
            -(slope * b).sum_to_size(far.shape),
            (along * near).sum_to_size(a.shape),
            -(slope * far).sum_to_size(b.shape),
            to_k,
        )


def _planes(x: Tensor, near: Tensor, far: Tensor, a: Tensor, b: Tensor, k: Tensor) -> Tensor:
    angle = k * torch.asinh(near * x * a - far * b)
    return torch.sinh(angle.clamp(-FARTHEST, FARTHEST))


class PoincareLinear(nn.Module):
    """Signed distances to hyperplanes of the ball, as a point's coordinates; tangent to tangent.

    Args:
        dim, dim_out: channels of the input and output.
        curvature: c.
        identity: begin with half the identity, which keeps norms; else with small normal numbers.
        as_released: as the module's first lines say.

    Shapes: (B, dim) to (B, dim_out).
    """

    curvature: Tensor

    def __init__(
        self,
        dim: int,
        dim_out: int,
        curvature: float = CURVATURE,
        identity: bool = True,
        as_released: bool = False,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = dim, dim_out
        self.as_released = as_released
        self.weight = nn.Parameter(torch.empty(dim, dim_out))
        self.bias = nn.Parameter(torch.zeros(dim_out))
        self.register_buffer("curvature", torch.tensor(curvature))
        if identity:
            nn.init.eye_(self.weight)
            with torch.no_grad():
                self.weight.mul_(0.5)
        else:
            nn.init.normal_(self.weight, std=(2 * dim * dim_out) ** -0.5)

    def forward(self, v: Tensor) -> Tensor:
        x = precise(v)
        square = x.square().sum(1, keepdim=True)
        return self._fully_connected(x @ precise(self.weight), square).to(v.dtype)

    def _fully_connected(self, inner: Tensor, square: Tensor) -> Tensor:
        """Tangent vectors, from inner products with the weights and squared lengths of the input.

        The exponential map only scales a vector, so that its products scale alike.
        """
        c = precise(self.curvature)
        root = torch.sqrt(c)
        r = torch.sqrt(c * square.clamp_min(TINY))
        t = exp(r, rim_of(r))[0]
        factor = 2 * (1 - t * t) if self.as_released else 2 / (1 - t * t)
        shape = [-1] + [1] * (inner.ndim - 2)
        norm = precise(self.weight).norm(dim=0).clamp_min(1e-15).view(shape)
        shift = 2 * root * precise(self.bias).view(shape)
        parts = (
            inner,
            root * factor * t / r,
            factor - 1,
            torch.cosh(shift) / norm,
            torch.sinh(shift),
            2 * norm,
        )
        w: Any = _planes(*parts) if plain() else _Planes.apply(*parts)
        return radial(w / root, c, half_log, 1)


@implements("poincare_resnet")
class PoincareConv2d(PoincareLinear):
    """Convolution in the ball: each patch is one point, seen by a Poincaré fully connected layer.

    The points of a patch are joined with the ratio of two beta functions, which keeps the expected
    norm (β-concatenation). As the exponential map only scales a patch, an ordinary convolution of
    the tangent vectors and a sum of their squares stand for all patches, and none is laid out.

    Args:
        dim, dim_out, kernel, stride: of the convolution, padded by half its kernel.
        curvature, identity, as_released: as for `PoincareLinear`.

    Shapes: (B, dim, H, W) to (B, dim_out, H / stride, W / stride), tangent vectors both.
    Raises: FoveateError if the kernel's side is even.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        kernel: int = 3,
        stride: int = 1,
        curvature: float = CURVATURE,
        identity: bool = True,
        as_released: bool = False,
    ) -> None:
        if kernel % 2 == 0:
            raise FoveateError(f"kernel is {kernel}: give an odd side")
        super().__init__(dim * kernel**2, dim_out, curvature, identity, as_released)
        self.dim, self.kernel, self.stride = dim, kernel, stride
        self.ratio = _beta(dim * kernel**2) / _beta(dim)

    def forward(self, v: Tensor) -> Tensor:
        x = precise(v) * self.ratio
        filters = precise(self.weight).T.reshape(-1, self.dim, self.kernel, self.kernel)
        inner = precise(F.conv2d(x, filters, None, self.stride, self.kernel // 2))
        square = x.square().sum(1, keepdim=True)
        if self.kernel > 1 or self.stride > 1:
            square = F.avg_pool2d(square, self.kernel, self.stride, self.kernel // 2)
            square = square * self.kernel**2
        return self._fully_connected(inner, square).to(v.dtype)


def _beta(n: int) -> float:
    """The beta function of n / 2 and 1 / 2."""
    return math.exp(math.lgamma(n / 2) + math.lgamma(0.5) - math.lgamma((n + 1) / 2))


@implements("poincare_resnet")
class PoincareBatchNorm2d(nn.Module):
    """Moves the points' midpoint to a learnt one and scales their distances from it.

    That is β ⊕ gyr[β, ⊖m](σ ⊗ (⊖m ⊕ x)). All of it lies in the span of x - m, m and β, so that
    one coefficient each per pixel is computed and not a map for every operation.

    Args:
        dim: channels.
        curvature: c.
        momentum: share of a batch in the running statistics, whose mean moves on a geodesic.
        as_released: as the module's first lines say.

    Shapes: (B, dim, H, W) to the same, tangent vectors both.
    """

    curvature: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        dim: int,
        curvature: float = CURVATURE,
        momentum: float = 0.1,
        as_released: bool = False,
    ) -> None:
        super().__init__()
        self.momentum, self.as_released = momentum, as_released
        self.mean = nn.Parameter(torch.zeros(dim))
        self.variance = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("curvature", torch.tensor(curvature))
        self.register_buffer("running_mean", torch.zeros(1, dim))
        self.register_buffer("running_var", torch.tensor(1.0))

    def forward(self, v: Tensor) -> Tensor:
        c = precise(self.curvature)
        x = expmap0(precise(v), c)
        if self.training or self.as_released:
            m = midpoint(x, c)
        else:
            m = precise(self.running_mean)[..., None, None]
        u = x - m
        target = expmap0(precise(self.mean)[None, :, None, None], c)
        uu = u.square().sum(1, keepdim=True)
        um, ub = F.conv2d(u, torch.cat((m, target))).split(1, dim=1)
        mm, bb, mb = products(m, target, 1)
        near = 1 - c * mm
        below = near.square() - 2 * c * near * um + c * c * mm * uu
        r = torch.sqrt(c * (uu / below).clamp_min(TINY))
        distance = log(r, 1.0)[0]
        if self.training or self.as_released:
            variance = (2 / torch.sqrt(c) * distance).square().mean()
        else:
            variance = precise(self.running_var)
        scaled = torch.tanh(torch.sqrt(precise(self.variance) / (variance + 1e-6)) * distance)
        if self.training:
            self._follow(m.detach(), variance.detach(), c)
        # σ ⊗ (⊖m ⊕ x) = p u + q m, turned by the gyration to p u + q m + s β
        p = scaled / r * near / below
        q = -scaled / r * c * uu / below
        along, across = p * ub + q * mb, -(p * um + q * mm)
        half = 1 - 2 * c * mb + c * c * bb * mm
        s = 2 * c * (across - c * along * mm - 2 * c * mb * across) / half
        q = q + 2 * c * (c * across * bb + along) / half
        # β ⊕ that
        inner, square = p * ub + q * mb + s * bb, scaled.square() / c
        a, b, divisor = coefficients(c, bb, square, inner)
        y = b * p / divisor * u + b * q / divisor * m + (b * s + a) / divisor * target
        return radial(y, c, rim_log, 1).to(v.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, c: Tensor) -> None:
        """Let the running statistics come nearer to a batch's."""
        now = precise(self.running_mean)
        step = mobius_add(-now, mean.flatten(1), c)
        r = length_of(step, c, 1)
        step = step * torch.tanh(self.momentum * log(r, 1.0)[0]) / r
        self.running_mean.copy_(mobius_add(now, step, c))
        self.running_var.lerp_(variance.to(self.running_var), self.momentum)
