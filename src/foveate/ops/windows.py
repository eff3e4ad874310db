"""Maps cut into windows for attention, of neighbours or of places a stride apart."""

from torch import Tensor
from torch.nn import functional as F

NEAR = (0, 3, 5, 1, 2, 4, 6)
SPANNED = (0, 4, 6, 1, 2, 3, 5)
"""Orders of batch, rows and columns of windows, heads, channels, rows and columns inside."""


def pad_to_windows(x: Tensor, window: int) -> Tensor:
    """Zeros to the right and below, up to a multiple of the window."""
    high, wide = x.shape[2:]
    return F.pad(x, (0, -wide % window, 0, -high % window))


def fold(x: Tensor, window: int, heads: int, spanned: bool = False) -> Tensor:
    """Places of a window as rows, for attention among them.

    Args:
        x: (B, C, H, W), with sides that are multiples of the window.
        window: side of a window in places.
        heads: channels are divided among them.
        spanned: a window's places lie H / window apart instead of side by side.

    Returns: (B * windows, heads, window^2, C / heads), the windows of an image row by row.
    """
    parts = (window, -1) if spanned else (-1, window)
    x = x.unflatten(3, parts).unflatten(2, parts).unflatten(1, (heads, -1))
    return x.permute(SPANNED if spanned else NEAR).flatten(5).flatten(0, 2).mT


def unfold(x: Tensor, size: tuple[int, int], window: int, spanned: bool = False) -> Tensor:
    """The opposite of `fold`, for maps of a size: to (B, C, H, W)."""
    rows, columns = size[0] // window, size[1] // window
    x = x.mT.unflatten(3, (window, window)).unflatten(0, (-1, rows, columns))
    order = SPANNED if spanned else NEAR
    back = [order.index(axis) for axis in range(7)]
    return x.permute(back).flatten(5, 6).flatten(3, 4).flatten(1, 2)
