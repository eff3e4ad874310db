"""The kernels for GPUs, in Triton, under the names of their twins.

Triton is imported by the first kernel that is used, never before: ask `runs_on` first.
Every kernel differentiates, the convolutions twice, works under torch.compile (each is a custom
operator), takes float16, bfloat16, float32 and float64, adds up in float32 (float64 for float64),
and gives the same bits in every run: sums over many programs go through partial sums that are
added in order, never through atomic additions, and tiles are chosen by formula, never by stopwatch.

What is missing is missing on purpose. GELU is one read and one write, at the memory's speed and
in both layouts, in PyTorch's own kernel. A partial convolution is a dense one. The fused
tail of a block (norm, 1x1, GELU, 1x1) would save an H100 the hidden map's traffic, which
outweighs the products below some 400 channels, but its products must first match cuBLAS's, and
that is decided by measuring, not by reasoning.
"""

import importlib
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from foveate.ops.kernels.triton.depthwise import depthwise_conv2d
    from foveate.ops.kernels.triton.inception import inception_mix
    from foveate.ops.kernels.triton.layer_norm import layer_norm_channels
    from foveate.ops.kernels.triton.shifts import shift

_HOMES = {
    "depthwise_conv2d": "depthwise",
    "inception_mix": "inception",
    "layer_norm_channels": "layer_norm",
    "shift": "shifts",
}

__all__ = ["depthwise_conv2d", "inception_mix", "layer_norm_channels", "runs_on", "shift"]


def runs_on(x: "Tensor") -> bool:
    """Whether these kernels can take a tensor: it is on a GPU, or the interpreter is asked for.

    The interpreter runs them on CPUs, slowly, to check them: set TRITON_INTERPRET=1 before
    anything imports Triton (timm does).
    """
    asked_for = x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
    return asked_for and x.is_floating_point() and find_spec("triton") is not None


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
