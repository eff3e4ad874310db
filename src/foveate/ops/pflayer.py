"""Parameter-free spatial mixing: a maximum over neighbours instead of a learned kernel.

Source: pflayer (arXiv 2202.02777, section 3).
"""

from torch import Tensor, nn

from foveate.catalog import implements


@implements("pflayer")
class MaxPoolMixer(nn.Module):
    """The maximum over a window, at every place.

    Args:
        dim: channels of the input; there only so that mixers can be exchanged.
        kernel: odd side of the window.
        stride: between places.

    Shapes: (B, dim, H, W) to (B, dim, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, dim: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(kernel, stride, kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x)


@implements("pflayer")
class ExpandedMaxMixer(nn.Module):
    """What stands for attention in a transformer: more channels, their maxima, as many as before.

    Args:
        dim: channels of the input.
        ratio: how many times more channels there are between.
        kernel: odd side of the window.

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(self, dim: int, ratio: int = 3, kernel: int = 3) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(dim, ratio * dim, 1)
        self.pool = MaxPoolMixer(ratio * dim, kernel)
        self.act = nn.GELU()
        self.proj = nn.Conv2d(ratio * dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.act(self.pool(self.act(self.qkv(x)))))
