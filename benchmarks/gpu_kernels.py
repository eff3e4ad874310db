"""Time the Triton kernels against PyTorch's own operators, eager and compiled, on a GPU.

    python benchmarks/gpu_kernels.py [KERNEL ...]

Forward, and forward and backward, in float32 and bfloat16 at the sizes of a first and a third
stage. All sides of a row take turns, each in the memory layout in which it is faster here, and a
turn is ten calls, so that the GPU and not the launching is timed. Ratios above 1 say that ours
takes less time. `floor` is the time of one copy of the map, which no side can be under.
"""

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from asked import asked
from torch import Tensor
from torch.nn import functional as F

from foveate import FoveateError
from foveate.measure import machine, paired, side_by_side
from foveate.ops.kernels import triton as kernels
from foveate.ops.kernels.inception import plain_inception_mix
from foveate.ops.kernels.layer_norm import plain_layer_norm_channels

RESULTS = Path(__file__).with_suffix(".json")
SHAPES = ((128, 96, 56, 56), (128, 384, 14, 14))
DTYPES = (torch.float32, torch.bfloat16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
CALLS = 10

Operator = Callable[..., Tensor]
Made = tuple[Operator, Operator, Callable[[int], Sequence[tuple[int, ...]]]]
"""Ours, PyTorch's, and the shapes of what they learn for so many channels."""


def main() -> None:
    sides = operators()
    named = asked(__doc__, known=sides)
    if not torch.cuda.is_available():
        raise FoveateError(
            "this times kernels for GPUs, and PyTorch sees none: run it where one is"
        )
    torch.backends.cudnn.benchmark = True
    known = json.loads(RESULTS.read_text("utf-8")) if named and RESULTS.exists() else {}
    found = {"machine": machine(), "rows": known.get("rows", {})}
    for name in named or sides:
        found["rows"][name] = [
            row(name, sides[name], shape, dtype, kind)
            for shape in SHAPES
            for dtype in DTYPES
            for kind in (forward, training)
        ]
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def row(name: str, made: Made, shape: tuple[int, ...], dtype: torch.dtype, kind: Callable) -> dict:
    """Milliseconds of ours, PyTorch's and the compiled one, and the ratios of theirs to ours."""
    ours, theirs, learnt = made
    torch._dynamo.reset()
    sides = {"ours": ours, "eager": theirs, "compiled": torch.compile(theirs)}
    inputs = [draw(*s, dtype=dtype) for s in learnt(shape[1])]
    calls = {side: fastest(partial(kind, op), shape, inputs) for side, op in sides.items()}
    times = side_by_side(calls, seconds=1.0)
    ratios = {side: paired(calls[side], calls["ours"]) for side in ("eager", "compiled")}
    x = torch.empty(shape, dtype=dtype, device="cuda")
    copy = side_by_side({"copy": partial(repeat, partial(x.clone().copy_, x))}, seconds=0.5)["copy"]
    told = {
        "shape": shape,
        "dtype": str(dtype).removeprefix("torch."),
        "kind": kind.__name__,
        "milliseconds": {side: 1e3 * t.median / CALLS for side, t in times.items()},
        "floor": 1e3 * copy.median / CALLS,
        "ratios": {side: [r.median, r.low, r.high] for side, r in ratios.items()},
    }
    against = ", ".join(
        f"{side} {r.median:.2f}x ({r.low:.2f} to {r.high:.2f})" for side, r in ratios.items()
    )
    print(
        f"{name:<16} {'x'.join(map(str, shape)):<14} {told['dtype']:<9} {told['kind']:<9} {against}"
    )
    return told


def draw(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, dtype=dtype, device="cuda", requires_grad=True)


def fastest(call: Callable, shape: tuple[int, ...], inputs: Sequence[Tensor]) -> Callable[[], None]:
    """The call, ten times over, on maps in the layout in which it takes less time."""
    x = draw(*shape, dtype=inputs[0].dtype).detach()
    calls = {}
    for layout in LAYOUTS:
        maps = x.contiguous(memory_format=layout).requires_grad_()
        calls[str(layout)] = partial(repeat, partial(call, maps, *inputs))
    times = side_by_side(calls, seconds=0.3)
    return calls[min(times, key=lambda layout: times[layout].median)]


def repeat(call: Callable[[], object]) -> None:
    for _ in range(CALLS):
        call()
    torch.cuda.synchronize()


def forward(operator: Operator, *inputs: Tensor) -> None:
    with torch.inference_mode():
        operator(*inputs)


def training(operator: Operator, *inputs: Tensor) -> None:
    y = operator(*inputs)
    torch.autograd.grad(y, inputs, torch.ones_like(y))


def depthwise(kernel: tuple[int, int]) -> Made:
    padding = kernel[0] // 2, kernel[1] // 2

    def theirs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, padding=padding, groups=x.shape[1])

    ours = partial(kernels.depthwise_conv2d, padding=padding)
    return ours, theirs, lambda channels: ((channels, 1, *kernel), (channels,))


def inception_shapes(channels: int) -> list[tuple[int, ...]]:
    part = channels // 8
    return [s for k in ((3, 3), (1, 11), (11, 1)) for s in ((part, 1, *k), (part,))]


def operators() -> dict[str, Made]:
    sizes = (3, 3), (7, 7), (31, 31), (1, 11), (11, 1)
    return {
        **{f"depthwise_{high}x{wide}": depthwise((high, wide)) for high, wide in sizes},
        "inception_mix": (kernels.inception_mix, plain_inception_mix, inception_shapes),
        "layer_norm": (
            kernels.layer_norm_channels,
            plain_layer_norm_channels,
            lambda c: ((c,), (c,)),
        ),
    }


if __name__ == "__main__":
    try:
        main()
    except FoveateError as error:
        sys.exit(f"error: {error}")
