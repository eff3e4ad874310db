"""Squeeze and excitation: channels weighted by what the whole map holds.

Source: se (arXiv 1709.01507, section 3).
"""

from torch import Tensor, nn

from foveate.catalog import implements


@implements("se")
class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the means of all.

    Args:
        dim: channels of the input.
        reduction: by how much narrower the layer between is.
        hidden: its width, if it is not to follow from the reduction.
        act: what follows the first layer; by default a ReLU.

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(
        self,
        dim: int,
        reduction: int = 16,
        hidden: int | None = None,
        act: nn.Module | None = None,
    ) -> None:
        super().__init__()
        hidden = hidden or max(1, dim // reduction)
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.act = act or nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = x.mean((2, 3), keepdim=True)
        return x * self.fc2(self.act(self.fc1(squeezed))).sigmoid()
