"""What analysis.npz holds: the right mistakes, with pictures and maps that belong together."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from foveate.report import analyse


class Split:
    """Images of any size; each one's brightness is its index."""

    def __init__(self, n: int = 12, shape: tuple[int, int] = (20, 30)) -> None:
        self.targets = np.arange(n) % 3
        self.names = [f"{i}.png" for i in range(n)]
        self.shape = shape

    def __len__(self) -> int:
        return len(self.targets)

    def read(self, i: int) -> np.ndarray:
        return np.full((*self.shape, 3), i, np.uint8)


class Model(nn.Module):
    """The least that a VisionModel is."""

    def __init__(self, size: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.preprocess = SimpleNamespace(size=size)
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.net(x.float() / 255).flatten(1))


@pytest.fixture
def logits() -> np.ndarray:
    """Right everywhere but at 4, 7 and 9; surest at 7, then 4, then 9."""
    logits = 5 * np.eye(3, dtype=np.float32)[np.arange(12) % 3]
    for i, sure in [(4, 6.0), (7, 8.0), (9, 3.0)]:
        logits[i] = 0
        logits[i, (i + 1) % 3] = sure
    return logits


def test_keeps_the_surest_mistakes(logits):
    found = analyse(Model(), logits, Split(), worst=2)
    assert found["worst_index"].tolist() == [7, 4]
    assert found["worst_names"].tolist() == ["7.png", "4.png"]
    assert found["worst_images"].shape == (2, 16, 16, 3)
    assert found["worst_images"].max(axis=(1, 2, 3)).tolist() == [7, 4]
    assert found["worst_saliency"].shape == (2, 16, 16)
    assert 0 <= found["worst_saliency"].min() <= found["worst_saliency"].max() <= 1


def test_shows_some_of_each_class(logits):
    found = analyse(Model(), logits, Split(), samples_per_class=2)
    assert found["sample_targets"].tolist() == [0, 0, 1, 1, 2, 2]
    assert found["samples"].max(axis=(1, 2, 3)).tolist() == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize(("shape", "size", "side"), [((8, 8), 16, 8), ((300, 200), 224, 96)])
def test_thumbnails_are_never_enlarged(logits, shape, size, side):
    found = analyse(Model(size), logits, Split(shape=shape))
    assert found["samples"].shape[1:] == (side, side, 3)
    assert found["worst_saliency"].shape[1:] == (side, side)


def test_no_mistakes_leave_empty_arrays(logits, tmp_path):
    right = 5 * np.eye(3, dtype=np.float32)[np.arange(12) % 3]
    found = analyse(Model(), right, Split())
    assert len(found["worst_index"]) == len(found["worst_images"]) == 0
    np.savez(tmp_path / "analysis.npz", **found)
    with np.load(tmp_path / "analysis.npz", allow_pickle=False) as kept:
        assert all(kept[name].shape == found[name].shape for name in found)
