"""What every test shares: quiet threads, and the real images and weights where they are at hand."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # which reads the number of threads when it is imported

from foveate import compiled, memory
from foveate.ops.kernels import native

if not torch.cuda.is_available():
    # Without a GPU, Triton's kernels run in its interpreter: to be said before timm imports it.
    os.environ.setdefault("TRITON_INTERPRET", "1")

RUNS = {"x86-64-v4": {"AVX512"}, "x86-64-v3": {"AVX512", "AVX2"}}
"""The capabilities of processors that run the compiled libraries of each level."""

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _memory_as_it_was():
    """Loading a model to predict keeps memory for good: here until the test ends."""
    yield
    if memory.is_kept():
        memory.restore()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real images and trained networks beside the checkout; skips where they are absent."""
    if not SHARED.is_dir():
        pytest.skip("the shared images and weights are not on this machine")
    return SHARED


@pytest.fixture(scope="session")
def taught():
    """Train a model on digits for some epochs, in a folder: `taught(model, digits, 3, folder)`."""
    from foveate.data import Augment
    from foveate.train import Recipe, train

    def teach(model, digits, epochs, folder):
        recipe = Recipe(
            epochs=epochs,
            batch_size=64,
            optimizer="sgd",
            learning_rate=0.1,
            weight_decay=5e-4,
            augment=Augment(shift=1, flip=False),
        )
        train(model, digits, recipe, folder, progress=False)
        return model

    return teach


@pytest.fixture(params=list(RUNS))
def library(request, monkeypatch):
    """The compiled libraries of one instruction set, for the length of a test."""
    if torch.backends.cpu.get_cpu_capability() not in RUNS[request.param]:
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setenv(compiled.VARIABLE, request.param)
    compiled.forget()
    if native.level() is None:
        pytest.skip("this build has no compiled libraries")
    yield request.param
    monkeypatch.delenv(compiled.VARIABLE)
    compiled.forget()


@pytest.fixture
def no_library(monkeypatch):
    """As on a machine for which nothing is compiled."""
    monkeypatch.setenv(compiled.VARIABLE, "off")
    compiled.forget()
    yield
    monkeypatch.delenv(compiled.VARIABLE)
    compiled.forget()
