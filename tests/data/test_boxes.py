"""The decoder of boxes against libjpeg-turbo's whole images, bit for bit."""

import io
import tarfile

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from foveate.data import boxes
from foveate.data.boxes import read_box
from foveate.data.decode import decode_cut

MODES = [("RGB", 0), ("RGB", 1), ("RGB", 2), ("L", 0)]


def jpeg(width: int, height: int, mode: str = "RGB", sampling: int = 0, **options) -> bytes:
    """A picture with smooth and with noisy places."""
    rng = np.random.default_rng(width * 1000 + height)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    pixels = np.kron(coarse, np.ones((8, 8, 1)))[:height, :width]
    pixels[: height // 2] += rng.normal(0, 30, (height // 2, width, 3))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)
    file = io.BytesIO()
    colour = {} if mode == "L" else {"subsampling": sampling}
    image.save(file, "JPEG", **{"quality": 90} | colour | options)
    return file.getvalue()


def random_boxes(width: int, height: int, count: int = 12):
    rng = np.random.default_rng(width + height)
    yield 0, 0, width, height
    for _ in range(count):
        left, right = sorted(rng.choice(width + 1, 2, replace=False).tolist())
        top, bottom = sorted(rng.choice(height + 1, 2, replace=False).tolist())
        yield left, top, right, bottom


def assert_all_boxes_are_exact(data: bytes) -> None:
    whole = simplejpeg.decode_jpeg(data, "RGB")
    for left, top, right, bottom in random_boxes(whole.shape[1], whole.shape[0]):
        found = read_box(data, left, top, right, bottom)
        assert found is not None
        assert np.array_equal(found, whole[top:bottom, left:right])


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(("mode", "sampling"), MODES)
@pytest.mark.parametrize("sides", [(64, 48), (65, 49), (7, 130), (131, 5), (200, 203), (6, 6)])
def test_boxes_are_windows_of_the_whole(mode, sampling, sides):
    assert_all_boxes_are_exact(jpeg(*sides, mode, sampling))


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(("mode", "sampling"), MODES)
@pytest.mark.parametrize(
    "options",
    [
        {"quality": 1},
        {"quality": 100},
        {"quality": 100, "optimize": True},
        {"restart_marker_blocks": 1},
        {"restart_marker_blocks": 5, "optimize": True},
        {"restart_marker_rows": 1},
    ],
    ids=str,
)
def test_qualities_tables_and_restarts(mode, sampling, options):
    assert_all_boxes_are_exact(jpeg(90, 75, mode, sampling, **options))


@pytest.mark.usefixtures("library")
def test_real_photographs(shared):
    with tarfile.open(shared / "data" / "imagenet_samples.tar") as archive:
        members = [m for m in archive if m.isfile()][::10]
        for member in members:
            file = archive.extractfile(member)
            assert file is not None
            assert_all_boxes_are_exact(file.read())


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    "data",
    [
        jpeg(64, 48, progressive=True),
        jpeg(64, 48)[:-100],
        jpeg(64, 48) + b"more",
        jpeg(64, 48).replace(b"\xff\xda", b"\xff\xdb"),
        jpeg(4, 48, sampling=2),
        b"\xff\xd8\xff\xd9",
        b"\xff\xd9",
    ],
    ids=["progressive", "cut", "tail", "no scan", "too narrow to be smoothed", "empty", "end only"],
)
def test_what_is_not_plain_is_left_to_others(data):
    assert read_box(data, 0, 0, 4, 4) is None


@pytest.mark.usefixtures("library")
def test_a_box_beyond_the_image_is_refused():
    for box in ((0, 0, 65, 48), (0, 0, 64, 49), (-1, 0, 4, 4)):
        assert read_box(jpeg(64, 48), *box) is None


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("sampling", [0, 2])
def test_damage_never_brings_the_process_down(sampling):
    """Any bytes may be wrong: there are pixels or there are none, and the process lives."""
    whole, rng = jpeg(80, 60, "RGB", sampling, restart_marker_blocks=4), np.random.default_rng(0)
    answers = set()
    for _ in range(3000):
        data = np.frombuffer(whole, np.uint8).copy()
        where = rng.integers(2, len(data) - 2, rng.integers(1, 6))
        data[where] = rng.integers(0, 256, len(where))
        found = read_box(data.tobytes(), 3, 5, 70, 50)
        assert found is None or found.shape == (45, 67, 3)
        answers.add(found is None)
    assert answers == {True, False}


def test_with_and_without_the_library_the_pixels_are_the_same(library, monkeypatch):
    data = jpeg(120, 90, sampling=2)

    def cut():
        return decode_cut(data, lambda w, h: (11.3, 7.8, 99.6, 80.2))

    with_it = cut()
    monkeypatch.setattr(boxes, "_decoder", lambda: None)
    assert np.array_equal(with_it, cut())


@pytest.mark.usefixtures("no_library")
def test_it_can_be_switched_off():
    assert read_box(jpeg(64, 48), 0, 0, 4, 4) is None
