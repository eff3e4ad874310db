"""Attention near and far at once, with values in the expanded space of an inverted bottleneck.

Source: emov2 (arXiv 2412.06674, section 3.3). The authors' code states no licence; it was
read for the order of windows.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.ops.windows import fold, pad_to_windows, unfold


@implements("emov2")
class SpannedAttention(nn.Module):
    """Attention within windows and, with the same queries, keys and values, between places a
    stride apart; the sum of both.

    Args:
        dim: channels of the input.
        hidden: channels of the values, and of the output.
        head_dim: of queries and keys.
        window: side of a window, and number of places a side of a spanned one.

    Maps are padded with zeros to a multiple of the window.

    Shapes: (B, dim, H, W) to (B, hidden, H, W).
    Raises: FoveateError if the heads do not fit.
    """

    def __init__(self, dim: int, hidden: int, head_dim: int = 20, window: int = 7) -> None:
        super().__init__()
        self.heads, self.window = dim // head_dim, window
        if dim % head_dim or hidden % self.heads:
            raise FoveateError(
                f"{dim} and {hidden} channels cannot be divided among heads of {head_dim}: give "
                "another head_dim"
            )
        self.qk = nn.Conv2d(dim, 2 * dim, 1)
        self.v = nn.Conv2d(dim, hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        high, wide = x.shape[2:]
        x = pad_to_windows(x, self.window)
        maps = *self.qk(x).chunk(2, dim=1), F.gelu(self.v(x))
        near = self._attend(maps, spanned=False)
        return (near + self._attend(maps, spanned=True))[..., :high, :wide]

    def _attend(self, maps: tuple[Tensor, ...], spanned: bool) -> Tensor:
        q, k, v = (fold(t, self.window, self.heads, spanned) for t in maps)
        size = maps[0].shape[2], maps[0].shape[3]
        return unfold(F.scaled_dot_product_attention(q, k, v), size, self.window, spanned)
