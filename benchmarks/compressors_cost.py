"""What compression costs a trained network in the hands of Foveate and of its peers.

    python benchmarks/compressors_cost.py WEIGHTS IMAGES [--rows PATTERN]

WEIGHTS and IMAGES as for quantised.py: a published CIFAR-10 ResNet-20, and CIFAR-10. Rows found
before stay.
"""

import argparse
import copy
import itertools
import time
from collections.abc import Callable
from fnmatch import fnmatch
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar_networks import network
from compressors import (
    Program,
    in_float,
    int8_by_foveate,
    int8_by_nncf,
    int8_by_torchao,
    named,
    pruned_by_foveate,
    pruned_by_torch_pruning,
)
from results import Sheet, facts_before, show_points
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.data import Batches
from foveate.data import open as open_data
from foveate.deploy.overflow import fitting_bits
from foveate.measure import count, mean_interval, side_by_side
from foveate.memory import kept
from foveate.surgery.channels.shrink import Shrink
from foveate.vision import IMAGENET_MEAN, IMAGENET_STD

CALIBRATION, BATCH, TUNED, RATE, HALVINGS = 1024, 125, 200, 0.01, 7
SCOPES = ("blocks", "all groups")
LEFT = (0.75, 0.5)
"""Of the multiply-adds, after pruning."""
SAYS = f"""\
A published ResNet-20 of CIFAR-10, normalisation inside, on the 10,000 test images, which choose
nothing. Points lost are those of the network as it was, over the same images, with a 95% interval,
paired. Everyone gets the same {CALIBRATION} training images to calibrate on; NNCF takes them one
by one, as it recommends, and torchao in batches of 128. *INT8*: 8 bits for weights and
activations; Foveate's weights have 7 where the processor has no VNNI, as sums of products overflow
there, and NNCF is shown with its own fix for that in the first layer, as it comes, and in all.
Foveate: `Simulate(every_output=False)`, `CorrectBias`, `Store`; NNCF: `nncf.quantize` of the
OpenVINO model; both run in OpenVINO as it comes (bfloat16 for what is left in float, where the
processor has it). torchao: `X86InductorQuantizer`, compiled by Inductor with
frozen weights. *Pruned*: channels in the blocks go by the magnitude of the weights that hold them,
the same share of each group (Foveate: `Narrow`), or wherever calibration says that they matter
least (Foveate: `Shrink`, which takes no labels; Torch-Pruning: weights times gradients of the loss,
among all channels), as many as leave the multiply-adds named; at once, and again with {TUNED} steps
of tuning (128 images each, momentum 0.9, rate {RATE:g} falling along a cosine, no augmentation,
the same images in the same order for all); run in OpenVINO in float. *All groups*: the stages'
widths may go, too. Size is what is written to keep the program. Latency: one image, one thread, all
in turns; median and 95% interval; of rows that were measured later, as if the float network had
run as fast as at first."""


FLOAT = "float", "OpenVINO"

Key = tuple[str, str]
"""What was done, and by whom."""
Job = Callable[[], tuple[Program | str, float]]
"""Makes a program, or says why it cannot be, and counts its multiply-adds."""


def main() -> None:
    asked = arguments()
    data = open_data(asked.images)
    train, test = (numbers(data.splits[name]) for name in ("train", "test"))
    published = network("resnet20", Path(asked.weights), data.labels).backbone
    model = nn.Sequential(Normalise(), published).eval()
    jobs = {**quantised(model, train[0][:CALIBRATION]), **pruned(model, *train)}
    made = {k: job() for k, job in jobs.items() if k == FLOAT or fnmatch(k[0], asked.rows)}
    facts = facts_before(__file__) if len(made) < len(jobs) else None
    before = {(fact["what"], fact["by"]): fact for fact in facts or []}
    found = {**before, **figures(made, *test, before.get(FLOAT))}
    sheet([found[key] for key in jobs if key in found]).write()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights")
    parser.add_argument("images")
    parser.add_argument("--rows", default="*", help="pattern of what was done")
    return parser.parse_args()


def quantised(model: nn.Module, calibration: Tensor) -> dict[Key, Job]:
    """The network in float, and in 8 bits by everyone."""
    ways: dict[Key, Callable[[nn.Module, Tensor], Program]] = {
        FLOAT: in_float,
        ("INT8", "Foveate"): int8_by_foveate,
        ("INT8", named("nncf")): partial(int8_by_nncf, fixed=False),
        ("INT8", named("torchao")): int8_by_torchao,
    }
    if fitting_bits() < 8:
        ways["INT8", f"{named('nncf')}, fix in all layers"] = int8_by_nncf

    whole = macs_of(model)

    def made(make: Callable[[nn.Module, Tensor], Program]) -> tuple[Program | str, float]:
        return attempted(partial(make, copy.deepcopy(model), calibration)), whole

    return {key: partial(made, make) for key, make in ways.items()}


