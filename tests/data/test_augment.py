"""What happens to training images: against closed forms and NumPy's own padding."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.data import Augment
from foveate.data.augment import Draw, erase, random_box, shift_and_flip
from foveate.errors import FoveateError


def photos(n: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def draw(n: int, epoch: int = 0, seed: int = 0) -> Draw:
    return Draw(seed, epoch, np.arange(n))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop", "random"),
        ("flip", "sometimes"),
        ("shift", -1),
        ("shift", 1.5),
        ("randaugment", -2),
        ("mixup", -0.1),
        ("cutmix", math.nan),
        ("mixup", math.inf),
        ("erase", 1.5),
        ("mix", -0.5),
        ("magnitude", 31),
        ("scale", (0.0, 1.0)),
        ("scale", (0.5, 1.2)),
        ("scale", (0.9, 0.5)),
        ("ratio", (-1.0, 1.0)),
    ],
)
def test_a_wrong_field_is_named(field, value):
    with pytest.raises(FoveateError, match=rf"augment\.{field} is"):
        Augment(**{field: value})


# ------------------------------------------------------------ shift and flip


@given(
    n=st.integers(0, 6),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    shift=st.integers(0, 5),
    flip=st.sampled_from([True, False, "alternate"]),
    epoch=st.integers(0, 5),
)
def test_each_image_is_a_window_of_its_reflection_padded_self(n, height, width, shift, flip, epoch):
    images = photos(n, height, width)
    augment = Augment(shift=shift, flip=flip)
    out = shift_and_flip(images, augment, draw(n, epoch))
    mirrored = draw(n, epoch).flips(flip)
    for image, result, mirror in zip(images, out, mirrored, strict=True):
        border = ((shift, shift), (shift, shift), (0, 0))
        padded = np.pad(image, border, mode="reflect")
        windows = [
            padded[y : y + height, x : x + width]
            for y in range(2 * shift + 1)
            for x in range(2 * shift + 1)
        ]
        result = result[:, ::-1] if mirror else result
        assert any(np.array_equal(result, window) for window in windows)


def test_every_shift_is_equally_likely():
    """A gradient image tells by its centre where it was shifted."""
    side, shift, n = 9, 2, 5000
    y, x = np.mgrid[:side, :side]
    image = np.stack([y, x, y * 0], axis=-1).astype(np.uint8)
    out = shift_and_flip(np.stack([image] * n), Augment(shift=shift, flip=False), draw(n))
    centres, counts = np.unique(out[:, 4, 4, :2], axis=0, return_counts=True)
    assert sorted(map(tuple, centres.tolist())) == [
        (a, b) for a in range(2, 7) for b in range(2, 7)
    ]
    assert np.abs(counts - n / 25).max() < 5 * np.sqrt(n / 25)


@given(index=st.integers(0, 10**9), epoch=st.integers(0, 10**6), seed=st.integers(0, 2**63))
def test_alternate_flip_mirrors_every_image_in_every_other_epoch(index, epoch, seed):
    flips = [
        Draw(seed, e, np.array([index])).flips("alternate")[0] for e in range(epoch, epoch + 4)
    ]
    assert flips[0] != flips[1]
    assert flips[:2] == flips[2:]


@pytest.mark.parametrize("flip", [True, "alternate"])
def test_half_the_images_are_mirrored(flip):
    n = 20_000
    assert abs(draw(n).flips(flip).mean() - 0.5) < 4 * 0.5 / np.sqrt(n)


def test_random_flips_differ_between_epochs_and_no_flip_never_mirrors():
    assert 0.4 < (draw(2000).flips(True) == draw(2000, epoch=1).flips(True)).mean() < 0.6
    assert not draw(2000).flips(False).any()


# ------------------------------------------------------------ random boxes


@given(
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
    shares=st.lists(st.floats(0, 1, exclude_max=True), min_size=4, max_size=4),
    low=st.floats(0.05, 1.0),
)
def test_a_random_box_lies_inside_and_is_no_larger_than_asked(width, height, shares, low):
    augment = Augment(crop="resized", scale=(low, 1.0))
    left, top, right, bottom = random_box(width, height, augment, np.array(shares))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    drawn = low + (1 - low) * shares[0]
    assert (right - left) * (bottom - top) <= drawn * width * height * (1 + 1e-9)


def test_boxes_that_fit_have_the_drawn_area_and_ratio():
    """Half the area at most leaves room for every ratio from 3/4 to 4/3 in a square."""
    augment = Augment(crop="resized", scale=(0.1, 0.5))
    boxes = np.array([random_box(100, 100, augment, row) for row in draw(20_000).crops()])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    areas, logs = w * h / 10_000, np.log(w / h)
    for values, low, high in ((areas, 0.1, 0.5), (logs, math.log(3 / 4), math.log(4 / 3))):
        assert low - 1e-9 <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high + 1e-9
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.01 * (high - low))
    assert np.mean(boxes[:, 0] / (100 - w)) == pytest.approx(0.5, abs=0.01)
    assert np.mean(boxes[:, 1] / (100 - h)) == pytest.approx(0.5, abs=0.01)


# ------------------------------------------------------------ erasing


def erased(n: int, side: int, probability: float) -> np.ndarray:
    """Where each image was changed: bool (n, side, side)."""
    images = np.zeros((n, side, side, 3), np.uint8)
    erase(images, Augment(erase=probability), draw(n))
    return images.any(axis=3)


def test_erasing_takes_the_asked_share_of_images_and_two_to_33_percent_of_their_area():
    changed = erased(1000, 40, 0.4)
    areas = changed.mean(axis=(1, 2))
    assert abs((areas > 0).mean() - 0.4) < 4 * np.sqrt(0.4 * 0.6 / 1000)
    assert areas[areas > 0].min() > 0.012
    assert areas.max() <= 0.33
    assert areas[areas > 0].mean() == pytest.approx(0.16, abs=0.02)


def test_an_erased_region_is_a_box_of_uniform_noise():
    for changed in erased(30, 40, 1.0):
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean() > 0.98
    images = np.zeros((200, 40, 40, 3), np.uint8)
    erase(images, Augment(erase=1.0), draw(200))
    noise = images[images.any(axis=3)]
    assert noise.mean() == pytest.approx(127.5, abs=1)
    assert abs(np.corrcoef(noise[:, 0], noise[:, 1])[0, 1]) < 0.02


def test_no_image_is_erased_at_probability_zero():
    assert not erased(100, 16, 0.0).any()


@settings(max_examples=30)
@given(n=st.integers(0, 4), height=st.integers(1, 20), width=st.integers(1, 20))
def test_erasing_works_at_every_size(n, height, width):
    images = photos(n, height, width)
    erase(images, Augment(erase=1.0), draw(n))
    assert images.shape == (n, height, width, 3)
