"""VisionModel: any layout of images, normalised once and inside."""

import numpy as np
import pytest
import torch
from torch import nn

from foveate import FoveateError, Preprocess, VisionModel


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VisionModel.create("sprint_s", ["a", "b", "c"], size=16).eval()


def test_bytes_and_floats_in_any_layout_are_the_same(model):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    maps = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    expected = model(maps)
    for same in (pixels, maps / 255, pixels.astype(np.float32) / 255, maps.contiguous()):
        torch.testing.assert_close(model(same), expected)
    torch.testing.assert_close(model(pixels[0]), expected[:1], atol=1e-5, rtol=1e-4)


def test_normalisation_is_inside():
    seen = VisionModel(nn.Identity(), Preprocess(size=2, mean=(0.5,) * 3, std=(0.25,) * 3), ["a"])
    torch.testing.assert_close(seen(torch.ones(1, 3, 2, 2)), torch.full((1, 3, 2, 2), 2.0))


def test_other_sizes_are_scaled_inside(model):
    flat = torch.full((1, 3, 40, 24), 200, dtype=torch.uint8)
    torch.testing.assert_close(model(flat), model(flat[..., :16, :16]))


@pytest.mark.parametrize("shape", [(16, 16), (1, 1, 16, 16), (2, 3, 4, 5, 6)])
def test_what_is_no_image_is_refused(model, shape):
    with pytest.raises(FoveateError, match="RGB"):
        model(torch.zeros(shape))


def test_integers_beyond_bytes_are_refused(model):
    with pytest.raises(FoveateError, match="int64"):
        model(torch.zeros(1, 3, 16, 16, dtype=torch.int64))


@pytest.mark.parametrize(
    "field", [{"size": 0}, {"size": 8, "std": (1, 0, 1)}, {"size": 8, "crop": 0}]
)
def test_impossible_preprocessing(field):
    with pytest.raises(FoveateError):
        Preprocess(**field)


def test_preprocess_round_trip():
    fields = Preprocess(size=20, mean=(0.1, 0.2, 0.3), crop=0.9)
    assert Preprocess.from_json(fields.to_json()) == fields
