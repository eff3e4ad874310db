"""Kernels for what PyTorch leaves slow, each beside its plain twin.

Functions choose by themselves: a kernel where it can run and pays, PyTorch
everywhere else. `accelerate` and `accelerated` let any network use them.
"""

from foveate.ops.kernels.accelerate import accelerate, accelerated, restore
from foveate.ops.kernels.batch_norm import batch_norm
from foveate.ops.kernels.depthwise import DepthwiseConv2d, depthwise_conv2d
from foveate.ops.kernels.gelu import gelu
from foveate.ops.kernels.inception import inception_mix
from foveate.ops.kernels.layer_norm import layer_norm_channels
from foveate.ops.kernels.mlp import mlp

__all__ = [
    "DepthwiseConv2d",
    "accelerate",
    "accelerated",
    "batch_norm",
    "depthwise_conv2d",
    "gelu",
    "inception_mix",
    "layer_norm_channels",
    "mlp",
    "restore",
]
