"""Triton stays outside until one of its kernels is used."""

import subprocess
import sys

import pytest
import torch

from foveate.ops.kernels import triton as kernels


def test_the_door_opens_without_triton():
    code = (
        "import sys, types; from foveate.ops.kernels import triton as kernels; "
        "x = types.SimpleNamespace(is_cuda=True, is_floating_point=lambda: True); "
        "print(kernels.runs_on(x), 'triton' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"


def test_a_cpu_runs_them_only_if_the_interpreter_is_asked_for(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not kernels.runs_on(torch.zeros(1))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert kernels.runs_on(torch.zeros(1))
    assert not kernels.runs_on(torch.zeros(1, dtype=torch.int32))


def test_every_name_leads_to_a_kernel():
    for name in kernels.__all__:
        assert callable(getattr(kernels, name))
    with pytest.raises(AttributeError, match="has no attribute 'gelu'"):
        _ = kernels.gelu
