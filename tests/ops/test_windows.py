"""Windows hold the places that they say, and come back in order."""

import pytest
import torch

from foveate.ops.windows import fold, pad_to_windows, unfold


@pytest.mark.parametrize("spanned", [False, True])
def test_there_and_back(spanned):
    x = torch.randn(2, 6, 8, 12)
    folded = fold(x, 4, 3, spanned)
    assert folded.shape == (2 * 2 * 3, 3, 16, 2)
    assert torch.equal(unfold(folded, (8, 12), 4, spanned), x)


def test_which_places():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert fold(x, 2, 1)[1].flatten().tolist() == [2, 3, 6, 7]
    assert fold(x, 2, 1, spanned=True)[1].flatten().tolist() == [1, 3, 9, 11]


def test_padding():
    assert pad_to_windows(torch.zeros(1, 1, 5, 8), 4).shape == (1, 1, 8, 8)
