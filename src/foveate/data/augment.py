"""What happens to a training image, and how each choice follows from (seed, epoch, index)."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from foveate.data import chance
from foveate.errors import FoveateError


@dataclass(frozen=True, kw_only=True)
class Augment:
    """The augmentation of training images.

    Args:
        crop: `pad` shifts the image by up to `shift` over a reflected border;
            `resized` cuts a random box and scales it (Inception's crop);
            `centre` only scales and cuts the centre.
        shift: most pixels of shift, at the size trained at.
        scale, ratio: share of the area and aspect ratio of a random box.
        reduce: decode a JPEG at a quarter or an eighth where a random box has
            pixels enough even so; it takes less time, and pixels differ
            slightly from those of the whole image, scaled.
        flip: mirror left and right at random; `alternate` mirrors each image
            in every other epoch instead (arXiv 2404.00498, section 3.6);
            False where mirrored images mean something else, as with digits.
        randaugment: operations an image, 0 for none (arXiv 1909.13719).
        magnitude: strength of those operations, 0 to 30.
        erase: probability that a box of the image is replaced by noise
            (arXiv 1708.04896).
        mixup: alpha of the Beta distribution that blends two images, 0 for
            none (arXiv 1710.09412).
        cutmix: the same for pasting a box of one into the other (arXiv 1905.04899).
        mix: probability that a batch is mixed at all.

    Raises: FoveateError that names the field.
    """

    crop: Literal["pad", "resized", "centre"] = "pad"
    shift: int = 2
    scale: tuple[float, float] = (0.35, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    reduce: bool = True
    flip: bool | Literal["alternate"] = True
    randaugment: int = 0
    magnitude: float = 9.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix: float = 1.0

    def __post_init__(self) -> None:
        if self.crop not in ("pad", "resized", "centre"):
            raise FoveateError(f"augment.crop is {self.crop!r}: choose pad, resized or centre")
        if self.flip not in (True, False, "alternate"):
            raise FoveateError(f"augment.flip is {self.flip!r}: choose true, false or alternate")
        for name in ("shift", "randaugment"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise FoveateError(f"augment.{name} is {value!r}: give a whole number, 0 or more")
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise FoveateError(f"augment.{name} is {getattr(self, name)}: give 0 or more")
        for name in ("erase", "mix"):
            if not 0 <= getattr(self, name) <= 1:
                raise FoveateError(f"augment.{name} is {getattr(self, name)}: give 0 to 1")
        if not 0 <= self.magnitude <= 30:
            raise FoveateError(f"augment.magnitude is {self.magnitude}: give 0 to 30")
        for name, most in (("scale", 1.0), ("ratio", math.inf)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= most:
                limit = "" if most == math.inf else f" <= {most:g}"
                raise FoveateError(f"augment.{name} is {(low, high)}: give 0 < low <= high{limit}")


@dataclass(frozen=True)
class Draw:
    """Where and when: the coordinates of random choices for some images.

    Args:
        seed, epoch: of the run.
        indices: of the images in their split, int64 (B,).
    """

    seed: int
    epoch: int
    indices: np.ndarray

    def uniform(self, stream: str) -> np.ndarray:
        """Float64 (B,) in [0, 1)."""
        return chance.uniform(self.seed, self.epoch, self.indices, stream)

    def crops(self) -> np.ndarray:
        """Area, aspect ratio, left and top of random boxes: float64 (B, 4) in [0, 1)."""
        return np.stack([self.uniform(name) for name in ("area", "aspect", "left", "top")], axis=1)

    def flips(self, flip: bool | str) -> np.ndarray:
        """Which images are mirrored: bool (B,)."""
        if flip == "alternate":
            start = chance.integers(self.seed, 0, self.indices, "flip", 2)
            return (start + self.epoch) % 2 == 1
        return (self.uniform("flip") < 0.5) & bool(flip)


def shift_and_flip(pixels: np.ndarray, augment: Augment, draw: Draw) -> np.ndarray:
    """Shift by up to `augment.shift` pixels over a reflected border, and mirror.

    Args:
        pixels: uint8 (B, H, W, 3), of one size.

    Returns: uint8 (B, H, W, 3), gathered in one indexing operation.
    """
    height, width = pixels.shape[1:3]
    rows = np.broadcast_to(np.arange(height), (len(pixels), height))
    columns = np.broadcast_to(np.arange(width), (len(pixels), width))
    if augment.crop == "pad" and augment.shift:
        rows = _reflect(rows + _shifts(draw, "shift-y", augment.shift), height)
        columns = _reflect(columns + _shifts(draw, "shift-x", augment.shift), width)
    mirrored = draw.flips(augment.flip)[:, None]
    columns = np.where(mirrored, columns[:, ::-1], columns)
    images = np.arange(len(pixels))[:, None, None]
    return pixels[images, rows[:, :, None], columns[:, None, :]]


def _shifts(draw: Draw, stream: str, most: int) -> np.ndarray:
    return (draw.uniform(stream) * (2 * most + 1)).astype(np.int64)[:, None] - most


def _reflect(index: np.ndarray, size: int) -> np.ndarray:
    """Positions beyond the border, mirrored back in without repeating the border."""
    period = max(2 * (size - 1), 1)
    index = np.abs(index) % period
    return np.where(index >= size, period - index, index)


def random_box(
    width: int, height: int, augment: Augment, shares: np.ndarray
) -> tuple[float, float, float, float]:
    """The box of a random resized crop: left, top, right, bottom in pixels.

    Args:
        shares: the image's row of `Draw.crops`.
    """
    area, aspect, x, y = shares.tolist()
    low, high = augment.scale
    area = (low + (high - low) * area) * width * height
    narrow, wide = map(math.log, augment.ratio)
    aspect = math.exp(narrow + (wide - narrow) * aspect)
    w = min(width, math.sqrt(area * aspect))
    h = min(height, math.sqrt(area / aspect))
    left, top = x * (width - w), y * (height - h)
    return left, top, min(left + w, width), min(top + h, height)


def erase(images: np.ndarray, augment: Augment, draw: Draw) -> None:
    """Replace a box of some images by noise, in place.

    Args:
        images: uint8 (B, H, W, 3).
    """
    height, width = images.shape[1:3]
    area = 0.02 + 0.31 * draw.uniform("erase-area")
    aspect = np.exp(np.log(0.3) + (np.log(3.3) - np.log(0.3)) * draw.uniform("erase-aspect"))
    h = np.clip(np.sqrt(area * aspect) * height, 1, height).astype(int)
    w = np.clip(np.sqrt(area / aspect) * width, 1, width).astype(int)
    top = (draw.uniform("erase-top") * (height - h + 1)).astype(int)
    left = (draw.uniform("erase-left") * (width - w + 1)).astype(int)
    for i in np.flatnonzero(draw.uniform("erase") < augment.erase):
        noise = chance.uniform(
            draw.seed, draw.epoch, np.arange(h[i] * w[i] * 3), f"noise-{draw.indices[i]}"
        )
        box = (noise * 256).astype(np.uint8).reshape(h[i], w[i], 3)
        images[i, top[i] : top[i] + h[i], left[i] : left[i] + w[i]] = box
