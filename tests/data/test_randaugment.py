"""RandAugment's operations against torchvision's own, and its choices."""

import numpy as np
import pytest
import torch

from foveate.data.augment import Draw
from foveate.data.randaugment import _FILL, _operations, randaugment

SIGNED = (
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
)


@pytest.fixture(scope="module")
def theirs():
    from torchvision.transforms import InterpolationMode, v2

    transform = v2.RandAugment(fill=_FILL)

    def apply(image: torch.Tensor, name: str, magnitude: int, sign: int) -> torch.Tensor:
        space, signed = transform._AUGMENTATION_SPACE[name]
        values = space(31, *image.shape[-2:])
        value = 0.0 if values is None else float(values[magnitude]) * (sign if signed else 1)
        return transform._apply_image_or_video_transform(
            image, name, value, InterpolationMode.NEAREST, transform._fill
        )

    return apply


def photos(n: int = 6, height: int = 20, width: int = 24) -> torch.Tensor:
    noise = np.random.default_rng(0).normal(size=(n, 3, height, width)).cumsum(2).cumsum(3)
    noise -= noise.min((2, 3), keepdims=True)
    scaled = 30 + 190 * noise / noise.max((2, 3), keepdims=True)
    return torch.from_numpy(scaled.astype(np.uint8))


def test_the_fourteen_operations_are_torchvisions():
    from torchvision.transforms import v2

    assert list(_operations()) == list(v2.RandAugment._AUGMENTATION_SPACE)


@pytest.mark.parametrize("name", list(_operations()))
@pytest.mark.parametrize("magnitude", [0, 3, 9, 17, 30])
@pytest.mark.parametrize("sign", [-1, 1])
def test_an_operation_equals_torchvisions_image_for_image(theirs, name, magnitude, sign):
    images = photos()
    ours = _operations()[name](images, magnitude / 30, sign)
    expected = torch.stack([theirs(image, name, magnitude, sign) for image in images])
    assert ours.dtype == torch.uint8
    assert (ours.int() - expected.int()).abs().max() <= 1
    assert (ours != expected).float().mean() < 0.01  # a rounding of float32 against float64


@pytest.mark.parametrize("name", SIGNED)
def test_a_sign_changes_the_direction(name):
    operation = _operations()[name]
    assert not torch.equal(operation(photos(), 0.5, 1), operation(photos(), 0.5, -1))


def test_an_image_is_changed_alike_alone_and_in_company():
    images = photos(40)
    together = randaugment(images, 3, 12, Draw(5, 2, np.arange(40)))
    alone = [randaugment(images[i : i + 1], 3, 12, Draw(5, 2, np.array([i]))) for i in range(40)]
    assert torch.equal(together, torch.cat(alone))


def test_no_operations_leave_the_images():
    images = photos()
    assert torch.equal(randaugment(images, 0, 9, Draw(0, 0, np.arange(6))), images)


def test_every_operation_and_sign_comes_up(monkeypatch):
    seen = set()
    record = {
        name: lambda x, s, sign, name=name: (seen.add((name, sign)), x)[1] for name in _operations()
    }
    monkeypatch.setattr("foveate.data.randaugment._operations", lambda: record)
    randaugment(photos().repeat(100, 1, 1, 1), 2, 9, Draw(0, 0, np.arange(600)))
    assert seen == {(name, sign) for name in record for sign in (-1, 1)}


def test_choices_differ_between_epochs():
    images = photos()
    outs = [randaugment(images, 2, 9, Draw(0, epoch, np.arange(6))) for epoch in (0, 0, 1)]
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])
