"""Slow networks: kernels of any size, drawn from the coordinates of their places.

Source: hyperzzw_terminator (arXiv 2401.17948, section 3.1), after the multiplicative networks of
anisotropic Gabor filters of arXiv 2110.08059. The authors' code bears no licence and was read for
the mechanism only.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.catalog import implements

TURN = 2 * math.pi

OMEGA = 2000.0
"""Scale of the frequencies; neighbouring pixels' phases hardly agree at the authors' value."""
RENORM = 0.1
"""Share of the normalised part where a context takes part."""


def resized(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """A map or line (1, C, *size before), interpolated to another size."""
    if tuple(x.shape[2:]) == size:
        return x
    mode = "linear" if len(size) == 1 else "bilinear"
    return F.interpolate(x, size, mode=mode, align_corners=False)


class SineFilter(nn.Module):
    """Sines of an affine map of the coordinates, of frequencies drawn from a gamma distribution.

    The phases are tens of thousands of radians, and single precision has no digits left for their
    sines. As places are evenly spaced, whole turns are taken off the step from one to the next in
    double precision, and the rest is small.

    Args:
        axes, hidden: of the coordinates, number of sines.
        alpha, omega: shape of the distribution, scale of the frequencies.
    """

    def __init__(self, axes: int, hidden: int, alpha: float, omega: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden, axes))
        self.bias = nn.Parameter(torch.zeros(hidden))
        nn.init.uniform_(self.weight, -(axes**-0.5), axes**-0.5)
        gamma = torch.distributions.Gamma(alpha, 1.0, validate_args=False).sample((hidden, axes))
        with torch.no_grad():
            self.weight.mul_(TURN * omega * gamma)

    def forward(self, size: tuple[int, ...]) -> Tensor:
        """Sines (1, hidden, *size) of the places of a grid from -1 to 1 along each axis."""
        double = {"dtype": torch.float64, "device": self.weight.device}
        turns = self.weight.double() / torch.tensor(TURN, **double)  # ONNX would narrow a number
        spacing = torch.tensor([2 / max(n - 1, 1) for n in size], **double)
        steps, starts = (_less_whole(t).to(self.weight.dtype) for t in (turns * spacing, turns))
        phases = self.bias.view(1, -1, *(1,) * len(size)) / TURN
        for axis, n in enumerate(size):
            index = torch.arange(n, device=steps.device).to(steps.dtype)
            line = _less_whole(steps[:, axis, None] * index - starts[:, axis, None])
            phases = phases + line.view(1, -1, *(n if i == axis else 1 for i in range(len(size))))
        return torch.sin(TURN * phases)


def _less_whole(turns: Tensor) -> Tensor:
    return turns - turns.round()


@implements("hyperzzw_terminator")
class SlowNetwork(nn.Module):
    """A multiplicative network of coordinates: each layer's linear map times new sines.

    Args:
        size: of the kernels that it was made for, one number an axis.
        dim: channels of the kernel.
        hidden, layers, omega: width, number of products, scale of the frequencies.

    Shapes: a size of as many axes to (1, dim, *size).
    """

    def __init__(
        self, size: tuple[int, ...], dim: int, hidden: int, layers: int, omega: float = OMEGA
    ) -> None:
        super().__init__()
        self.size = size
        self.filters = nn.ModuleList(
            SineFilter(len(size), hidden, 6.0 / (i + 1), omega) for i in range(layers + 1)
        )
        self.linears = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.out = nn.Linear(hidden, dim)
        self.places = nn.Parameter(torch.zeros(1, 1, *size))
        for linear in self.linears:
            initialise_linear(linear, bias=1.0)
        initialise_linear(self.out, bias=0.0)
        with torch.no_grad():
            self.out.weight.mul_(math.prod(size) ** -0.5)

    def forward(self, size: tuple[int, ...], context: Tensor | None = None) -> Tensor:
        """The kernel at a size.

        Args:
            size: one number an axis.
            context: what each layer is multiplied with after its renormalisation, (layers, 1,
                hidden, *size).
        """
        bias = resized(self.places, size)
        x = self.filters[0](size)
        for i, (sines, linear) in enumerate(zip(self.filters[1:], self.linears, strict=True)):
            x = sines(size) * mix_channels(x, linear) + bias
            if context is not None:
                x = _renormalised(x) * context[i]
        return mix_channels(x, self.out)


def initialise_linear(linear: nn.Module, bias: float) -> None:
    """He's uniform weights of gain 1, and a constant bias."""
    assert isinstance(linear, nn.Linear)
    nn.init.kaiming_uniform_(linear.weight, nonlinearity="linear")
    nn.init.constant_(linear.bias, bias)


def mix_channels(x: Tensor, linear: nn.Module) -> Tensor:
    """A linear layer over the channels of (1, C, *size)."""
    return linear(x.movedim(1, -1)).movedim(-1, 1)


def _renormalised(x: Tensor) -> Tensor:
    """The features as they are, while their gradient goes through their normalised form alone."""
    unit = F.normalize(x.flatten(2), dim=2).view_as(x)
    return x.detach() + RENORM * unit


def hyper_kernel(slow: SlowNetwork, x: Tensor) -> Tensor:
    """A slow network's kernel at the size of a map (B, C, H, W): (1, dim, H, W)."""
    size = tuple(x.shape[2:]) if len(slow.size) == 2 else (x.shape[3],)
    kernel = slow(size)
    return kernel if kernel.ndim == 4 else kernel[:, :, None]
