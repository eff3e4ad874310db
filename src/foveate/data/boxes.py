"""Boxes out of JPEGs by Foveate's own decoder, where it has been compiled.

Its source is `native/jpeg.c`: compiled when Foveate is built, once for each level of instruction
sets (`AVX2.so`, `AVX512.so`), and loaded through ctypes, which lets other threads run meanwhile.
Without it everything works, and gives the same pixels, in more time.
"""

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "native"
OFF = "FOVEATE_KERNELS"
"""Environment variable: `off` leaves it out, the name of a level insists on it."""


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


@cache
def _decoder() -> Callable[..., int] | None:
    from torch.backends.cpu import get_cpu_capability

    level = os.environ.get(OFF, "") or get_cpu_capability()
    path = FOLDER / f"{level}.so"
    return load(path) if path.is_file() else None


def load(path: Path) -> Callable[..., int]:
    """The decoder of a compiled library; it gives 0 where it succeeded."""
    decode = ctypes.CDLL(str(path)).foveate_jpeg_box
    numbers = (ctypes.c_int64, *(ctypes.c_int,) * 4)
    decode.argtypes = (ctypes.c_char_p, *numbers, ctypes.c_void_p)
    return decode
