"""Spatial-reduction attention: every pixel looks at a map that is smaller than its own.

Source: pvt (arXiv 2102.12122, section 3.3). The authors' code is under Apache-2.0.
"""

from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.ops.attention import attend, require_heads
from foveate.ops.layer_norm import LayerNorm2d


@implements("pvt")
class SpatialReductionAttention(nn.Module):
    """Attention to keys and values of a map that is `ratio` times smaller in height and width.

    Args:
        dim: channels.
        heads: how many share them.
        ratio: by how much keys and values are reduced: memory and work fall by its square.

    Shapes: (B, dim, H, W) to the same.
    Raises: FoveateError if heads do not divide dim, or the map is smaller than the ratio.
    """

    def __init__(self, dim: int, heads: int = 8, ratio: int = 1) -> None:
        super().__init__()
        require_heads(dim, heads)
        self.heads, self.ratio = heads, ratio
        self.q = nn.Conv2d(dim, dim, 1)
        self.kv = nn.Conv2d(dim, 2 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)
        if ratio > 1:
            self.sr = nn.Conv2d(dim, dim, ratio, stride=ratio)
            self.norm = LayerNorm2d(dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[2:]) < self.ratio:
            raise FoveateError(
                f"a map of {tuple(x.shape[2:])} pixels cannot be made {self.ratio} times smaller: "
                "give larger images or a lower ratio"
            )
        seen = self.norm(self.sr(x)) if self.ratio > 1 else x
        k, v = self.kv(seen).chunk(2, dim=1)
        return self.proj(attend(self.q(x), k, v, self.heads))
