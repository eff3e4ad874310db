"""Convolutions as numbers: what one becomes that stands behind another, or beside it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Kernel:
    """A convolution, with its gaps written out as zeros.

    Attributes:
        weight: (O, I / groups, k, k).
        bias: (O,).
        stride, padding: of both axes.
        groups: of the channels.
    """

    weight: Tensor
    bias: Tensor
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1

    @classmethod
    def made_of(
        cls,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] = (0, 0),
        dilation: Sequence[int] = (1, 1),
        groups: int = 1,
    ) -> "Kernel":
        """The kernel of a convolution's arguments; lists of one number mean both axes."""
        if bias is None:
            bias = weight.new_zeros(len(weight))
        stride, padding, dilation = (
            (axes[0], axes[-1]) for axes in map(tuple, (stride, padding, dilation))
        )
        return cls(_dilated(weight, dilation), bias, stride, padding, groups)

    @classmethod
    def of(cls, layer: nn.Conv2d) -> "Kernel":
        """The kernel of a layer whose padding is given in numbers, in float64."""
        assert not isinstance(layer.padding, str)
        weight = layer.weight.detach().double()
        bias = None if layer.bias is None else layer.bias.detach().double()
        return cls.made_of(weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)

    @classmethod
    def identity(cls, like: nn.Conv2d) -> "Kernel":
        """One pixel that changes nothing, of as many channels as a layer takes, in float64."""
        channels = like.in_channels
        ones = torch.ones(channels, 1, 1, 1, dtype=torch.float64, device=like.weight.device)
        return cls.made_of(ones, groups=channels)

    @property
    def inputs(self) -> int:
        """Channels that it takes."""
        return self.weight.shape[1] * self.groups

    @property
    def size(self) -> tuple[int, int]:
        return self.weight.shape[2], self.weight.shape[3]

    def __call__(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, groups=self.groups)

    def layer(self, dtype: torch.dtype = torch.float32) -> nn.Conv2d:
        """A layer that computes it."""
        layer = nn.Conv2d(
            self.inputs,
            len(self.bias),
            self.size,
            self.stride,
            self.padding,
            groups=self.groups,
            device=self.weight.device,
            dtype=dtype,
        )
        with torch.no_grad():
            layer.weight.copy_(self.weight)
            assert layer.bias is not None
            layer.bias.copy_(self.bias)
        return layer

    def scaled(self, scale: Tensor, shift: Tensor) -> "Kernel":
        """Followed by a scale and a shift of each channel, each (O,)."""
        weight, bias = self.weight * scale.view(-1, 1, 1, 1), self.bias * scale + shift
        return replace(self, weight=weight, bias=bias)

    def padded(self, padding: tuple[int, int]) -> "Kernel":
        """The same with another padding."""
        return replace(self, padding=padding)

    def then(self, after: "Kernel") -> "Kernel | None":
        """Followed by another, as one; None where that is not the same at the borders.

        The zeros that the second pads with stand around what the first computes, and the
        merged kernel has none there. So the second must not pad, unless the first gives
        zeros for zeros and sees one pixel only.
        """
        sees_one = self.size == (1, 1) and not any(self.padding) and not self.bias.any()
        if any(after.padding) and not sees_one:
            return None
        groups = math.gcd(self.groups, after.groups)
        first, second = self._in_groups(groups), after._in_groups(groups)
        outputs, inside, *size = second.shape
        rows = second.view(groups, outputs // groups, inside, *size).transpose(0, 1)
        taps = F.conv_transpose2d(
            rows.reshape(outputs // groups, -1, *size), first, stride=self.stride, groups=groups
        )
        weight = taps.view(outputs // groups, groups, -1, *taps.shape[2:]).transpose(0, 1)
        shifts = self.bias.view(groups, inside).repeat_interleave(outputs // groups, 0)
        return Kernel(
            weight.reshape(outputs, -1, *taps.shape[2:]),
            after.bias + (second.sum((2, 3)) * shifts).sum(1),
            _each(lambda a, b: a * b, self.stride, after.stride),
            _each(lambda p, q, s: p + q * s, self.padding, after.padding, self.stride),
            groups,
        )

    def plus(self, other: "Kernel") -> "Kernel":
        """The sum with another of the same inputs, outputs and stride."""
        groups, padding = self._common(other)
        weights = [kernel._spread(groups, padding) for kernel in (self, other)]
        return Kernel(weights[0] + weights[1], self.bias + other.bias, self.stride, padding, groups)

    def cost_of_sum(self, other: "Kernel") -> int:
        """Weights of the sum with another."""
        groups, padding = self._common(other)
        return len(self.bias) * self.inputs // groups * math.prod(2 * p + 1 for p in padding)

    def plus_inside(self, other: "Kernel", at: tuple[int, int]) -> "Kernel":
        """The sum with one of no larger size, whose first tap meets this one's tap `at`."""
        groups = math.gcd(self.groups, other.groups)
        (top, left), (high, wide), (h, w) = at, self.size, other.size
        margins = (left, wide - w - left, top, high - h - top)
        weight = self._in_groups(groups) + F.pad(other._in_groups(groups), margins)
        return replace(self, weight=weight, bias=self.bias + other.bias, groups=groups)

    def _common(self, other: "Kernel") -> tuple[int, tuple[int, int]]:
        """Groups and padding of the sum with another, whose kernel has its place in the middle."""
        sides = [kernel._reach(axis) for axis in (0, 1) for kernel in (self, other)]
        padding = max(*sides[0], *sides[1]), max(*sides[2], *sides[3])
        return math.gcd(self.groups, other.groups), padding

    def _reach(self, axis: int) -> tuple[int, int]:
        """How many pixels it sees before and after its own place."""
        return self.padding[axis], self.size[axis] - 1 - self.padding[axis]

    def _spread(self, groups: int, padding: tuple[int, int]) -> Tensor:
        """The same weight in fewer groups, and in a kernel of 2 * padding + 1 pixels."""
        (top, bottom), (left, right) = self._reach(0), self._reach(1)
        high, wide = padding
        margins = (wide - left, wide - right, high - top, high - bottom)
        return F.pad(self._in_groups(groups), margins)

    def _in_groups(self, groups: int) -> Tensor:
        """The same weight in fewer groups, which divide those that it has."""
        if groups == self.groups:
            return self.weight
        outputs, inside = self.weight.shape[:2]
        share = self.groups // groups
        wide = self.weight.new_zeros(outputs, share, inside, *self.size)
        rows = torch.arange(outputs, device=self.weight.device)
        wide[rows, rows * self.groups // outputs % share] = self.weight
        return wide.flatten(1, 2)


def _dilated(weight: Tensor, dilation: tuple[int, int]) -> Tensor:
    """A kernel with its gaps written out as zeros."""
    if dilation == (1, 1):
        return weight
    sizes = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    wide = weight.new_zeros(*weight.shape[:2], *sizes)
    wide[:, :, :: dilation[0], :: dilation[1]] = weight
    return wide


def _each(rule, *axes: tuple[int, int]) -> tuple[int, int]:  # pyright: ignore
    """A rule for both axes."""
    first, second = (rule(*values) for values in zip(*axes, strict=True))
    return first, second
