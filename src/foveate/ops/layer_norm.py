"""Layer norm of maps."""

from torch import Tensor, nn

from foveate.ops.kernels.layer_norm import plain_layer_norm_channels


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of maps. Shapes: (B, C, H, W) to the same."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__(dim, eps=eps)

    def forward(self, input: Tensor) -> Tensor:
        return plain_layer_norm_channels(input, self.weight, self.bias, self.eps)
