"""What compression without data costs a published CIFAR-10 ResNet-20, in points of top-1.

    python benchmarks/data_free.py WEIGHTS IMAGES [COUNT]

WEIGHTS: resnet20 of github.com/akamaster/pytorch_resnet_cifar10 as safetensors, names as published.
IMAGES: CIFAR-10 as `foveate.data.open` takes it, with splits train and test.
COUNT: of test images, drawn with a seed; all by default. Nothing is chosen by them here, but
settings of the edits themselves (`rounds`, `sure`, `means`) were settled on CIFAR-10's test images.

Channels go inside the residual blocks, then weights get 6 bits. Ranges of 4-bit activations come
from images of each kind; "data" are 256 training images. Each row has the points lost with a 95%
interval over the images, paired.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar_networks import network
from torch import Tensor, nn

from foveate.data import Split
from foveate.data import open as open_data
from foveate.measure import machine, mean_interval
from foveate.surgery.aac_abn_dfq import AdaptNorms, SimulateUnseen
from foveate.surgery.channels.remove import Narrow
from foveate.surgery.edit import Edit
from foveate.surgery.imagine import Imagine
from foveate.surgery.quant_whitepaper_qualcomm.simulate import Simulate, simulated
from foveate.surgery.udfc import NarrowRestored, RestoreRounded

RESULTS = Path(__file__).with_suffix(".json")
BATCH, REAL = 250, 256
INSIDE = ("*.layer*.conv1",)


def pruned() -> dict[str, list[Edit]]:
    found: dict[str, list[Edit]] = {}
    for share in (0.1, 0.2, 0.3, 0.4):
        ways: dict[str, list[Edit]] = {
            "nothing made up for": [Narrow(share=share, only=INSIDE)],
            "combinations": [NarrowRestored(share=share, only=INSIDE, means=False)],
            "means": [NarrowRestored(share=share, only=INSIDE, ridge=1e9)],
            "combinations and means": [NarrowRestored(share=share, only=INSIDE)],
        }
        for name, edits in ways.items():
            rounded = Simulate(weight_bits=6, activation_bits=None)
            found[f"{share:.0%} removed, 6 bits, {name}"] = [*edits, rounded]
        both = found[f"{share:.0%} removed, 6 bits, combinations and means"]
        found[f"{share:.0%} removed, 6 bits, all, also for rounding"] = [*both, RestoreRounded()]
    return found


def main(weights: str, source: str, count: str = "10000") -> None:
    data = open_data(source)
    model = network("resnet20", Path(weights), data.labels)
    test = drawn(data.splits["test"], int(count))
    real, _ = drawn(data.splits["train"], REAL)
    before = right(model, *test)
    found: dict[str, Any] = {
        "machine": machine(),
        "images": len(before),
        "top1": 100 * before.mean(),
        "rows": {},
    }
    print(f"{'float':<55} {found['top1']:.2f}%")

    def row(name: str, edited: nn.Module, **more: float) -> None:
        lost = mean_interval(100 * (before - right(edited, *test)))
        found["rows"][name] = {"points_lost": lost, **more}
        print(f"{name:<55} {lost[0]:.2f} points lost ({lost[1]:.2f} to {lost[2]:.2f}) {more or ''}")
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    for name, edits in pruned().items():
        edited: nn.Module = model
        for edit in edits:
            edited, _ = edit.apply(edited, real[:2])
        row(name, edited)
    made = {kind: Imagine(kind=kind).images(model) for kind in ("noise", "matching", "strong")}
    made["data"] = list(real.split(32))
    for bits in (8, 4):
        tops: dict[str, Tensor] = {}
        edit = SimulateUnseen(kind="given", weight_bits=bits, activation_bits=4)
        for kind in ("data", "noise", "matching", "strong"):
            rounded, _ = edit.apply(model, made[kind])
            tops[kind] = highest(rounded)
            off = (tops[kind] / tops["data"]).log().abs().mean().exp().item()
            row(f"W{bits}A4, ranges of {kind}", rounded, ranges_off_by=off)
            looked_at = {"data": ("data",), "matching": ("strong", "matching")}
            for own in looked_at.get(kind, ("strong",)):
                for change, how in ((True, "the change"), (False, "the statistics")):
                    adapt = AdaptNorms(kind="given", change=change)
                    adapted, _ = adapt.apply(rounded, made[own])
                    row(f"W{bits}A4, ranges of {kind}, norms learn {how} of {own}", adapted)


def drawn(split: Split, count: int) -> tuple[Tensor, np.ndarray]:
    """Images of a split, uint8 (N, 3, 32, 32), and their targets."""
    chosen = np.random.default_rng(0).permutation(len(split))[:count]
    images = np.stack([split.read(int(i)) for i in chosen])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), split.targets[chosen]


@torch.inference_mode()
def right(model: nn.Module, images: Tensor, targets: np.ndarray) -> np.ndarray:
    """For each image whether the model is right, 0.0 or 1.0."""
    labels = torch.cat([model(batch).argmax(1) for batch in images.split(BATCH)]).numpy()
    return (labels == targets).astype(np.float64)


def highest(model: nn.Module) -> Tensor:
    """Where the activations behind ReLUs are cut off."""
    layers = [layer for layer in simulated(model).values() if layer.top is not None]
    return torch.stack([layer.output_grid.high.detach() for layer in layers if layer.output_grid])


if __name__ == "__main__":
    torch.manual_seed(0)
    main(*sys.argv[1:])