def pruned(model: nn.Module, images: Tensor, targets: Tensor) -> dict[Key, Job]:
    """The network with fewer channels, in every way, at once and tuned."""
    looked_at = images[:CALIBRATION], targets[:CALIBRATION]
    found: dict[Key, Job] = {}

    def made(small: Callable[[], Any], steps: int) -> tuple[Program | str, float]:
        network = small()
        if isinstance(network, str):
            return network, 0.0
        tuned = partial(tuned_program, network, steps, images, targets)
        return attempted(tuned), macs_of(network)

    for left, scope, (way, library, prune) in itertools.product(LEFT, SCOPES, WAYS):
        small = cache(
            partial(attempted, partial(prune, model, scope == SCOPES[0], left, *looked_at))
        )
        for steps in (0, TUNED):
            what = f"{left:.0%} of MACs, {scope}, {way}" + ", tuned" * bool(steps)
            found[what, library] = partial(made, small, steps)
    return found


class Normalise(nn.Module):
    """(B, 3, H, W) in [0, 1], less the mean, by the deviation."""

    def forward(self, x: Tensor) -> Tensor:
        mean, std = (x.new_tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        return (x - mean) / std


def numbers(split: Any) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) in [0, 1], in an order by chance, and their targets."""
    batches = list(Batches(split=split, batch_size=500, size=32).epoch(0))
    images = torch.cat([batch.images for batch in batches]).float() / 255
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order], torch.cat([batch.targets for batch in batches])[order]


def attempted(make: Callable[[], Any]) -> Any:
    """What is made, or why it cannot be."""
    began = time.perf_counter()
    try:
        made = make()
    except Exception as error:
        made = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    print(f"{time.perf_counter() - began:.1f} s: {made}"[:200], flush=True)
    return made


# ---------------------------------------------------------------- pruning


def by_magnitude(model: nn.Module, blocks: bool, left: float, images: Tensor, *_: Tensor) -> Any:
    """By Foveate: the channels inside blocks, or all."""
    return pruned_to(left, partial(pruned_by_foveate, model, images[:2], only=only(blocks)), model)


def by_answers(model: nn.Module, blocks: bool, left: float, images: Tensor, *_: Tensor) -> Any:
    """By Foveate: those that the answers need least."""
    return Shrink(macs=left, only=only(blocks)).apply(model, images.split(BATCH))[0]


def by_their_magnitude(
    model: nn.Module, blocks: bool, left: float, images: Tensor, *_: Tensor
) -> nn.Module:
    """By Torch-Pruning: the channels inside blocks, or all."""

    def prune(share: float) -> nn.Module:
        mine = copy.deepcopy(model)
        return pruned_by_torch_pruning(mine, images[:2], share, outputs(mine) if blocks else ())

    return pruned_to(left, prune, model)


def by_their_gradients(
    model: nn.Module, blocks: bool, left: float, images: Tensor, targets: Tensor
) -> nn.Module:
    """By Torch-Pruning: those whose weights, times their gradients, are least."""

    told = copy.deepcopy(model)
    for part, classes in zip(images.split(BATCH), targets.split(BATCH), strict=True):
        F.cross_entropy(told(part), classes, reduction="sum").backward()

    def prune(share: float) -> nn.Module:
        mine = copy.deepcopy(model)
        for parameter, same in zip(mine.parameters(), told.parameters(), strict=True):
            parameter.grad = same.grad
        kept = outputs(mine) if blocks else ()
        return pruned_by_torch_pruning(mine, images[:2], share, kept, by_gradients=True)

    return pruned_to(left, prune, model)


WAYS = (
    ("magnitudes", "Foveate", by_magnitude),
    ("magnitudes", named("torch-pruning"), by_their_magnitude),
    ("calibrated", "Foveate", by_answers),
    ("calibrated", named("torch-pruning"), by_their_gradients),
)


def only(blocks: bool) -> tuple[str, ...]:
    """Patterns of the groups that may lose channels."""
    return ("1.layer*.conv1",) if blocks else ("*",)


def outputs(model: nn.Module) -> list[nn.Module]:
    """Layers that make what leaves the stem and the blocks."""
    return [m for name, m in model.named_modules() if name == "1.conv1" or name.endswith("conv2")]


def pruned_to(left: float, prune: Callable[[float], nn.Module], model: nn.Module) -> nn.Module:
    """The network whose multiply-adds are nearest to a share of the model's."""
    whole, low, high = macs_of(model), 0.0, 1.0
    found: dict[float, nn.Module] = {}
    for _ in range(HALVINGS):
        share = (low + high) / 2
        pruned = prune(share)
        off = macs_of(pruned) / whole - left
        found[abs(off)] = pruned
        low, high = (share, high) if off > 0 else (low, share)
    return found[min(found)]


