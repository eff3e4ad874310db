"""What every test shares: quiet threads, and the real images and weights where they are at hand."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # which reads the number of threads when it is imported

if not torch.cuda.is_available():
    # Without a GPU, Triton's kernels run in its interpreter: to be said before timm imports it.
    os.environ.setdefault("TRITON_INTERPRET", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real images and trained networks beside the checkout; skips where they are absent."""
    if not SHARED.is_dir():
        pytest.skip("the shared images and weights are not on this machine")
    return SHARED
