"""RandAugment: a few operations at one strength, drawn from fourteen.

Source: Cubuk, Zoph, Shlens and Le (arXiv 1909.13719, section 3). The
operations are those of torchvision, whose sampling from a global generator
would not be a function of (seed, epoch, index).
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from foveate.data import chance
from foveate.data.augment import Draw

_MOST = 30.0
_FILL = [124.0, 116.0, 104.0]
_SHEAR = 0.3
_TRANSLATE = 150 / 331


def randaugment(images: Tensor, ops: int, magnitude: float, draw: Draw) -> Tensor:
    """Apply `ops` random operations to each image.

    Images that drew the same operation and sign go through it together.

    Args:
        images: uint8 (B, 3, H, W).
        ops: how many operations, one after the other.
        magnitude: their strength, 0 to 30.
        draw: decides operations and signs.

    Returns: uint8 (B, 3, H, W).
    """
    operations = tuple(_operations().values())
    for k in range(ops):
        which = chance.integers(
            draw.seed, draw.epoch, draw.indices, f"randaugment-{k}", len(operations)
        )
        negative = draw.uniform(f"randaugment-sign-{k}") < 0.5
        changed = torch.empty_like(images)
        for choice in np.unique(2 * which + negative):
            rows = torch.from_numpy(np.flatnonzero(2 * which + negative == choice))
            sign = -1 if choice % 2 else 1
            changed[rows] = operations[choice // 2](images[rows], magnitude / _MOST, sign)
        images = changed
    return images


def _operations() -> dict[str, Callable[[Tensor, float, int], Tensor]]:
    """The operations, each a function of images, strength in [0, 1] and sign."""
    from torchvision.transforms.v2 import functional as f

    def affine(x: Tensor, *, shift=(0.0, 0.0), slope=(0.0, 0.0)) -> Tensor:
        return f.affine(
            x,
            angle=0.0,
            translate=[int(shift[0] * x.shape[-1]), int(shift[1] * x.shape[-2])],
            scale=1.0,
            shear=[math.degrees(math.atan(s)) for s in slope],
            center=[0.0, 0.0] if any(slope) else None,
            fill=_FILL,
        )

    return {
        "Identity": lambda x, s, sign: x,
        "ShearX": lambda x, s, sign: affine(x, slope=(sign * _SHEAR * s, 0.0)),
        "ShearY": lambda x, s, sign: affine(x, slope=(0.0, sign * _SHEAR * s)),
        "TranslateX": lambda x, s, sign: affine(x, shift=(sign * _TRANSLATE * s, 0.0)),
        "TranslateY": lambda x, s, sign: affine(x, shift=(0.0, sign * _TRANSLATE * s)),
        "Rotate": lambda x, s, sign: f.rotate(x, sign * 30.0 * s, fill=_FILL),
        "Brightness": lambda x, s, sign: f.adjust_brightness(x, 1 + sign * 0.9 * s),
        "Color": lambda x, s, sign: f.adjust_saturation(x, 1 + sign * 0.9 * s),
        "Contrast": lambda x, s, sign: f.adjust_contrast(x, 1 + sign * 0.9 * s),
        "Sharpness": lambda x, s, sign: f.adjust_sharpness(x, 1 + sign * 0.9 * s),
        "Posterize": lambda x, s, sign: f.posterize(x, 8 - round(4 * s)),
        "Solarize": lambda x, s, sign: f.solarize(x, 255.0 * (1 - s)),
        "AutoContrast": lambda x, s, sign: f.autocontrast(x),
        "Equalize": lambda x, s, sign: f.equalize(x),
    }
