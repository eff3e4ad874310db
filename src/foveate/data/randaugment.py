"""RandAugment: a few operations at one strength, drawn from fourteen.

Source: Cubuk, Zoph, Shlens and Le (arXiv 1909.13719, section 3). The
operations are those of torchvision, whose sampling from a global generator
would not be a function of (seed, epoch, index).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from foveate.data import chance

_MOST = 30.0
_FILL = [124.0, 116.0, 104.0]


def randaugment(
    image: Tensor, ops: int, magnitude: float, seed: int, epoch: int, index: int
) -> Tensor:
    """Apply `ops` random operations to an image.

    Args:
        image: uint8 (3, H, W).
        ops: how many operations, one after the other.
        magnitude: their strength, 0 to 30.
        seed, epoch, index: decide operations and signs.

    Returns: uint8 (3, H, W).
    """
    table = _operations()
    for k in range(ops):
        which = int(chance.integers(seed, epoch, index, f"randaugment-{k}", len(table))[0])
        sign = -1 if chance.uniform(seed, epoch, index, f"randaugment-sign-{k}")[0] < 0.5 else 1
        image = table[which](image, magnitude / _MOST, sign)
    return image


def _operations() -> list[Callable[[Tensor, float, int], Tensor]]:
    """The operations, each a function of image, strength in [0, 1] and sign."""
    from torchvision.transforms.v2 import functional as f

    def affine(x: Tensor, angle: float = 0.0, dx: float = 0.0, dy: float = 0.0, shear=(0.0, 0.0)):
        return f.affine(
            x,
            angle=angle,
            translate=[dx, dy],
            scale=1.0,
            shear=list(shear),
            fill=_FILL,
            center=None,
        )

    return [
        lambda x, s, sign: x,
        lambda x, s, sign: affine(x, shear=(sign * 16.7 * s, 0.0)),
        lambda x, s, sign: affine(x, shear=(0.0, sign * 16.7 * s)),
        lambda x, s, sign: affine(x, dx=sign * s * 0.47 * x.shape[-1]),
        lambda x, s, sign: affine(x, dy=sign * s * 0.47 * x.shape[-2]),
        lambda x, s, sign: affine(x, angle=sign * 30.0 * s),
        lambda x, s, sign: f.adjust_brightness(x, 1 + sign * 0.9 * s),
        lambda x, s, sign: f.adjust_saturation(x, 1 + sign * 0.9 * s),
        lambda x, s, sign: f.adjust_contrast(x, 1 + sign * 0.9 * s),
        lambda x, s, sign: f.adjust_sharpness(x, 1 + sign * 0.9 * s),
        lambda x, s, sign: f.posterize(x, 8 - round(4 * s)),
        lambda x, s, sign: f.solarize(x, 255.0 * (1 - s)),
        lambda x, s, sign: f.autocontrast(x),
        lambda x, s, sign: f.equalize(x),
    ]


def randaugment_batch(
    images: Tensor, ops: int, magnitude: float, seed: int, epoch: int, indices: list[int]
) -> Tensor:
    """`randaugment` for each image of a batch: uint8 (B, 3, H, W)."""
    return torch.stack(
        [
            randaugment(image, ops, magnitude, seed, epoch, i)
            for image, i in zip(images, indices, strict=True)
        ]
    )
