"""Attention among soft clusters adds what a convolution beside it does not see."""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from foveate.claims import Finding, Lab, claim
from foveate.ops.attention import SelfAttention
from foveate.ops.glmix import GLMix

WIDTH, HEADS, SIDE = 64, 2, 56


def clustered(dim: int) -> nn.Module:
    """Both paths, with a slot for every four places of the largest map."""
    return GLMix(dim, heads=2, slots=16)


def local(dim: int) -> nn.Module:
    """The convolutions alone."""
    return GLMix(dim, heads=2).local


def purity(op: GLMix, lab: Lab) -> float:
    """Share of places that lie in the region that most of their slot lies in, of two regions."""
    region = torch.zeros(16, 16, dtype=torch.long)
    region[3:11, 4:13] = 1
    maps = lab.noise(8, WIDTH, 16, 16).cpu()
    maps[:, :2] += 4 * F.one_hot(region).permute(2, 0, 1)
    slots = F.one_hot(op.cpu().logits(maps).argmax(1))
    held = slots.mT @ F.one_hot(region.flatten())  # places of each region, in each slot
    return (held.amax(2).sum() / (len(maps) * region.numel())).item()


@claim(
    "glmix",
    says="At equal parameters, convolutions beside attention among soft clusters are more accurate "
    "than the convolutions alone.",
    paper="GLNet-STL 82.5% against Swin-T 81.3% in ImageNet top-1, in the same layout",
    minutes=3.0,
)
def clusters_add_accuracy(lab: Lab) -> Finding:
    x = lab.noise(1, WIDTH, SIDE, SIDE)
    mixed = lab.make(partial(GLMix, WIDTH, HEADS))
    ratio = lab.speed(lab.make(partial(SelfAttention, WIDTH, HEADS)), mixed, x, share=0.1)
    gained = lab.gain(lab.in_skeleton(clustered), lab.in_skeleton(local), lab.recipe(epochs=5.0), 8)
    return Finding.above(
        0.0,
        gained,
        unit=" points",
        details={
            "faster_than_full_attention_at_56_pixels_by": [ratio.median, ratio.low, ratio.high],
            "purity_of_untrained_clusters": purity(GLMix(WIDTH, HEADS), lab),
        },
        note=f"60 k parameters, {lab.source} at 8 pixels, 5 epochs, 16 slots; 5x5 kernels in both.",
    )
