"""Compile for an H100 what every kernel launches at real sizes, and report what each needs.

Run by test_triton_compiles_for_h100.py in a process of its own, because kernels that the
interpreter has taken can't be compiled. Prints a JSON line a launch: its name, registers, and bytes
of local memory, where registers that did not fit are spilled.
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from foveate.ops.kernels import triton as kernels
from foveate.ops.kernels.triton import depthwise, inception, layer_norm, shifts, weight_gradient

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32"}


def main() -> None:
    for module in (depthwise, inception, layer_norm, shifts, weight_gradient):
        module.launch = compile_instead
    for dtype in (torch.float32, torch.bfloat16):
        for layout in (torch.contiguous_format, torch.channels_last):
            for channels, side in ((96, 56), (384, 14)):
                use_all(channels, side, dtype, layout)


def use_all(channels: int, side: int, dtype: torch.dtype, layout: torch.memory_format) -> None:
    """Call every kernel forward and backward; what they return is not filled."""

    def learnt(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, requires_grad=True)

    def learn(y: Tensor) -> None:
        y.backward(torch.empty_like(y))

    x = learnt(2, channels, side, side).detach().to(memory_format=layout).requires_grad_()
    for kernel in ((7, 7), (1, 11), (11, 1)):
        padding = kernel[0] // 2, kernel[1] // 2
        weight = learnt(channels, 1, *kernel)
        learn(kernels.depthwise_conv2d(x, weight, learnt(channels), padding=padding))
    learn(kernels.depthwise_conv2d(x, learnt(channels, 1, 3, 3), None, (2, 2), (1, 1)))
    part = channels // 8
    shapes = ((part, 1, 3, 3), (part,), (part, 1, 1, 11), (part,), (part, 1, 11, 1), (part,))
    learn(kernels.inception_mix(x, *(learnt(*shape) for shape in shapes)))
    learn(kernels.layer_norm_channels(x, learnt(channels), learnt(channels)))
    learn(kernels.shift(x, torch.zeros(channels, 2, dtype=torch.int32)))


def compile_instead(kernel, programs: int, where: Tensor, *arguments, **constants) -> None:
    """Stand in for `launch`: compile the kernel as it would be for these arguments."""
    signature, fixed, attributes = {}, {}, {}

    def kind(value, path):
        """Triton's name for an argument; what it would specialise on goes into the others."""
        if isinstance(value, tuple):
            return tuple(kind(part, (*path, i)) for i, part in enumerate(value))
        if isinstance(value, float):
            return "fp32"
        if value is None or (isinstance(value, int) and value == 1):
            fixed[path] = value
            return "constexpr"
        if isinstance(value, Tensor) or value % 16 == 0:
            attributes[path] = [["tt.divisibility", 16]]
        return POINTERS[value.dtype] if isinstance(value, Tensor) else "i32"

    values = dict(zip(kernel.arg_names, arguments, strict=False)) | constants
    for i, name in enumerate(kernel.arg_names):
        if kernel.params[i].is_constexpr:
            signature[name], fixed[(i,)] = "constexpr", values[name]
        else:
            signature[name] = kind(values[name], (i,))
    options = {"num_warps": constants.get("num_warps", 4), "enable_fp_fusion": True}
    source = ASTSource(kernel, signature, fixed, attributes)
    program = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    print(json.dumps({"kernel": kernel.__name__} | needs(program.asm["cubin"])), flush=True)


def needs(program: bytes) -> dict[str, int]:
    """Registers of a thread, and bytes a thread of stack and local memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(program)
        file.flush()
        command = [TOOLS / "cuobjdump", "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage))
    return {"registers": int(found["REG"]), "spilled": int(found["STACK"]) + int(found["LOCAL"])}


if __name__ == "__main__":
    main()
