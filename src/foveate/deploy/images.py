"""Images as people have them, to what an exported program takes."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from foveate.data import BadImage, Split, decode
from foveate.data.decode import to_rgb
from foveate.data.scale import resize, resize_batch
from foveate.errors import FoveateError
from foveate.vision import Preprocess


def to_input(images: Any, preprocess: Preprocess) -> np.ndarray:
    """Paths, PIL images, arrays or tensors, one or many, as float32 (N, 3, S, S) in [0, 1].

    Args:
        images: one of them, a list of them, or a batch (B, H, W, 3) or (B, 3, H, W).
        preprocess: size and crop of the model.

    Raises: FoveateError that names what cannot be read.
    """
    pixels = [resize(Image.fromarray(p), preprocess.size, preprocess.crop) for p in _each(images)]
    if not pixels:
        raise FoveateError("there are no images to predict: give at least one")
    return _scaled(np.stack(pixels))


def split_input(split: Split, indices: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Images of a split as float32 (N, 3, S, S) in [0, 1]."""
    if split.pixels is not None:
        return _scaled(resize_batch(split.pixels[indices], preprocess.size, preprocess.crop))
    return to_input([split.read(int(i)) for i in indices], preprocess)


def _scaled(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32) / 255


def _each(images: Any) -> list[np.ndarray]:
    """Every image as uint8 (H, W, 3)."""
    if isinstance(images, list | tuple):
        return [pixels for image in images for pixels in _each(image)]
    if isinstance(images, str | Path):
        return [_read(Path(images))]
    if isinstance(images, Image.Image):
        return [to_rgb(images)]
    if isinstance(images, torch.Tensor):
        images = images.detach().cpu().numpy()
    if isinstance(images, np.ndarray):
        return _from_array(images)
    raise FoveateError(
        f"a {type(images).__name__} is no image: give paths, PIL images, arrays or tensors"
    )


def _read(path: Path) -> np.ndarray:
    try:
        return decode(path.read_bytes())
    except BadImage as error:
        raise FoveateError(f"{path} cannot be used: {error.reason}; give another image") from error
    except OSError as error:
        raise FoveateError(f"{path} cannot be read ({error.strerror}): check the path") from error


def _from_array(images: np.ndarray) -> list[np.ndarray]:
    shape = images.shape
    if images.ndim == 2:
        images = np.repeat(images[None, ..., None], 3, axis=3)
    elif images.ndim == 3:
        images = images[None]
    if images.ndim == 4 and images.shape[3] != 3 and images.shape[1] == 3:
        images = images.transpose(0, 2, 3, 1)
    if images.ndim != 4 or images.shape[3] != 3:
        raise FoveateError(
            f"an array of shape {shape} is no RGB image: give (H, W, 3) or (3, H, W)"
        )
    if images.dtype.kind == "f":
        if images.min(initial=0) < 0 or images.max(initial=0) > 1:
            raise FoveateError("an array of floats goes beyond [0, 1]: give uint8, or scale it")
        images = np.round(images * 255)
    elif images.dtype != np.uint8:
        raise FoveateError(
            f"an array of {images.dtype} is no image: give uint8 or floats in [0, 1]"
        )
    return list(np.ascontiguousarray(images, np.uint8))
