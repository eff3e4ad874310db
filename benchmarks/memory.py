"""What keeping freed memory brings to plain PyTorch: the same work with the policy and without.

    python benchmarks/memory.py              # all
    python benchmarks/memory.py resnet18 ... # these rows again

Each side is a process of its own, since an allocator's settings belong to a process.
"""

import resource
import sys
from collections.abc import Callable

import timm
import torch
from apart import asked_side, in_turns, serve
from asked import asked, picked
from results import Benchmark, Row, interval
from timm.models.convnext import ConvNeXtBlock
from timm.models.inception_next import MetaNeXtBlock
from torch import nn
from torch.nn.functional import cross_entropy

from foveate import memory
from foveate.measure import Ratio

SAYS = """\
timm's modules in eager PyTorch, float32, channels_last, on all cores, with `foveate.memory.keep()`
and with glibc as it comes: nothing else differs. Two processes a row, a call of each in turn. The
ratio is the time without over the time with the policy; beside the times stands the largest
memory that the process held."""
SECONDS = 20.0


def forward(module: nn.Module, *shape: int) -> Callable[[], object]:
    """A forward pass of a batch."""
    module = module.eval().to(memory_format=torch.channels_last)
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    return torch.inference_mode()(lambda: module(x))


def training(net: nn.Module, *shape: int) -> Callable[[], object]:
    """A whole training step."""
    net = net.train().to(memory_format=torch.channels_last)
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    targets = torch.arange(len(x))
    optimizer = torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9)

    def step() -> None:
        cross_entropy(net(x), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


WORK: dict[str, Callable[[], Callable[[], object]]] = {
    "ConvNeXt block, 32x96x56x56, forward": lambda: forward(ConvNeXtBlock(96), 32, 96, 56, 56),
    "InceptionNeXt block, 32x96x56x56, forward": lambda: forward(MetaNeXtBlock(96), 32, 96, 56, 56),
    "inception_next_tiny at 224, batch 32, forward": lambda: forward(
        timm.create_model("inception_next_tiny"), 32, 3, 224, 224
    ),
    "resnet18 at 224, batch 32, training step": lambda: training(
        timm.create_model("resnet18"), 32, 3, 224, 224
    ),
}


def main() -> None:
    words = asked(__doc__)
    wanted = picked(list(WORK), words)
    bench = Benchmark(
        __file__,
        title="Memory: what was freed is used again",
        command="python benchmarks/memory.py",
        says=SAYS,
        keep=bool(words),
    )
    for what in wanted:
        sides = {name: {"what": what, "kept": name == "kept"} for name in ("as it comes", "kept")}
        found = in_turns(__file__, sides, seconds=SECONDS)
        without, kept = found["as it comes"], found["kept"]
        bench.add(
            Row(
                what=what,
                peer="the same without the policy",
                ratio=interval(Ratio.of(without.seconds, kept.seconds)),
                ours=f"{1e3 * kept.median:.1f} ms, {kept.said} GiB",
                theirs=f"{1e3 * without.median:.1f} ms, {without.said} GiB",
            )
        )


def side(told: dict[str, object]) -> None:
    """One process: a kind of work, with the policy or without."""
    if told["kept"]:
        memory.keep()
    call = WORK[str(told["what"])]()
    serve(call, last_word=lambda: f"{most_memory():.1f}")


def most_memory() -> float:
    """The largest memory that this process held, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    told = asked_side(sys.argv[1:])
    side(told) if told else main()
