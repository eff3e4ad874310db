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
from triton.runtime import driver

from foveate.ops.kernels import triton as kernels
from foveate.ops.kernels.triton import depthwise, inception, layer_norm, shifts, weight_gradient

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class H100:
    """What Triton asks of a GPU before it runs something."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def main() -> None:
    driver.set_active(H100())
    for module in (depthwise, inception, layer_norm, shifts, weight_gradient):
        module.launch = compile_instead
    for dtype in (torch.float32, torch.bfloat16):
        for layout in (torch.contiguous_format, torch.channels_last):
            for batch, channels, side in ((2, 96, 56), (2, 384, 14), (1, 8, 1)):
                use_all(batch, channels, side, dtype, layout)


def use_all(
    batch: int, channels: int, side: int, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    """Call every kernel forward and backward; what they return is not filled."""

    def learnt(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, requires_grad=True)

    def learn(y: Tensor) -> None:
        y.backward(torch.empty_like(y))

    x = learnt(batch, channels, side, side).detach().to(memory_format=layout).requires_grad_()
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
    """Stand in for `launch`: all that it does but the run."""
    constants["enable_fp_fusion"] = True
    program = kernel.warmup(*arguments, grid=(programs,), **constants)
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
