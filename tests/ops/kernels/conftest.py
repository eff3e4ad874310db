"""How kernels are compared with their twins."""

from importlib import import_module

import pytest
import torch

from foveate.ops.kernels import depthwise

BATCH_NORM = import_module("foveate.ops.kernels.batch_norm")  # of the package it is the function

MEASURED = depthwise.pays


@pytest.fixture(autouse=True)
def _kernels_run_where_they_do_not_pay(monkeypatch):
    """So that small maps test them."""
    monkeypatch.setattr(depthwise, "pays", lambda *arguments: True)
    monkeypatch.setattr(BATCH_NORM, "LEAST", 0)
    monkeypatch.setattr(BATCH_NORM, "FEW", 1 << 20)


@pytest.fixture(autouse=True)
def _the_same_numbers_every_time():
    torch.manual_seed(0)


@pytest.fixture
def measured_choice(monkeypatch):
    """Kernels run where they pay, as they do outside of tests."""
    monkeypatch.setattr(depthwise, "pays", MEASURED)


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
            scale = max(b.abs().max().item(), 1.0)
            torch.testing.assert_close(a.double(), b, rtol=0, atol=tolerance * scale)

    return compare


@pytest.fixture(params=[torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def maps(request):
    """Random maps in one of the layouts."""

    def make(*shape, dtype=torch.float32):
        return torch.randn(shape, dtype=dtype).contiguous(memory_format=request.param)

    return make
