"""A large depthwise kernel trained beside dilated small ones, which fold into it.

Source: unireplknet (arXiv 2311.15599, section 3.1 and appendix A). The authors' code is
under Apache-2.0.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.ops.merge import fuse_conv_bn_eval

BRANCHES: dict[int, tuple[tuple[int, int], ...]] = {
    5: ((3, 1), (3, 2)),
    7: ((5, 1), (3, 2), (3, 3)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
}
"""Kernel and dilation of the branches beside a large kernel, as published."""


@implements("unireplknet")
class DilatedReparam(nn.Module):
    """The sum of a large depthwise convolution and dilated small ones, each with its batch norm.

    `merge_branches` makes one convolution of them: a dilated kernel is a large
    one with zeros between its taps.

    Args:
        dim: channels of the input.
        kernel_size: odd side of the large kernel.
        branches: kernel and dilation of each small one; by default as published
            for this kernel.

    Shapes: (B, dim, H, W) to the same.
    Raises: FoveateError if no branches are published for the kernel, or one reaches beyond it.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 13,
        branches: tuple[tuple[int, int], ...] | None = None,
    ) -> None:
        super().__init__()
        if branches is None and kernel_size not in BRANCHES:
            raise FoveateError(
                f"no branches are published for a kernel of {kernel_size}: give them, or a kernel "
                f"of {', '.join(map(str, BRANCHES))}"
            )
        self.branches = BRANCHES[kernel_size] if branches is None else branches
        for kernel, dilation in self.branches:
            if dilation * (kernel - 1) + 1 > kernel_size:
                raise FoveateError(
                    f"a kernel of {kernel} dilated by {dilation} reaches beyond {kernel_size}: "
                    "give branches that lie inside"
                )
        self.lk_origin = _depthwise(dim, kernel_size)
        self.origin_bn: nn.BatchNorm2d | None = nn.BatchNorm2d(dim)
        for kernel, dilation in self.branches:
            self.add_module(f"dil_conv_k{kernel}_{dilation}", _depthwise(dim, kernel, dilation))
            self.add_module(f"dil_bn_k{kernel}_{dilation}", nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        out = self.lk_origin(x)
        if self.origin_bn is None:
            return out
        out = self.origin_bn(out)
        for conv, norm in self._pairs():
            out = out + norm(conv(x))
        return out

    @torch.no_grad()
    def merge_branches(self) -> None:
        """Fold norms and branches into the large kernel."""
        if self.origin_bn is None:
            return
        whole = fuse_conv_bn_eval(self.lk_origin, self.origin_bn)
        assert whole.bias is not None
        for conv, norm in self._pairs():
            part = fuse_conv_bn_eval(conv, norm)
            assert part.bias is not None
            whole.weight += _spread(part.weight, conv.dilation[0], whole.kernel_size[0])
            whole.bias += part.bias
        self.lk_origin, self.origin_bn = whole, None
        for kernel, dilation in self.branches:
            delattr(self, f"dil_conv_k{kernel}_{dilation}")
            delattr(self, f"dil_bn_k{kernel}_{dilation}")
        self.branches = ()

    def _pairs(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        names = [f"k{kernel}_{dilation}" for kernel, dilation in self.branches]
        found = self._modules
        return [(found[f"dil_conv_{n}"], found[f"dil_bn_{n}"]) for n in names]  # pyright: ignore


def _spread(weight: Tensor, dilation: int, size: int) -> Tensor:
    """A dilated kernel as one of `size` pixels a side, with zeros between the taps."""
    reach = dilation * (weight.shape[-1] - 1) + 1
    whole = weight.new_zeros(*weight.shape[:2], reach, reach)
    whole[..., ::dilation, ::dilation] = weight
    return F.pad(whole, [(size - reach) // 2] * 4)


def _depthwise(dim: int, kernel: int, dilation: int = 1) -> nn.Conv2d:
    reach = dilation * (kernel - 1) + 1
    return nn.Conv2d(
        dim, dim, kernel, padding=reach // 2, dilation=dilation, groups=dim, bias=False
    )
