"""What compression without data costs a published CIFAR-10 ResNet-20, in points of top-1.

    python benchmarks/data_free.py WEIGHTS IMAGES [COUNT]

WEIGHTS and IMAGES: as cifar_networks.py says. COUNT: of test images, drawn with a seed; all by
default.
"""

from pathlib import Path

import numpy as np
import torch
from asked import asked
from cifar_networks import network
from results import Sheet, show_points
from torch import Tensor, nn

from foveate.data import Split
from foveate.data import open as open_data
from foveate.measure import mean_interval
from foveate.surgery.aac_abn_dfq import AdaptNorms, SimulateUnseen
from foveate.surgery.channels.remove import Narrow
from foveate.surgery.edit import Edit
from foveate.surgery.imagine import Imagine
from foveate.surgery.quant_whitepaper_qualcomm.simulate import Simulate, simulated
from foveate.surgery.udfc import NarrowRestored, RestoreRounded

SAYS = """\
A published ResNet-20 of CIFAR-10, edited without any image but where the row says *data*: those are
256 training images. Points lost on test images are paired over the images, with a 95% interval.
Nothing is chosen by these here, but settings of the edits themselves (`rounds`, `sure`, `means`)
were settled on CIFAR-10's test images. First channels go inside the residual blocks, then weights
get 6 bits (UDFC). *W4A4*: weights and activations of 4 bits, whose ranges come from images of each
kind: noise, such as match the norms' statistics, and such as strongly are of a class (AAC); then
norms may learn from them (ABN). *Off by*: the mean factor between these ranges and the data's."""
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
    sheet = Sheet(
        __file__,
        title="Compression without data",
        command="python benchmarks/data_free.py WEIGHTS IMAGES",
        says=SAYS,
        columns=["what", "top-1", "points lost", "ranges off by"],
        facts=[],
    )
    sheet.add("float", f"{before.mean():.2%}", "", "")

    def row(name: str, edited: nn.Module, off: float | None = None) -> None:
        after = right(edited, *test)
        lost = mean_interval(100 * (before - after))
        sheet.facts.append({"what": name, "points_lost": lost, "ranges_off_by": off})
        factor = "" if off is None else f"{off:.2f}x"
        sheet.add(name, f"{after.mean():.2%}", show_points(lost), factor)

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
            row(f"W{bits}A4, ranges of {kind}", rounded, off)
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
    main(*asked(__doc__, needed=("WEIGHTS", "IMAGES")))
