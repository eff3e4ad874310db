"""A thousand damaged and odd files among good ones: no crash, and exactly the bad set aside."""

import io

import numpy as np
import pytest
from PIL import Image

from foveate import data


def damaged(chance: np.random.Generator, whole: bytes) -> bytes:
    """Bytes that no longer hold a picture."""
    kind = chance.integers(4)
    if kind == 0:
        return b""
    if kind == 1:
        return whole[: int(len(whole) * chance.uniform(0.05, 0.7))]
    if kind == 2:
        return chance.bytes(int(chance.integers(1, 3000)))
    return b"<html>404 not found</html>"


def odd(chance: np.random.Generator) -> bytes:
    """A picture of an uncommon kind that is good all the same."""
    pixels = chance.integers(0, 256, (9, 7, 4), dtype=np.uint8)
    rgb = Image.fromarray(pixels[..., :3])
    exif = Image.Exif()
    exif[0x0112] = int(chance.integers(1, 9))
    deep = chance.integers(0, 65536, (9, 7), dtype=np.uint16)
    image, format, options = [
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb, "JPEG", {"exif": exif}),
        (rgb.convert("L"), "JPEG", {}),
        (rgb, "JPEG", {"progressive": True}),
        (rgb.quantize(8), "GIF", {}),
        (rgb.quantize(8), "PNG", {"transparency": 0}),
        (Image.fromarray(pixels), "PNG", {}),
        (Image.fromarray(pixels[..., :2].copy()), "PNG", {}),
        (Image.fromarray(deep), "PNG", {}),
        (Image.fromarray(deep), "TIFF", {}),
        (rgb.convert("1"), "PNG", {}),
        (Image.fromarray(pixels), "WEBP", {}),
        (rgb.convert("YCbCr"), "TIFF", {}),
        (rgb, "BMP", {}),
    ][chance.integers(14)]
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.slow
def test_a_thousand_files(tmp_path, encoded):
    chance = np.random.default_rng(0)
    formats = ["PNG", "JPEG", "WEBP", "BMP", "TIFF"]
    planted, good = set(), 0
    for i in range(1000):
        path = tmp_path / "photos" / f"class{i % 5}" / f"{i}.{'jpg' if i % 3 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if chance.uniform() < 0.5:
            format = formats[chance.integers(len(formats))]
            path.write_bytes(damaged(chance, encoded(i, format, side=64)))
            planted.add(path.relative_to(tmp_path / "photos").as_posix())
        else:
            path.write_bytes(odd(chance))
            good += 1
    found = data.open(tmp_path / "photos", max_bad=1.0)
    assert {q.path for q in found.quarantine} - planted == set()
    assert planted - {q.path for q in found.quarantine} == set()
    assert found.summary()["total"] == good
    assert all(q.reason for q in found.quarantine)
