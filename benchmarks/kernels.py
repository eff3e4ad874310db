"""The kernels against PyTorch's operators and timm's modules.

python benchmarks/kernels.py             # all
python benchmarks/kernels.py "7x7"       # the rows whose name has this in it
"""

import sys
import timeit
from collections.abc import Callable, Sequence
from functools import partial

import torch
from asked import asked, picked
from results import Benchmark, Row, interval, of_this_processor
from timm.layers.norm import LayerNorm2d
from timm.models.inception_next import InceptionDWConv2d
from torch import Tensor, nn
from torch.nn import functional as F

from foveate import memory
from foveate.measure import ceilings, paired, side_by_side
from foveate.ops.kernels import (
    batch_norm,
    depthwise_conv2d,
    gelu,
    inception_mix,
    layer_norm_channels,
    mlp,
    native,
)
from foveate.ops.kernels.depthwise import convolve, part

SAYS = """\
float32, batch 32, forward pass, or forward and backward pass with the gradients of everything.
Sides take turns in one process, on all cores, with the same allocator settings (freed memory is
kept); each side has the layout in which it is faster, of those that the row allows. A mark that
was set against PyTorch with glibc's own settings may be out of reach here: the note says what
nothing can be faster than, which is the longer of two times. One is for reading and writing each
map once, at the pace of our quickest copy (past the caches, where it is large); the other for the
multiply-adds inside the map, at the pace of the largest matrix product. Neither counts Python's
part, some tens of microseconds where there are gradients."""

LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
MAPS = ((96, 56), (384, 14))
Function = Callable[..., Tensor]