def macs_of(model: nn.Module) -> float:
    """Multiply-adds of an image."""
    return count(model, torch.rand(1, 3, 32, 32)).macs


def tuned_program(model: nn.Module, steps: int, images: Tensor, targets: Tensor) -> Program:
    """The network after some steps, in OpenVINO."""
    model = copy.deepcopy(model)
    optimiser = torch.optim.SGD(model.parameters(), RATE, momentum=0.9)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
    model.train()
    for step in range(steps):
        chosen = torch.arange(128 * step, 128 * (step + 1)) % len(images)
        optimiser.zero_grad()
        F.cross_entropy(model(images[chosen]), targets[chosen]).backward()
        optimiser.step()
        falling.step()
    return in_float(model.eval(), images[:CALIBRATION])


# ---------------------------------------------------------------- figures


def figures(
    made: dict[Key, tuple[Program | str, float]],
    images: Tensor,
    targets: Tensor,
    before: dict[str, Any] | None,
) -> dict[Key, dict[str, Any]]:
    """Of each program, accuracy, size and latency, or why there is none.

    Args:
        made: programs, the float network's first.
        images, targets: that judge.
        before: what was found for the float network, in whose pace times are told.
    """
    programs = {key: program for key, (program, _) in made.items() if isinstance(program, Program)}
    one = images[:1].numpy()
    with kept():
        timed = side_by_side({"|".join(key): partial(p.call, one) for key, p in programs.items()})
    times = {key: timed["|".join(key)].milliseconds() for key in programs}
    pace = before["milliseconds"]["median"] / times[FLOAT]["median"] if before else 1.0
    found: dict[Key, dict[str, Any]] = {}
    for key, (program, macs) in made.items():
        fact = found[key] = {"what": key[0], "by": key[1], "macs": macs}
        if isinstance(program, str):
            fact["fails"] = program
            continue
        right = judged(program, images, targets)
        if key == FLOAT:
            first = right
        fact |= {
            "top1": right.mean(),
            "lost": mean_interval(100 * (first - right)),
            "bytes": program.bytes,
            "milliseconds": {name: pace * ms for name, ms in times[key].items()},
            "integer": [program.integer, program.layers],
        }
        print(*cells(fact), sep=" | ", flush=True)
    return found


def cells(fact: dict[str, Any]) -> list[str]:
    """A line of the table."""
    what, library = fact["what"], fact["by"]
    if "fails" in fact:
        return [what, library, "*fails*", "", "", "", ""]
    time = fact["milliseconds"]
    return [
        what,
        library,
        f"{fact['top1']:.2%}",
        "" if (what, library) == FLOAT else show_points(fact["lost"]),
        f"{fact['macs'] / 1e6:.1f} M",
        f"{fact['bytes'] / 1e3:.0f} kB",
        f"{time['median']:.3f} ms ({time['low']:.3f} to {time['high']:.3f})",
    ]


def sheet(facts: list[dict[str, Any]]) -> Sheet:
    """A line a program, and below why some are none."""
    return Sheet(
        __file__,
        title="What compression costs, beside peers",
        command="python benchmarks/compressors_cost.py WEIGHTS IMAGES",
        says=SAYS,
        columns=["what", "by", "top-1", "points lost", "MACs", "size", "latency"],
        rows=[cells(fact) for fact in facts],
        notes=[f"{f['what']}, {f['by']}: {f['fails']}" for f in facts if "fails" in f],
        facts=facts,
    )


def judged(program: Program, images: Tensor, targets: Tensor) -> np.ndarray:
    """For each image whether the program is right, 0.0 or 1.0."""
    logits = np.concatenate([program.call(part.numpy()) for part in images.split(BATCH)])
    return (logits.argmax(1) == targets.numpy()).astype(np.float64)


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    main()
