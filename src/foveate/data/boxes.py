"""Boxes out of JPEGs by Foveate's own decoder, where it has been compiled.

Its source is `native/jpeg.c`. Without it everything works, and gives the same pixels, in more time.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np

from foveate import compiled

FOLDER = Path(__file__).parent / "native"


def read_box(data: bytes, left: int, top: int, right: int, bottom: int) -> np.ndarray | None:
    """The pixels of a box of a JPEG as it is stored, as libjpeg-turbo gives them, bit for bit.

    Of the file below the box only the end is looked at, so damage there stays
    unseen.

    Args:
        left, top, right, bottom: in pixels, inside of the image.

    Returns: uint8 (bottom - top, right - left, 3); None where the library is
        missing, the file is not a baseline one, or it looks damaged.
    """
    decode = _decoder()
    if decode is None or not data.endswith(b"\xff\xd9"):
        return None
    pixels = np.empty((bottom - top, right - left, 3), np.uint8)
    failed = decode(data, len(data), left, top, right, bottom, pixels.ctypes.data)
    return None if failed else pixels


def _decoder() -> Callable[..., int] | None:
    """The decoder, which gives 0 where it succeeded; None where it has not been compiled."""
    library = compiled.library(FOLDER)
    if library is None:
        return None
    decode = library.foveate_jpeg_box
    numbers = (ctypes.c_int64, *(ctypes.c_int,) * 4)
    decode.argtypes = (ctypes.c_char_p, *numbers, ctypes.c_void_p)
    return decode
