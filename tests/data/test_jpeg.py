"""Parts of JPEGs: against the whole image, cut and scaled by others."""

import io
import math
import tarfile

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from foveate.data import BadImage, decode
from foveate.data.decode import decode_cut
from foveate.data.jpeg import Jpeg, reduction, window
from foveate.data.scale import stretch


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with some noise, as a camera gives them."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth, float) + rng.normal(0, 4, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def as_jpeg(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92, **options)
    return file.getvalue()


def stored_as(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def pillow_opens(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def decibels(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Peak signal to noise ratio."""
    error = np.square(ours.astype(float) - theirs.astype(float)).mean()
    return 10 * math.log10(255**2 / max(error, 1e-9))


# ------------------------------------------------------------ which way up


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_fast_path_knows_all_orientations(orientation):
    data = as_jpeg(photo(40, 24), exif=stored_as(orientation), subsampling=0)
    jpeg = Jpeg.of(data)
    expected = pillow_opens(data)
    assert jpeg is not None
    assert (jpeg.height, jpeg.width) == expected.shape[:2]
    assert np.array_equal(jpeg.pixels(), expected)


@pytest.mark.parametrize(
    "said", [b'tiff:Orientation="6"', b"<tiff:Orientation>6</tiff:Orientation>"]
)
def test_xmp_is_asked_where_exif_says_nothing(said):
    packet = b"http://ns.adobe.com/xap/1.0/\x00<x:xmpmeta " + said + b"/>"
    plain = as_jpeg(photo(40, 24), subsampling=0)
    data = plain[:2] + b"\xff\xe1" + (len(packet) + 2).to_bytes(2, "big") + packet + plain[2:]
    assert np.array_equal(decode(data), pillow_opens(data))
    assert decode(data).shape == (40, 24, 3)


def test_an_orientation_that_does_not_exist_is_none():
    data = as_jpeg(photo(40, 24), exif=stored_as(0), subsampling=0)
    assert np.array_equal(decode(data), pillow_opens(data))


# ------------------------------------------------------------ boxes


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    orientation=st.integers(1, 8),
    corners=st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_a_box_is_the_window_of_the_whole_image(width, height, orientation, corners):
    data = as_jpeg(photo(width, height), exif=stored_as(orientation))
    whole = decode(data)
    high, wide = whole.shape[:2]
    left, right = sorted(round(c * wide) for c in corners[:2])
    top, bottom = sorted(round(c * high) for c in corners[2:])
    left, top = min(left, wide - 1), min(top, high - 1)
    box = left, top, max(right, left + 1), max(bottom, top + 1)
    found = decode_cut(data, lambda w, h: box)
    assert np.array_equal(found, whole[box[1] : box[3], box[0] : box[2]])


@given(
    side=st.integers(1, 400),
    by=st.sampled_from([1, 2, 4, 8]),
    low=st.floats(0, 1),
    share=st.floats(0, 1),
)
def test_a_window_lies_inside_and_has_a_pixel_at_least(side, by, low, share):
    pixels = np.arange(-(-side // by))[:, None, None] * np.ones((1, 3, 3))
    start = low * side
    found = window(pixels, (0, start, 3 * by, start + share * (side - start)), by)
    assert found.shape[0] >= 1
    assert found.shape[1] == 3
    assert (np.diff(found[:, 0, 0]) == 1).all()


@pytest.mark.parametrize(
    ("side", "least", "by"),
    [(448, 224, 1), (895, 224, 1), (896, 224, 4), (1791, 224, 4), (5000, 224, 8), (5000, None, 1)],
)
def test_a_reduction_leaves_pixels_enough(side, least, by):
    assert reduction((0, 0, side, side + 7), least) == by


@pytest.mark.parametrize("by", [4, 8])
@pytest.mark.parametrize("sides", [(640, 480), (641, 483), (513, 1027)])
def test_libjpeg_reduces_as_it_is_told(sides, by):
    """All is laid on a grid of `by`: were it another, boxes would lie elsewhere."""
    width, height = sides
    whole = Jpeg.of(as_jpeg(photo(width, height)))
    assert whole is not None
    found = whole.cut((0, 0, width, height), min(sides) // by)
    assert found.shape[:2] == (round(height / by), round(width / by))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("by", [4, 8])
def test_a_reduced_box_shows_what_the_whole_one_does(orientation, by):
    data = as_jpeg(photo(400, 320), exif=stored_as(orientation))
    whole = decode(data)
    box = (37.0, 21.0, 37.0 + 240, 21.0 + 264)
    found = decode_cut(data, lambda w, h: box, 240 // by)
    left, top, right, bottom = (by * round(edge / by) for edge in box)
    assert found.shape[:2] == ((bottom - top) // by, (right - left) // by)
    cut = Image.fromarray(whole[top:bottom, left:right])
    assert decibels(found, np.asarray(cut.reduce(by))) > 38


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_grey_and_subsampled_photographs_are_cut_alike(subsampling):
    for image in (photo(300, 200), photo(300, 200).convert("L")):
        options = {} if image.mode == "L" else {"subsampling": subsampling}
        data = as_jpeg(image, **options)
        whole = np.asarray(Image.fromarray(decode(data)).reduce(4))
        assert decibels(decode_cut(data, lambda w, h: (0, 0, w, h), 50), whole) > 34


def test_other_formats_are_cut_after_decoding(encoded):
    data = encoded(3, "PNG", side=40)
    found = decode_cut(data, lambda w, h: (4, 6, 30, 36), 5)
    assert np.array_equal(found, decode(data)[6:36, 4:30])


# ------------------------------------------------------------ what is bad


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_jpeg_is_refused_by_a_box_too(share):
    data = as_jpeg(photo(128, 128))
    with pytest.raises(BadImage):
        decode_cut(data[: int(len(data) * share)], lambda w, h: (0, 0, 8, 8), 4)


def test_a_bomb_is_refused_by_a_box_too():
    with pytest.raises(BadImage, match="too large"):
        decode_cut(as_jpeg(photo(64, 64)), lambda w, h: (0, 0, w, h), max_pixels=1000)


def test_damaged_exif_does_not_hide_the_image():
    plain = as_jpeg(photo(40, 24))
    packet = b"Exif\x00\x00II*\x00\xff\xff\xff\xff"
    data = plain[:2] + b"\xff\xe1" + (len(packet) + 2).to_bytes(2, "big") + packet + plain[2:]
    assert np.array_equal(decode(data), simplejpeg.decode_jpeg(plain, "RGB"))


# ------------------------------------------------------------ real photographs


def test_real_photographs_lose_little_by_reduction(shared):
    """A quarter that is then scaled stays close to the whole that is scaled."""
    found = []
    with tarfile.open(shared / "data" / "imagenet_samples.tar") as archive:
        for member in (m for m in archive if m.isfile()):
            file = archive.extractfile(member)
            data = file.read() if file else b""
            height, width = simplejpeg.decode_jpeg_header(data)[:2]
            if min(height, width) < 448 or len(found) == 12:
                continue
            box = (0, 0, width // 4 * 4, height // 4 * 4)
            pictures = decode_cut(data, lambda w, h, box=box: box, 112), window(decode(data), box)
            squares = [np.empty((112, 112, 3), np.uint8) for _ in pictures]
            for picture, square in zip(pictures, squares, strict=True):
                stretch(picture, 112, False, square)
            found.append(decibels(*squares))
    assert len(found) == 12
    assert min(found) > 30
    assert np.median(found) > 38
