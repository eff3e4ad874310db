"""Pictures made on the spot."""

import io

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def picture():
    """Makes a picture that no other number gives: smooth, so that JPEG keeps it."""

    def make(number: int = 0, side: int = 24, mode: str = "RGB") -> Image.Image:
        small = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)
        return image.convert(mode)

    return make


@pytest.fixture
def encoded(picture):
    """The bytes of such a picture in a format."""

    def make(number: int = 0, format: str = "PNG", side: int = 24, **options) -> bytes:
        file = io.BytesIO()
        picture(number, side).save(file, format, **options)
        return file.getvalue()

    return make


@pytest.fixture
def class_folders(tmp_path, encoded):
    """A folder of `classes`, with `count` PNGs in each, all different."""

    def make(classes=("cat", "dog"), count: int = 12, name: str = "photos"):
        root = tmp_path / name
        for k, label in enumerate(classes):
            (root / label).mkdir(parents=True)
            for i in range(count):
                (root / label / f"{i:03}.png").write_bytes(encoded(1000 * (k + 1) + i))
        return root

    return make
