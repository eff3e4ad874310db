"""RGB out of everything that people have, against Pillow and closed forms."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from foveate.data import BadImage, decode


def save(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP", "PPM"])
def test_lossless_formats_come_back_as_they_were(picture, format):
    options = {"lossless": True} if format == "WEBP" else {}
    image = picture(1)
    assert np.array_equal(decode(save(image, format, **options)), np.asarray(image))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_is_what_pillow_decodes(picture, mode):
    data = save(picture(2, 64, mode), "JPEG", quality=95)
    theirs = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(decode(data) - theirs).max() <= 2


def test_cmyk_jpeg(picture):
    data = save(picture(3, 64).convert("CMYK"), "JPEG", quality=95)
    theirs = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(decode(data) - theirs).max() <= 2
    assert np.abs(decode(data) - np.asarray(picture(3, 64)).astype(int)).mean() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(picture, orientation, format):
    image = picture(4, 32).crop((0, 0, 32, 20))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(image, format, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert np.array_equal(decode(data), expected)
    assert decode(data).shape == ((20, 32, 3) if orientation < 5 else (32, 20, 3))


def test_palette(picture):
    image = picture(5).quantize(16)
    assert np.array_equal(decode(save(image, "PNG")), np.asarray(image.convert("RGB")))


def test_transparency_is_laid_on_white():
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = (200, 100, 0, 255)
    pixels[0, 1] = (0, 0, 0, 0)
    pixels[1, 0] = (0, 0, 0, 128)
    found = decode(save(Image.fromarray(pixels), "PNG"))
    assert found[0, 0].tolist() == [200, 100, 0]
    assert found[0, 1].tolist() == [255, 255, 255]
    assert np.abs(found[1, 0].astype(int) - 127).max() <= 1
    grey = Image.fromarray(np.full((2, 2, 2), (90, 0), np.uint8), "LA")
    assert (decode(save(grey, "PNG")) == 255).all()


def test_transparent_palette():
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    found = decode(save(image, "PNG", transparency=0))
    assert found[0].tolist() == [[255, 255, 255], [40, 50, 60]]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(format):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    found = decode(save(Image.fromarray(ramp), format))
    expected = np.round(ramp / 257)
    assert np.abs(found - expected[..., None]).max() <= 1


def test_float_samples_are_scaled():
    ramp = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    found = decode(save(Image.fromarray(ramp), "TIFF"))
    assert np.array_equal(found[..., 0], np.round(ramp * 255).astype(np.uint8))


def test_one_bit(picture):
    image = picture(6).convert("1")
    assert np.array_equal(decode(save(image, "PNG"))[..., 0], np.asarray(image) * np.uint8(255))


def test_first_frame_of_an_animation(picture):
    frames = [picture(i).quantize(64) for i in (7, 8)]
    data = save(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(decode(data), np.asarray(frames[0].convert("RGB")))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_files_are_refused(encoded, format, share):
    whole = encoded(9, format, side=64)
    with pytest.raises(BadImage):
        decode(whole[: int(len(whole) * share)])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello, I am text", "not an image"),
        (b"\xff\xd8\xff", "not an image"),
        (bytes(99), "image"),
    ],
)
def test_what_is_no_image_is_refused(data, reason):
    with pytest.raises(BadImage, match=reason):
        decode(data)


def test_bombs_are_refused_before_they_are_decoded(encoded):
    with pytest.raises(BadImage, match="too large"):
        decode(encoded(0, "PNG", side=64), max_pixels=1000)
    with pytest.raises(BadImage, match="too large"):
        decode(encoded(0, "JPEG", side=64), max_pixels=1000)
    bomb = save(Image.new("1", (15_000, 14_000)), "PNG")
    with pytest.raises(BadImage, match="too large"):
        decode(bomb)
