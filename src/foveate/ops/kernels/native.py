"""The compiled kernels, and when a tensor may go through them.

The sources are beside this file, in `native/`; their loops run on PyTorch's own threads.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor  # pyright: ignore

from foveate import compiled

FOLDER = Path(__file__).parent / "native"
DTYPES = (torch.float32, torch.bfloat16)

_Loop = ctypes.c_void_p


class View(ctypes.Structure):
    """A tensor of maps as the kernels see it: memory, and strides in elements."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("n", "c", "h", "w")),
    )


def level() -> str | None:
    """The level of instruction sets whose kernels are used, or None where none can be."""
    usable = compiled.library(FOLDER) is not None and _loop() is not None
    return compiled.level() if usable else None


@cache
def _loop() -> _Loop | None:
    """PyTorch's parallel loop, from its stable C interface (2.10 and later)."""
    try:
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return ctypes.cast(torch_cpu.torch_parallel_for, _Loop)
    except (OSError, AttributeError):
        return None


def call(name: str, *arguments: object) -> None:
    """Run a kernel. Raises: MemoryError where it found no memory."""
    if getattr(compiled.library(FOLDER), name)(*arguments, _loop()):
        raise MemoryError(f"no memory for {name}")


def pointer(x: Tensor | None) -> int | None:
    """Where a dense tensor lies; None for none."""
    return None if x is None else x.data_ptr()


def able(*tensors: Tensor | None) -> bool:
    """Whether kernels can take these tensors here and now.

    They can't where PyTorch watches operations (tracing, compiling, counting,
    transforms, forward-mode gradients), since it would not see them.
    """
    return (
        level() is not None
        and all(t is None or _is_plain(t) for t in tensors)
        and not torch.compiler.is_compiling()
        and not torch._C._get_tracing_state()
        and not torch._C._len_torch_dispatch_stack()
        and torch.autograd.forward_ad._current_level < 0
    )


def _is_plain(x: Tensor) -> bool:
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and x.device.type == "cpu"
        and x.dtype in DTYPES
        and not is_functorch_wrapped_tensor(x)
        and not (x.is_conj() or x.is_neg())
    )


def learns(*tensors: Tensor | None) -> bool:
    """Whether gradients of any of these will be asked for."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def dense(x: Tensor) -> Tensor:
    """Maps as they are if their memory is dense in either layout, else a contiguous copy."""
    if x.is_contiguous(memory_format=torch.channels_last) or x.is_contiguous():
        return x
    return x.contiguous()


def like(x: Tensor, shape: Sequence[int]) -> Tensor:
    """New maps of another shape in the layout and type of `x`."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=x.dtype, memory_format=layout)
