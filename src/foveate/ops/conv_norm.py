"""A convolution and its batch norm, kept apart for training and folded into one for use."""

from torch import nn

from foveate.ops.merge import fuse_conv_bn_eval


class ConvNorm(nn.Sequential):
    """A convolution and its batch norm.

    Args:
        dim, dim_out: input and output channels.
        kernel, stride, groups: of the convolution.
        gain: initial scale of the norm; 0 lets a residual branch begin as nothing.
        bias: of the convolution, which the norm makes superfluous.
        eps: of the norm.
        pad: zeros at each side; by default as many as keep the size at stride 1.
        dilation: of the kernel.

    Shapes: (B, dim, H, W) to (B, dim_out, H / stride, W / stride).
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        groups: int = 1,
        gain: float = 1.0,
        bias: bool = False,
        eps: float = 1e-5,
        pad: int | None = None,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        high, wide = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        around = (dilation * (high // 2), dilation * (wide // 2)) if pad is None else (pad, pad)
        self.conv = nn.Conv2d(
            dim, dim_out, (high, wide), stride, around, dilation, groups=groups, bias=bias
        )
        norm = nn.BatchNorm2d(dim_out, eps=eps)
        nn.init.constant_(norm.weight, gain)
        self.norm: nn.Module = norm

    def merge_branches(self) -> None:
        """Fold the norm into the convolution."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv, self.norm)
            self.norm = nn.Identity()
