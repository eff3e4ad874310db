"""Time families that timm has too against timm's code, with the same weights' shapes.

    python benchmarks/against_timm.py [NAME ...]

Interleaved pairs of a forward pass, and of forward and backward passes, in float32; each library
in the memory layout in which it is faster here. Ratios above 1 say that ours takes less time.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import torch
from asked import asked
from torch import nn

from foveate.backbones import create_model, sizes
from foveate.measure import machine, paired, side_by_side

RESULTS = Path(__file__).with_suffix(".json")
NAMES = (
    "convnext_atto",
    "inception_next_atto",
    "convit_tiny",
    "levit_128s",
    "fasternet_t0",
    "inception_resnet_v2",
    "resnet50",
    "seresnet50",
)
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def main() -> None:
    named = asked(__doc__, known=sizes())
    known = json.loads(RESULTS.read_text("utf-8")) if named and RESULTS.exists() else {}
    found = {"machine": machine(), "ratios": known.get("ratios", {})}
    for name in named or NAMES:
        nets = {"theirs": timm.create_model(name), "ours": create_model(name)}
        found["ratios"][name] = {}
        for kind, batch, call in (("forward", 1, forward), ("training", 4, training)):
            shape = batch, *nets["ours"].default_cfg["input_size"]
            calls = [fastest(partial(call, net), shape) for net in nets.values()]
            ratio = paired(*calls, seconds=10)
            found["ratios"][name][kind] = [ratio.median, ratio.low, ratio.high]
            print(f"{name:<24} {kind:<9} {ratio.median:.2f}x ({ratio.low:.2f} to {ratio.high:.2f})")
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def fastest(call: Callable[[torch.Tensor], None], shape: tuple[int, ...]) -> Callable[[], None]:
    """The call on images in the layout in which it takes less time."""
    images = torch.rand(shape)
    calls = {str(f): partial(call, images.contiguous(memory_format=f)) for f in LAYOUTS}
    times = side_by_side(calls, seconds=1.0)
    return calls[min(times, key=lambda layout: times[layout].median)]


@torch.inference_mode()
def forward(net: nn.Module, images: torch.Tensor) -> None:
    net.eval()(images)


def training(net: nn.Module, images: torch.Tensor) -> None:
    net.train().zero_grad(set_to_none=True)
    net(images).square().mean().backward()


if __name__ == "__main__":
    main()
