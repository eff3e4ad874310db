"""Scaling for training, against Pillow's."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from foveate.data.scale import centre, resize, resize_batch, stretch


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def stretched(image: np.ndarray, size: int, flip: bool = False) -> np.ndarray:
    out = np.empty((size, size, 3), np.uint8)
    stretch(image, size, flip, out)
    return out


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 90), width=st.integers(1, 90), size=st.integers(1, 90))
def test_stretching_is_pillows_bicubic(height, width, size):
    """Short of black and white, where overshoots are clipped after each pass or at the end."""
    image = noise(height, width) // 2 + 64
    expected = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    assert np.abs(stretched(image, size) - np.asarray(expected, int)).max() <= 2


@pytest.mark.parametrize("size", [1, 12, 105, 224])
def test_a_flip_mirrors_what_comes_out(size):
    image = noise(70, 50)
    assert np.array_equal(stretched(image, size, True), stretched(image, size)[:, ::-1])


def test_a_window_of_a_larger_image_needs_no_copy():
    image = noise(80, 90)
    cut = image[7:60, 11:71]
    assert np.array_equal(stretched(cut, 32), stretched(cut.copy(), 32))


def test_an_image_of_the_size_stays_as_it_is():
    image = noise(32, 32)
    assert np.array_equal(stretched(image, 32), image)


def test_many_threads_stretch_to_the_same_bits():
    """Torch may have a pool of its own; what comes out must not depend on it."""
    image, found = noise(301, 407), {}
    alone = stretched(image, 224, True)

    def work(i: int) -> None:
        found[i] = stretched(image, 224, True)

    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        torch.set_num_threads(before)
    assert len(found) == 4
    assert all(np.array_equal(image, alone) for image in found.values())


def test_the_centre_is_a_square_in_the_middle():
    assert centre(30, 20) == (5, 0, 25, 20)
    assert centre(20, 40, 0.5) == (5, 15, 15, 25)


def test_batches_are_resized_as_single_images_are():
    images = np.stack([noise(20, 30), noise(20, 30)[::-1]])
    expected = [resize(Image.fromarray(image), 12, 0.8) for image in images]
    assert np.array_equal(resize_batch(images, 12, 0.8), np.stack(expected))
