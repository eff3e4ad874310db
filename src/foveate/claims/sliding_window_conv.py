"""Shifting and adding is faster than lowering to a matrix product, where channels are few."""

import numpy as np
import torch
from torch.nn import functional as F

from foveate.claims import Finding, Lab, claim
from foveate.ops.sliding_window_conv import sliding_conv2d

CHANNELS, SIDE = 16, 112
KERNELS = (3, 5, 7, 11, 17)


@claim(
    "sliding_window_conv",
    says="A depthwise convolution by sliding windows is faster than by im2col and products.",
    paper="sliding-window kernels can be faster than im2col with a matrix product on a CPU",
    minutes=1.0,
)
def sliding_is_faster(lab: Lab) -> Finding:
    x = lab.noise(1, CHANNELS, SIDE, SIDE)
    logs = []
    for kernel in KERNELS:
        weight = lab.noise(CHANNELS, 1, kernel, kernel)

        def by_patches(weight=weight, kernel=kernel) -> torch.Tensor:
            patches = F.unfold(x, kernel).view(CHANNELS, kernel * kernel, -1)
            return weight.view(CHANNELS, 1, -1) @ patches

        def by_sliding(weight=weight) -> torch.Tensor:
            return sliding_conv2d(x, weight)

        ratio = lab.ratio(by_patches, by_sliding, share=0.9 / len(KERNELS))
        logs.append(np.log([ratio.median, ratio.low, ratio.high]))
    figure, low, high = np.exp(np.mean(logs, axis=0)).tolist()
    return Finding.above(
        1.0,
        (figure, low, high),
        unit="x",
        details={
            "ratio_a_kernel": {
                str(k): float(np.exp(r[0])) for k, r in zip(KERNELS, logs, strict=True)
            },
            "memory_blow_up_of_im2col": {str(k): k * k for k in KERNELS},
        },
        note="Geometric mean over kernels of 3 to 17 pixels; 16 channels of 112 pixels, both in "
        "PyTorch. The interval is the mean of the kernels'.",
    )
