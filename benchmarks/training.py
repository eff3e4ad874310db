"""A training step of ours against timm's: eager in both layouts, and compiled.

    python benchmarks/training.py                                  # all
    python benchmarks/training.py "convnext_atto, out of the box"  # these rows again

Ours is the step of `foveate.train`'s own loop. Every side is a process of its own.
"""

import os
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import timm
import torch
from apart import asked_side, in_turns, serve
from asked import asked, picked
from results import Benchmark, Row, interval, of_this_processor
from torch.nn.functional import cross_entropy

from foveate import memory
from foveate.data import Augment, from_arrays
from foveate.measure import Ratio, ceilings, count
from foveate.train import Recipe, Training
from foveate.vision import VisionModel

SAYS = """\
One step: forward pass, cross-entropy with label smoothing, backward pass, AdamW; batch 32 at 224
pixels, 1000 classes, on all cores. **Ours** is `Training.step`, all that the loop does in a step:
it takes uint8 images and normalises them, sets the learning rate, counts hits and looks whether
the loss is finite. **Peers** are timm's networks with torch's AdamW, and get float images that
are normalised already: eager in channels_last, eager contiguous, and compiled by `torch.compile`
in channels_last (its compilation, 20 to 60 seconds, is not counted). With *the same allocator*
all sides keep freed memory (`foveate.memory`); *out of the box* ours does, as it always does, and
the peers run as they come. Each side is a process of its own; a step of each in turn. A
mark stands at the fastest peer. The share
is of the machine's best float32 arithmetic, the backward pass counted as two forward passes."""
NAMES = {"inceptionnext_atto": "inception_next_atto", "convnext_atto": "convnext_atto"}
"""What the issue of speed calls them, and what timm does."""
WHERE = "the same allocator", "out of the box", "bfloat16, the same allocator"
"""What the peers run with, a row for each."""
SIDE, BATCH, CLASSES = 224, 32, 1000
MARK, MARK_AS_IT_COMES = 1.5, 1.8
SECONDS = 25.0
RECIPE = {"batch_size": BATCH, "optimizer": "adamw", "learning_rate": 1e-4, "weight_decay": 0.05}
SMOOTHING = 0.1


def main() -> None:
    words = asked(__doc__)
    wanted = picked([f"{what}, {where}" for what in NAMES for where in WHERE], words)
    script, title = of_this_processor(__file__, "Training steps")
    bench = Benchmark(
        script,
        title=title,
        command="python benchmarks/training.py",
        says=SAYS,
        keep=bool(words),
    )
    roof = ceilings(fresh=True).flops
    for what, name in NAMES.items():
        least = 6 * macs(name) * BATCH / roof
        half = {"timm, eager, channels_last": timm_side(name, precision="bfloat16")}
        sides = (
            (timm_sides(name, kept=True), MARK, "float32"),
            (timm_sides(name, kept=False), MARK_AS_IT_COMES, "float32"),
            (half, None, "bfloat16"),
        )
        for where, (peers, mark, precision) in zip(WHERE, sides, strict=True):
            line = f"{what}, {where}"
            if line in wanted:
                us = {"of": "ours", "name": name, "kept": True, "precision": precision}
                compare(bench, line, us, peers, mark, least)


def compare(
    bench: Benchmark,
    what: str,
    us: dict[str, Any],
    peers: dict[str, dict[str, Any]],
    mark: float | None,
    least: float,
) -> None:
    """Rows of ours against each peer; the mark stands at the fastest of them.

    Args:
        bench: takes the rows.
        what: their name.
        us, peers: what each process is told.
        mark: the ratio to be reached.
        least: seconds of a step at the machine's best arithmetic.
    """
    found = in_turns(__file__, {"ours": us} | peers, seconds=SECONDS)
    fastest = min(peers, key=lambda peer: found[peer].median)
    figures = {
        name: f"{1e3 * side.median:.0f} ms, {BATCH / side.median:.0f} images/s, "
        f"{least / side.median:.0%} of the roof"
        for name, side in found.items()
    }
    for peer in peers:
        bench.add(
            Row(
                what=what,
                peer=peer,
                ratio=interval(Ratio.of(found[peer].seconds, found["ours"].seconds)),
                mark=mark if peer == fastest else None,
                ours=figures["ours"],
                theirs=figures[peer],
            )
        )


def timm_side(
    name: str,
    layout: str = "channels_last",
    compiled: bool = False,
    kept: bool = True,
    precision: str = "float32",
) -> dict[str, Any]:
    """What a peer's process is told."""
    return {
        "of": "timm",
        "name": name,
        "layout": layout,
        "compiled": compiled,
        "kept": kept,
        "precision": precision,
    }


def timm_sides(name: str, kept: bool) -> dict[str, dict[str, Any]]:
    """timm's network in the ways in which people train it; compiled where a compiler is."""
    sides = {
        "timm, eager, channels_last": timm_side(name, kept=kept),
        "timm, eager, contiguous": timm_side(name, "contiguous_format", kept=kept),
    }
    if shutil.which(os.environ.get("CXX", "g++")):
        sides["timm, torch.compile"] = timm_side(name, compiled=True, kept=kept)
    return sides


def side(told: dict[str, Any]) -> None:
    """One process."""
    if told.pop("kept"):
        memory.keep()
    torch.manual_seed(0)
    (ours if told.pop("of") == "ours" else theirs)(**told)


def ours(name: str, precision: str) -> None:
    """The loop's own step, on a batch of its own making."""
    chance = np.random.default_rng(0)
    pixels = chance.integers(0, 256, (2 * BATCH, SIDE, SIDE, 3), dtype=np.uint8)
    labels = [str(i) for i in range(CLASSES)]
    data = from_arrays(pixels, np.arange(2 * BATCH), labels)
    model = VisionModel.create(name, labels, SIDE)
    recipe = Recipe(
        epochs=1e6,
        label_smoothing=SMOOTHING,
        precision=precision,  # pyright: ignore[reportArgumentType]
        augment=Augment(shift=0, flip=False),
        **RECIPE,
    )
    with TemporaryDirectory() as folder:
        training = Training(model, data, recipe, Path(folder), ())
        with training.under_way():
            batch = next(training.rest_of_epoch())
            serve(lambda: training.step(batch))


def theirs(name: str, layout: str, compiled: bool, precision: str) -> None:
    """A plain loop's step around timm's network."""
    memory_format = getattr(torch, layout)
    net = timm.create_model(name, num_classes=CLASSES).train().to(memory_format=memory_format)
    call = torch.compile(net) if compiled else net
    images = torch.randn(BATCH, 3, SIDE, SIDE).contiguous(memory_format=memory_format)
    targets = torch.arange(BATCH)
    optimizer = torch.optim.AdamW(
        net.parameters(), RECIPE["learning_rate"], weight_decay=RECIPE["weight_decay"]
    )

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = cross_entropy(call(images), targets, label_smoothing=SMOOTHING)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    serve(step)


def macs(name: str) -> int:
    """Multiply-adds of one image's forward pass."""
    with torch.device("meta"):
        return count(timm.create_model(name), torch.zeros(1, 3, SIDE, SIDE)).macs


if __name__ == "__main__":
    told = asked_side(sys.argv[1:])
    side(told) if told else main()
