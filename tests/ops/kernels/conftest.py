"""Each kernel is tested in each library that this processor can run."""

import pytest
import torch

from foveate.ops.kernels import native

RUNS = {"x86-64-v4": {"AVX512"}, "x86-64-v3": {"AVX512", "AVX2"}}


@pytest.fixture(params=list(RUNS))
def library(request, monkeypatch) -> str:
    """The library of one instruction set, for the length of a test."""
    if torch.backends.cpu.get_cpu_capability() not in RUNS[request.param]:
        pytest.skip(f"this processor has no {request.param}")
    with use(request.param, monkeypatch):
        if native.level() is None:
            pytest.skip("this build has no kernels")
        yield request.param


@pytest.fixture
def no_kernels(monkeypatch):
    """As on a machine for which there are no kernels."""
    with use("off", monkeypatch):
        yield


class use:  # noqa: N801 - reads as a verb
    """Insist on a level, or on none."""

    def __init__(self, name, monkeypatch):
        self.name, self.monkeypatch = name, monkeypatch

    def __enter__(self):
        self.monkeypatch.setenv(native.OFF, self.name)
        self._forget()

    def __exit__(self, *error):
        self.monkeypatch.delenv(native.OFF)
        self._forget()

    def _forget(self):
        native.level.cache_clear()
        native._library.cache_clear()


@pytest.fixture
def agrees():
    """Compare a kernel with its twin in float64: outputs, and gradients of all arguments."""

    def compare(kernel, twin, arguments, tolerance=3e-6):
        ours = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in arguments]
        theirs = [t.detach().double().requires_grad_() for t in arguments]
        y, expected = kernel(*ours), twin(*theirs)
        assert y.grad_fn.name().startswith("_"), "the kernel did not run"
        gradient = torch.randn_like(expected)
        pairs = [(y, expected)]
        pairs += zip(
            torch.autograd.grad(y, ours, gradient.to(y.dtype)),
            torch.autograd.grad(expected, theirs, gradient),
            strict=True,
        )
        for a, b in pairs:
            assert a.shape == b.shape
            scale = b.abs().max().item() or 1.0
            torch.testing.assert_close(a.double(), b, rtol=0, atol=tolerance * scale)

    return compare


@pytest.fixture(params=[torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def maps(request):
    """Random maps in one of the layouts."""

    def make(*shape, dtype=torch.float32):
        return torch.randn(shape, dtype=dtype).contiguous(memory_format=request.param)

    return make
