"""RepMixer: a token mixer without skip connection, once it is merged.

Source: fastvit (arXiv 2303.14189, section 3.2). The authors' code is under a licence of Apple's
own; timm's, under Apache-2.0, was read.
"""

import torch
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.ops.conv_norm import ConvNorm


@implements("fastvit")
class RepMixer(nn.Module):
    """The input and a scaled difference of linear branches, which merging makes one convolution.

    Args:
        dim: channels of the input.
        kernel: odd side of the depthwise kernel.
        scale: of the difference at first.

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(self, dim: int, kernel: int = 3, scale: float = 1e-5) -> None:
        super().__init__()
        self.merged: nn.Conv2d | None = None
        self.conv = ConvNorm(dim, dim, kernel, groups=dim)
        self.point = ConvNorm(dim, dim, 1, groups=dim)
        self.same = nn.BatchNorm2d(dim)
        self.norm = nn.BatchNorm2d(dim)
        self.gamma = nn.Parameter(torch.full((dim,), scale))

    def forward(self, x: Tensor) -> Tensor:
        if self.merged is not None:
            return self.merged(x)
        mixed = self.conv(x) + self.point(x) + self.same(x)
        return x + self.gamma.view(1, -1, 1, 1) * (mixed - self.norm(x))

    @torch.no_grad()
    def merge_branches(self) -> None:
        """Fold branches, norms, scale and input into one depthwise kernel."""
        if self.merged is not None:
            return
        for branch in (self.conv, self.point):
            branch.merge_branches()
        merged, point = self.conv.conv, self.point.conv
        assert merged.bias is not None
        assert point.bias is not None
        centre, bias = point.weight[:, 0, 0, 0], merged.bias + point.bias
        for sign, norm in ((1, self.same), (-1, self.norm)):
            assert norm.running_var is not None
            assert norm.running_mean is not None
            slope = sign * norm.weight / (norm.running_var + norm.eps).sqrt()
            centre = centre + slope
            bias = bias + sign * norm.bias - norm.running_mean * slope
        middle = merged.kernel_size[0] // 2
        merged.weight[:, 0, middle, middle] += centre
        merged.weight.mul_(self.gamma.view(-1, 1, 1, 1))
        merged.weight[:, 0, middle, middle] += 1
        merged.bias.copy_(self.gamma * bias)
        self.merged = merged
        del self.conv, self.point, self.same, self.norm, self.gamma
