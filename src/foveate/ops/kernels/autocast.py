"""What autocast does to the arguments of a convolution."""

import torch
from torch import Tensor


def cast_like_autocast(*tensors: Tensor | None) -> tuple:
    """Tensors as convolutions get them: in autocast's type where it is on."""
    kind = next(t.device.type for t in tensors if t is not None)
    if not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(t if t is None else t.to(dtype) for t in tensors)
