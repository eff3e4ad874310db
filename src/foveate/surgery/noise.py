"""Images of noise for edits that need to see a model run and no picture."""

from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.vision import VisionModel


def noise_for(model: nn.Module, count: int = 2, seed: int = 0) -> Tensor:
    """Noise of the size that a model says it takes, (count, channels, H, W).

    A `VisionModel` gets uniform pixels in [0, 1], any other network standard normal numbers, as
    normalised images have.

    Raises: FoveateError if the model does not say what it takes.
    """
    generator = torch.Generator().manual_seed(seed)
    like = next(model.parameters())
    if isinstance(model, VisionModel):
        size = model.preprocess.size
        return torch.rand(count, 3, size, size, generator=generator).to(like.device)
    said: Any = getattr(model, "default_cfg", None) or {}
    if "input_size" not in said:
        raise FoveateError(
            f"{type(model).__name__} does not say what size of images it takes: give some as data, "
            "whatever is on them, or make it a foveate.VisionModel"
        )
    return torch.randn(count, *said["input_size"], generator=generator).to(like)
