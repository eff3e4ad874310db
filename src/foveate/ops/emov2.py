"""Attention near and far at once, with values in the expanded space of an inverted bottleneck.

Source: emov2 (arXiv 2412.06674, section 3.3). The authors' code states no licence; it was
read for the order of windows.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from foveate.catalog import implements
from foveate.errors import FoveateError


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
        x = F.pad(x, (0, -wide % self.window, 0, -high % self.window))
        maps = *self.qk(x).chunk(2, dim=1), F.gelu(self.v(x))
        near = self._attend(maps, spanned=False)
        return (near + self._attend(maps, spanned=True))[..., :high, :wide]

    def _attend(self, maps: tuple[Tensor, ...], spanned: bool) -> Tensor:
        q, k, v = (self._fold(t, spanned) for t in maps)
        return self._unfold(F.scaled_dot_product_attention(q, k, v), maps[2], spanned)

    def _fold(self, x: Tensor, spanned: bool) -> Tensor:
        """(B, C, H, W) to (B, rows, columns, heads, window^2, C / heads)."""
        order = (0, 3, 5, 1, 2, 4, 6) if not spanned else (0, 4, 6, 1, 2, 3, 5)
        parts = (self.window, -1) if spanned else (-1, self.window)
        x = x.unflatten(3, parts).unflatten(2, parts).unflatten(1, (self.heads, -1))
        return x.permute(order).flatten(5).mT

    def _unfold(self, x: Tensor, like: Tensor, spanned: bool) -> Tensor:
        """The opposite of `_fold`."""
        x = x.mT.unflatten(5, (self.window, self.window))
        # rows, columns, heads, channels, and the places of a window
        order = (0, 3, 4, 1, 5, 2, 6) if not spanned else (0, 3, 4, 5, 1, 6, 2)
        return x.permute(order).reshape(like.shape)
