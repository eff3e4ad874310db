"""Dilated branches make a large kernel learn better, and cost nothing afterwards."""

from functools import partial

import torch
from torch import nn

from foveate.backbones.stm_evaluation import Skeleton
from foveate.claims import Finding, Lab, claim
from foveate.ops.merge import merge
from foveate.ops.unireplknet import DilatedReparam

WIDTH, SIDE, KERNEL = 80, 28, 13
DEPTHS, DIMS = (1, 1, 1), (16, 32, 64)


def with_branches(dim: int) -> nn.Module:
    """A 7x7 kernel trained with its dilated branches."""
    return DilatedReparam(dim, 7)


def alone(dim: int) -> nn.Module:
    """A 7x7 kernel with its batch norm and nothing else."""
    return DilatedReparam(dim, 7, branches=())


@claim(
    "unireplknet",
    says="A large depthwise kernel trained with dilated branches is more accurate than alone.",
    paper="dilated re-parametrisation raises ImageNet top-1 and costs nothing at inference",
    minutes=3.0,
)
def branches_help(lab: Lab) -> Finding:
    op = lab.make(lambda: DilatedReparam(WIDTH, KERNEL))
    one = merge(lab.make(lambda: DilatedReparam(WIDTH, KERNEL)))
    x = lab.noise(1, WIDTH, SIDE, SIDE)
    with torch.inference_mode():
        apart = (op.eval()(x) - one(x)).abs().max().item()
    ratio = lab.speed(op, one, x, share=0.1)
    return Finding.above(
        0.0,
        lab.gain(
            partial(Skeleton, with_branches, depths=DEPTHS, dims=DIMS),
            partial(Skeleton, alone, depths=DEPTHS, dims=DIMS),
            lab.recipe(epochs=5.0),
            8,
        ),
        unit=" points",
        details={
            "merging_is_faster_by": [ratio.median, ratio.low, ratio.high],
            "merging_changes_outputs_by": apart,
        },
        note=f"The same width for both, {lab.source} at 8 pixels, 5 epochs; 7x7 kernels.",
    )
