"""The fast path for JPEGs: libjpeg-turbo, which is told beforehand what is wanted of the image."""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image

from foveate.data.boxes import read_box

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""

REDUCTIONS = (8, 4)
"""libjpeg-turbo has vectorised transforms for these; a half saves less than a box does."""

_APP1 = 0xE1
_SCAN = 0xDA
_ORIENTATION = 0x0112
_IN_XMP = re.compile(rb'tiff:Orientation(?:="|>)(\d)')


@dataclass(frozen=True)
class Jpeg:
    """A JPEG that is grey or YCbCr, not yet decoded.

    Attributes:
        width, height: in pixels, as people see it.
        orientation: how it is stored, 1 to 8, as EXIF has it.
    """

    data: bytes
    width: int
    height: int
    orientation: int

    @classmethod
    def of(cls, data: bytes) -> "Jpeg | None":
        """Read the header; None where this is no such JPEG."""
        if not simplejpeg.is_jpeg(data):
            return None
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            orientation = _orientation(data)
        except Exception:  # Pillow's reader of EXIF raises almost anything on damaged bytes
            return None
        if colours not in ("Gray", "YCbCr"):
            return None
        if orientation >= 5:
            width, height = height, width
        return cls(data, int(width), int(height), orientation)

    def pixels(self) -> np.ndarray:
        """All of it, uint8 (height, width, 3). Raises: ValueError if it is damaged."""
        return self._upright(simplejpeg.decode_jpeg(self.data, "RGB"))

    def cut(self, box: Box, least: int | None = None) -> np.ndarray:
        """What lies in a box, at the largest reduction that leaves `least` pixels a side.

        A reduction happens in the domain of the cosine transform, so that the
        pixels in between are never computed; the box is rounded to its grid.

        Args:
            box: in pixels of the whole image.
            least: of the box's height and width; without it nothing is reduced.

        Returns: uint8 (h, w, 3). Raises: ValueError if the file is damaged.
        """
        by = reduction(box, least)
        stored = self._as_stored(box)
        high, wide = self.height, self.width
        if self.orientation >= 5:
            high, wide = wide, high
        if by == 1:
            rows, columns = window_of(stored, high, wide)
            pixels = read_box(self.data, columns.start, rows.start, columns.stop, rows.stop)
            if pixels is not None:
                return self._upright(pixels)
        high, wide = -(-high // by), -(-wide // by)
        pixels = simplejpeg.decode_jpeg(
            self.data, "RGB", min_height=high, min_width=wide, min_factor=by
        )
        return self._upright(window(pixels, stored, by))

    def _upright(self, pixels: np.ndarray) -> np.ndarray:
        if self.orientation == 1:
            return pixels
        if self.orientation >= 5:
            pixels = pixels.swapaxes(0, 1)
        if self.orientation in (2, 3, 6, 7):
            pixels = pixels[:, ::-1]
        if self.orientation in (3, 4, 7, 8):
            pixels = pixels[::-1]
        return np.ascontiguousarray(pixels)

    def _as_stored(self, box: Box) -> Box:
        left, top, right, bottom = box
        if self.orientation in (2, 3, 6, 7):
            left, right = self.width - right, self.width - left
        if self.orientation in (3, 4, 7, 8):
            top, bottom = self.height - bottom, self.height - top
        return (top, left, bottom, right) if self.orientation >= 5 else (left, top, right, bottom)


def reduction(box: Box, least: int | None) -> int:
    """The largest of `REDUCTIONS` that leaves at least `least` pixels a side, or 1."""
    left, top, right, bottom = box
    side = min(right - left, bottom - top)
    return next((by for by in REDUCTIONS if least is not None and side >= least * by), 1)


def window(pixels: np.ndarray, box: Box, by: int = 1) -> np.ndarray:
    """What lies in a box, rounded to whole pixels of which there is at least one.

    Args:
        pixels: (H, W, 3), where each stands for `by` times `by` of those that the box counts.
    """
    rows, columns = window_of(box, pixels.shape[0], pixels.shape[1], by)
    return pixels[rows, columns]


def window_of(box: Box, high: int, wide: int, by: int = 1) -> tuple[slice, slice]:
    """Rows and columns of a box in an image of so many pixels."""
    left, top, right, bottom = (edge / by for edge in box)
    return _span(top, bottom, high), _span(left, right, wide)


def _span(low: float, high: float, most: int) -> slice:
    start = min(round(low), most - 1)
    return slice(start, max(start + 1, min(round(high), most)))


def _orientation(data: bytes) -> int:
    """How the image is stored, 1 to 8: what EXIF says or else XMP, and 1 where neither does."""
    said = 1
    for kind, content in _segments(data):
        if kind == _APP1 and content.startswith(b"Exif\x00"):
            exif = Image.Exif()
            exif.load(content)
            if _ORIENTATION in exif:
                said = exif[_ORIENTATION]
                break
        elif kind == _APP1 and (found := _IN_XMP.search(content)):
            said = int(found[1])
    return said if said in range(1, 9) else 1


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and content of each segment before the pixels."""
    at = 2
    while at + 4 <= len(data):
        mark, kind, size = struct.unpack_from(">BBH", data, at)
        if mark != 0xFF or kind == _SCAN:
            return
        yield kind, data[at + 4 : at + 2 + size]
        at += 2 + size
