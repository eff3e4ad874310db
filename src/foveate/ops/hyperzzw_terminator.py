"""HyperZ·Z·W: kernels that a slow network draws from coordinates, multiplied with what they see.

W comes from coordinates alone, Z·W is the context-dependent kernel, and Z·W is applied to Z again:
by a product of whole maps, or by sliding over them.

Source: hyperzzw_terminator (arXiv 2401.17948, section 3; the authors' code bears no licence and
was read for the mechanism only). It standardises with the batch in use as in training, and its
local kernels see the mean image of the batch; here running averages stand for both in use, so that
no image's answer depends on another's. Its form for sequences is not released: here the global
product becomes a convolution as long as the sequence.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.ops.slow_network import (
    OMEGA,
    SlowNetwork,
    hyper_kernel,
    initialise_linear,
    mix_channels,
    resized,
)


def standardised(x: Tensor) -> Tensor:
    """Each channel of each image to mean 0 and variance 1. Shapes: (B, C, H, W) to the same."""
    return F.group_norm(x, x.shape[1])


# ---------------------------------------------------------------- Z·W applied to Z


def global_product(kernel: Tensor, x: Tensor) -> Tensor:
    """The context-dependent kernel's matrix times the map's, channel by channel.

    Row i of the kernel's map meets column j of the other: out[i, j] = Σ kernel[i, k] x[k, j]. A map
    that is not square is first interpolated to as many rows as it has columns.

    Args:
        kernel: (B, C, H, W).
        x: (B, C, H, n * W), n maps side by side.

    Returns: (B, C, H, n * W).
    """
    if x.shape[2] != kernel.shape[3]:
        x = F.interpolate(x, (kernel.shape[3], x.shape[3]), mode="bilinear", align_corners=False)
    return kernel @ x


def sequence_product(kernel: Tensor, x: Tensor) -> Tensor:
    """Convolution with a kernel as long as the sequence, zeros beyond its ends, by FFT.

    out[i] = Σ kernel[k] x[i - k + L // 2].

    Shapes: (..., L) both to (..., L).
    """
    length = kernel.shape[-1]
    spectrum = torch.fft.rfft(kernel.float(), 2 * length) * torch.fft.rfft(x.float(), 2 * length)
    whole = torch.fft.irfft(spectrum, 2 * length)
    return whole[..., length // 2 : length // 2 + length].to(x.dtype)


@implements("hyperzzw_terminator")
class LocalHyperZZW(nn.Module):
    """A depthwise convolution whose kernel a slow network draws from coordinates and the context.

    Args:
        dim: channels.
        kernel: sides of the kernel: (k, k), or (k,) for sequences.
        hidden, layers, omega: of the slow network.

    Shapes: contexts and maps (B, dim, H, W) to (B, dim, H, W).
    """

    context: Tensor

    def __init__(
        self,
        dim: int,
        kernel: tuple[int, ...],
        hidden: int = 32,
        layers: int = 2,
        omega: float = OMEGA,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.kernel, self.momentum = kernel, momentum
        self.slow = SlowNetwork(kernel, dim, hidden, layers, omega)
        self.reduce = nn.Conv2d(dim, hidden, 1)
        self.fc = nn.Conv2d(hidden, hidden, 1)
        self.gates = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        for gate in self.gates:
            initialise_linear(gate, bias=1.0)
        self.mixer = mixer(dim, dim)
        self.standard = nn.BatchNorm2d(dim, affine=False)
        self.bias = nn.Parameter(torch.zeros(1))
        self.register_buffer("context", torch.zeros(1, hidden, *self._window()))

    def forward(self, context: Tensor, x: Tensor) -> Tensor:
        weight = self.kernel_of(context).view(-1, 1, *self._window())
        pad = [side // 2 for side in self._window()]
        y = F.conv2d(x, weight, padding=pad, groups=len(weight))
        return F.gelu(self.standard(self.mixer(y))) + self.bias

    def kernel_of(self, context: Tensor) -> Tensor:
        """The kernel (1, dim, *kernel) for what was seen: the batch's mean, or the running one."""
        seen = self.context
        if self.training:
            seen = self.reduce(F.adaptive_avg_pool2d(context, self._window())).mean(0, keepdim=True)
            with torch.no_grad():
                self.context.lerp_(seen.to(self.context.dtype), self.momentum)
        seen = F.gelu(self.fc(seen)).view(1, -1, *self.kernel)
        gates = torch.stack([mix_channels(seen, gate) for gate in self.gates])
        return self.slow(self.kernel, gates)

    def _window(self) -> tuple[int, int]:
        return (1, self.kernel[0]) if len(self.kernel) == 1 else (self.kernel[0], self.kernel[1])


# ---------------------------------------------------------------- the other branches


def mixer(dim: int, dim_out: int) -> nn.Conv2d:
    """A 1x1 convolution with He's normal weights."""
    conv = nn.Conv2d(dim, dim_out, 1)
    nn.init.kaiming_normal_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def score(kernel: Tensor, x: Tensor) -> Tensor:
    """W Z Z, elementwise."""
    return kernel * x * x


class HyperInteraction(nn.Module):
    """Weighs channels, and with `spatial` places too, by kernels of their positions.

    Args:
        dim: channels.
        hidden: width of the slow network of the channels.
        spatial: that of the places, or None.
        omega: scale of the frequencies.

    Shapes: what is weighed and what decides, (B, dim, H, W) both, to the same.
    """

    def __init__(
        self, dim: int, hidden: int, spatial: SlowNetwork | None = None, omega: float = OMEGA
    ) -> None:
        super().__init__()
        self.channel = SlowNetwork((dim,), 1, hidden, 2, omega)
        self.spatial = spatial

    def forward(self, x: Tensor, by: Tensor) -> Tensor:
        dim = x.shape[1]
        kernel = self.channel((dim,)).view(1, dim, 1, 1)
        scores = score(kernel, by.mean((2, 3), keepdim=True))
        if self.spatial is not None:
            places = by.mean(1, keepdim=True)
            scores = scores * score(hyper_kernel(self.spatial, places), places)
        return x * torch.sigmoid(scores)


class RecursiveGatedUnit(nn.Module):
    """A gated unit whose gate is a linear map of its value. Shapes: (B, dim, H, W) to the same.

    Args:
        dim: channels.
        size: of the maps that it was made for.
    """

    def __init__(self, dim: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.key, self.value, self.query, self.out = (nn.Conv2d(dim, dim, 1) for _ in range(4))
        self.places = nn.Parameter(torch.zeros(1, 1, *size))
        for conv in (self.key, self.value, self.query, self.out):
            nn.init.kaiming_uniform_(conv.weight, nonlinearity="linear")
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        gated = self.key(x) * self.query(self.value(x))
        size = (x.shape[2], x.shape[3])
        return self.out(F.gelu(standardised(gated)) + resized(self.places, size))


class GroupStandard(nn.Module):
    """Groups of channels standardised in turn over the batch and over each image.

    Args:
        dim: channels, a multiple of the groups.
        groups: an even number.

    Shapes: (B, dim, H, W) to the same.
    Raises: FoveateError if the groups do not divide the channels.
    """

    def __init__(self, dim: int, groups: int = 12) -> None:
        super().__init__()
        if dim % groups or groups % 2:
            raise FoveateError(f"{groups} groups do not pair {dim} channels: give a divisor")
        self.groups = groups
        self.batch = nn.BatchNorm2d(dim // 2, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        pairs = x.unflatten(1, (self.groups // 2, 2, -1))
        even, odd = (pairs[:, :, i].flatten(1, 2) for i in (0, 1))
        shape = (self.groups // 2, -1)
        both = [y.unflatten(1, shape) for y in (self.batch(even), standardised(odd))]
        return torch.stack(both, 2).flatten(1, 3)
