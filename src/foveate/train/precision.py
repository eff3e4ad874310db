"""Whether bfloat16 pays: measured on the model, the batch and the machine at hand."""

import copy
import statistics
import time

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from foveate.vision import VisionModel

WORTH_IT = 1.15
"""How many times faster a step must be for less precise numbers to be taken."""
FIRST, HOPELESS = 4, 0.5
"""A step with so many images that is so many times as fast ends the measuring."""


def choose_precision(model: VisionModel, images: Tensor, classes: int, rounds: int = 3) -> str:
    """`bfloat16` if a training step is clearly faster with it, else `float32`.

    A processor without instructions for bfloat16 may take fifteen times as long
    with it. The first images tell such a one at once.

    Args:
        model: left as it is.
        images: a batch, uint8 (B, 3, S, S).
        classes: how many there are.
        rounds: interleaved measurements of each.
    """
    trial = copy.deepcopy(model).train()
    if _speedup(trial, images[:FIRST], classes, rounds=1) < HOPELESS:
        return "float32"
    return "bfloat16" if _speedup(trial, images, classes, rounds) >= WORTH_IT else "float32"


def _speedup(trial: VisionModel, images: Tensor, classes: int, rounds: int) -> float:
    """How many times as fast as in float32 a step is in bfloat16, after a round unmeasured."""
    targets = torch.arange(len(images), device=images.device) % classes
    seconds: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for _ in range(rounds + 1):
        for name, taken in seconds.items():
            start = time.perf_counter()
            with torch.autocast(images.device.type, torch.bfloat16, enabled=name == "bfloat16"):
                loss = cross_entropy(trial(images).float(), targets)
            loss.backward()
            trial.zero_grad()
            if images.device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
    before, after = (statistics.median(taken[1:]) for taken in seconds.values())
    return before / after
