"""RGB pixels out of whatever people keep their images in."""

import io
import threading
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from foveate.data.jpeg import Box, Jpeg, window

MAX_PIXELS = 89_478_485
"""Images with more pixels are taken for decompression bombs; this is Pillow's own limit."""

_header_lock = threading.Lock()


class BadImage(Exception):  # noqa: N818 - the field says "a bad image", and so do we
    """Bytes that are no usable image. `reason` says why in a few words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image file to RGB.

    EXIF orientation is applied, palettes are resolved, transparency is laid on
    white, 16-bit and float samples are scaled, CMYK is converted, and an
    animation gives its first frame.

    Args:
        data: the content of the file.
        max_pixels: larger images are refused before they are decoded.

    Returns: uint8 (H, W, 3).
    Raises: BadImage with the reason.
    """
    if not data:
        raise BadImage("empty file")
    jpeg = _plain_jpeg(data, max_pixels)
    return _decode_any(data, max_pixels) if jpeg is None else _judged(jpeg.pixels)


def decode_cut(
    data: bytes,
    choose: Callable[[int, int], Box],
    least: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Decode what a box of an image needs, and no more where the format allows.

    Where the box has many more pixels than `least`, a JPEG is decoded at a
    quarter or an eighth of its size, which takes less time.

    Args:
        data: the content of the file.
        choose: gives the box for the image's width and height.
        least: pixels of the result's height and width that are enough, or None
            for all there are.
        max_pixels: larger images are refused before they are decoded.

    Returns: uint8 (h, w, 3).
    Raises: BadImage with the reason.
    """
    jpeg = _plain_jpeg(data, max_pixels)
    if jpeg is None:
        pixels = decode(data, max_pixels)
        return window(pixels, choose(pixels.shape[1], pixels.shape[0]))
    box = choose(jpeg.width, jpeg.height)
    return _judged(lambda: jpeg.cut(box, least))


def _plain_jpeg(data: bytes, max_pixels: int) -> Jpeg | None:
    jpeg = Jpeg.of(data)
    return jpeg if jpeg and jpeg.width * jpeg.height <= max_pixels else None


def _judged(decoder: Callable[[], np.ndarray]) -> np.ndarray:
    """What a decoder of JPEGs gives, or what is wrong with the file."""
    try:
        return decoder()
    except ValueError as error:
        reason = "truncated" if "premature end" in str(error).lower() else "damaged JPEG"
        raise BadImage(reason) from error


def _decode_any(data: bytes, max_pixels: int) -> np.ndarray:
    try:
        image = _open(data, max_pixels)
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        raise BadImage("not an image") from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes
        cut = any(word in str(error).lower() for word in ("truncated", "incomplete", "end of"))
        reason = "truncated" if cut or isinstance(error, EOFError) else f"damaged: {error}"
        raise BadImage(" ".join(reason.split())[:120]) from error


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header, quietly: `catch_warnings` is not thread-safe, hence the lock."""
    with _header_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data))
        except Image.DecompressionBombError as error:
            raise BadImage("too large: a decompression bomb?") from error
        if image.width * image.height > max_pixels:
            raise BadImage(f"too large: {image.width} x {image.height} pixels")
        image.getexif()
        return image


def to_rgb(image: Image.Image) -> np.ndarray:
    """A Pillow image of any mode as RGB: uint8 (H, W, 3)."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _scale_grey(np.asarray(image), image.mode)
    if image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def _scale_grey(samples: np.ndarray, mode: str) -> np.ndarray:
    """Grey samples wider than a byte, to RGB bytes: integers over 16 bits, floats over [0, 1]."""
    grey = np.nan_to_num(samples.astype(np.float64))
    if mode == "F":
        top = 1.0 if grey.max(initial=0) <= 1 else max(255.0, grey.max())
    else:
        top = 65535.0 if mode.startswith("I;16") or grey.max(initial=0) > 255 else 255.0
    grey = np.clip(grey / top, 0, 1) * 255
    return np.repeat(grey.round().astype(np.uint8)[..., None], 3, axis=2)