def main() -> None:
    wanted = asked(__doc__)
    if native.level() is None:
        sys.exit("this build of Foveate has no kernels: install it anew on Linux, x86-64")
    memory.keep()
    rows: dict[str, Callable[[], Row]] = {}

    def add(
        what: str,
        peer: str,
        ours: Function,
        theirs: Function,
        tensors: Sequence[Tensor],
        *,
        both: float | None = None,
        forward: float | None = None,
        layouts: Sequence[str] = tuple(LAYOUTS),
        macs: float = 0,
    ) -> None:
        """Rows to be measured, for the forward pass and for both; the figures are marks.

        `macs` are the multiply-adds of one forward pass.
        """
        for kind, mark in (("forward", forward), ("forward and backward", both)):
            line, backward = f"{what}, {kind}", kind != "forward"
            told = line, peer, (ours, theirs), tensors, layouts, backward, mark, macs
            rows[line] = partial(measured, *told)

    for channels, side in MAPS:
        x = torch.randn(32, channels, side, side)
        at = f"{channels}x{side}x{side}"
        for kernel, mark in (((3, 3), None), ((7, 7), 4 if side == 56 else 5), ((31, 31), 10)):
            add(
                f"depthwise {kernel[0]}x{kernel[1]}, {at}",
                "PyTorch",
                *convolutions(kernel, channels),
                (x, torch.randn(channels, 1, *kernel), torch.randn(channels)),
                both=mark,
                macs=multiply_adds(x, kernel),
            )
        eighth = x[:, : channels // 8].contiguous()
        for kernel in ((1, 11), (11, 1)):
            add(
                f"depthwise {kernel[0]}x{kernel[1]} on an eighth, {at}",
                "PyTorch",
                *convolutions(kernel, channels // 8),
                (eighth, torch.randn(channels // 8, 1, *kernel), torch.randn(channels // 8)),
                both=3,
                macs=multiply_adds(eighth, kernel),
            )
        mixer = InceptionDWConv2d(channels)
        weights = [p.detach().clone() for p in mixer.parameters()]
        first = side == MAPS[0][1]
        add(
            f"Inception mixer, {at}",
            "timm",
            inception_mix,
            lambda x, *w, m=mixer: torch.func.functional_call(m, named(m, w), (x,)),
            (x, *weights),
            forward=4 if first else None,
            both=3 if first else None,
            macs=sum(multiply_adds(eighth, k) for k in ((3, 3), (1, 11), (11, 1))),
        )
        norm = LayerNorm2d(channels)
        add(
            f"channel LayerNorm, {at}",
            "timm",
            lambda x, w, b: layer_norm_channels(x, w, b, 1e-6),
            lambda x, w, b, m=norm: torch.func.functional_call(m, {"weight": w, "bias": b}, (x,)),
            (x, torch.randn(channels), torch.randn(channels)),
            forward=2,
            both=2,
            layouts=("contiguous",),
        )
        add(
            f"GELU, {at}",
            "PyTorch",
            gelu,
            F.gelu,
            (x,),
            forward=2,
            both=2,
            layouts=("channels_last",),
        )
    for channels, side in ((16, 32), (40, 56), *MAPS):
        add(
            f"batch norm in training, {channels}x{side}x{side}",
            "PyTorch",
            lambda x, w, b: batch_norm(x, w, b)[0],
            lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
            (torch.randn(32, channels, side, side), torch.randn(channels), torch.randn(channels)),
            layouts=("channels_last",),
        )
    for channels, side in ((40, 56), (80, 28), (160, 14), (320, 7), *MAPS):
        add(
            f"norm, 1x1, GELU, 1x1, residual, {channels}x{side}x{side}",
            "PyTorch, 1x1 convolutions",
            lambda x, *w: mlp(x, *w, residual=x, eps=1e-6),
            convolved_mlp,
            (
                torch.randn(32, channels, side, side),
                torch.randn(4 * channels, channels) / channels**0.5,
                torch.randn(4 * channels),
                torch.randn(channels, 4 * channels) / channels**0.5,
                torch.randn(channels),
            ),
            macs=32 * side * side * 8 * channels * channels,
        )
    chosen = picked(list(rows), wanted)
    ceilings(fresh=True)
    script, title = of_this_processor(__file__, "Kernels")
    bench = Benchmark(
        script,
        title=title,
        command="python benchmarks/kernels.py",
        says=SAYS,
        keep=bool(wanted),
    )
    for line in chosen:
        bench.add(rows[line]())


def measured(
    what: str,
    peer: str,
    sides: tuple[Function, Function],
    tensors: Sequence[Tensor],
    layouts: Sequence[str],
    backward: bool,
    mark: float | None,
    macs: float,
) -> Row:
    """Ours and theirs, each in its faster layout, in pairs."""
    ours, theirs = (fastest(side, tensors, layouts, backward) for side in sides)
    found = paired(theirs[1], ours[1], seconds=6.0)
    return Row(
        what=what,
        peer=peer,
        ratio=interval(found),
        mark=mark,
        ours=f"{1e3 * found.b:.2f} ms, {ours[0]}",
        theirs=f"{1e3 * found.a:.2f} ms, {theirs[0]}",
        note=bound(tensors[0], macs, backward, found.a),
    )


def convolutions(kernel: tuple[int, int], channels: int) -> tuple[Function, Function]:
    """Ours and PyTorch's depthwise convolution that keeps the size."""
    pad = kernel[0] // 2, kernel[1] // 2
    return (
        lambda x, w, b: depthwise_conv2d(x, w, b, 1, pad),
        lambda x, w, b: F.conv2d(x, w, b, 1, pad, 1, channels),
    )


def multiply_adds(x: Tensor, kernel: tuple[int, int]) -> int:
    """Of a depthwise convolution that keeps the size, zeros around the map not counted."""
    inside = [
        sum(side - abs(off) for off in range(-(k // 2), k // 2 + 1) if abs(off) < side)
        for side, k in zip(x.shape[2:], kernel, strict=True)
    ]
    return x.shape[0] * x.shape[1] * inside[0] * inside[1]


def convolved_mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """The tail of a block as 1x1 convolutions, which is PyTorch's faster way here."""
    rows = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], eps=1e-6).permute(0, 3, 1, 2)
    hidden = F.gelu(F.conv2d(rows, w1[:, :, None, None], b1))
    return x + F.conv2d(hidden, w2[:, :, None, None], b2)


def named(module: nn.Module, weights: Sequence[Tensor]) -> dict[str, Tensor]:
    """Weights under the names of a module's parameters."""
    return dict(zip(dict(module.named_parameters()), weights, strict=True))


def fastest(
    function: Function, tensors: Sequence[Tensor], layouts: Sequence[str], backward: bool
) -> tuple[str, Callable[[], object]]:
    """The layout in which a function is fastest, and its call."""
    calls = {name: call(function, tensors, LAYOUTS[name], backward) for name in layouts}
    times = side_by_side(calls, seconds=1.5)
    best = min(times, key=lambda name: times[name].median)
    return best, calls[best]


def call(
    function: Function, tensors: Sequence[Tensor], layout: torch.memory_format, backward: bool
) -> Callable[[], object]:
    """One pass, or both, over maps in a layout."""
    maps = tensors[0].contiguous(memory_format=layout)
    inputs = [t.detach().clone().requires_grad_() for t in (maps, *tensors[1:])]
    with torch.no_grad():
        gradient = torch.randn_like(function(*inputs))
    if backward:
        return lambda: torch.autograd.grad(function(*inputs), inputs, gradient)
    return torch.no_grad()(lambda: function(*inputs))


def bound(x: Tensor, macs: float, backward: bool, theirs: float) -> str:
    """What nothing can be faster than, and how often that goes into their seconds.

    A copy reads one map and writes one; a backward pass reads two and writes one.
    """
    to = torch.empty_like(x)
    handed_on = [part(x, to, None)]
    copy = min(timeit.repeat(lambda: convolve(handed_on), number=1, repeat=100))
    memory_bound = copy * (2.5 if backward else 1)
    arithmetic = 2 * macs * (3 if backward else 1) / ceilings().flops
    least = max(memory_bound, arithmetic)
    binds = "memory" if memory_bound >= arithmetic else "arithmetic"
    return f"bound by {binds}: {1e3 * least:.2f} ms at least, so {theirs / least:.1f}x at most"


if __name__ == "__main__":
    main()
