"""What each operation does with labels of channels.

Operations that move values are run on the labels themselves; those that mix
channels end some labels and begin others; whatever is not understood fixes the
labels that it meets, and says so.
"""

from typing import Any

import torch

from foveate.surgery.channels.mixing import Mixing
from foveate.surgery.channels.moving import Moving
from foveate.surgery.channels.reading import CONSTANTS, is_several
from foveate.surgery.graphs import CHECKS, aten

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "convolution")
NORMS = (aten._native_batch_norm_legit_no_training.default, aten.batch_norm.default)
REDUCTIONS = {
    aten.mean.dim,
    aten.sum.dim_IntList,
    aten.amax.default,
    aten.amin.default,
    aten.linalg_vector_norm.default,
}
MOVES = {
    getattr(aten, name).default
    for name in (
        *("view", "_unsafe_view", "reshape", "permute", "expand", "unsqueeze", "squeeze"),
        *("cat", "stack", "slice", "roll", "flip", "repeat", "split_with_sizes", "unflatten"),
        *("pixel_unshuffle", "t", "movedim", "channel_shuffle", "tile"),
        *("numpy_T", "expand_as", "view_as", "reshape_as", "index_select", "swapaxes"),
    )
    if hasattr(getattr(aten, name, None), "default")
} | {
    *(aten.transpose.int, aten.flatten.using_ints, aten.squeeze.dim, aten.squeeze.dims),
    *(aten.select.int, aten.slice.Tensor, aten.split.Tensor, aten.unbind.int, aten.chunk.default),
    *(aten.movedim.int, aten.unflatten.int, aten.narrow.default, aten.permute.default),
}
SPATIAL = ("pool", "upsample", "im2col", "reflection_pad", "replication_pad", "interpolate")
POINTWISE = {aten.hardswish.default, aten.softmax.int, aten._softmax.default, aten.dropout.default}
POINTWISE |= {aten.alias.default, aten.detach.default, aten._to_copy.default}
POINTWISE |= {
    aten.log_sigmoid.default,
    aten.log_softmax.int,
    aten.cumsum.default,
    aten.native_dropout.default,
}


class Rule(Moving, Mixing):
    """What one operation does with labels; `Reading` says what it is made of."""

    def result(self) -> Any:
        """Fields of what the operation makes."""
        target, name = self.node.target, self.name
        own = name.split(".")[1] if name.startswith("aten.") else name
        if getattr(target, "__name__", "") == "getitem":
            given = self.values[self.args[0]]
            return given[self.args[1]] if is_several(self.args[0]) else []
        if name == "foveate.tie.default":
            return self.tied()
        if target in CHECKS or own.startswith("_assert"):
            return []
        if own.startswith(CONSTANTS) or own.endswith(("_like",)) or own.startswith("new_"):
            return []
        if target in MOVES:
            return self.moved()
        if own in CONVOLUTIONS:
            return self.convolution()
        if target in (aten.linear.default, aten.matmul.default, aten.mm.default, aten.bmm.default):
            return self.linear() if own == "linear" else self.product(*self.args[:2])
        if target in NORMS:
            found = self.along(self.args[0], 1, self.args[1:5])
            return [found, [], []] if is_several(self.node) else found
        if own == "prelu":
            return self.along(self.args[0], 1, self.args[1:])
        if own in ("layer_norm", "rms_norm"):
            return self.pointwise([self.args[0], *self.args[2:4]])
        if own == "group_norm":
            return self.group_norm()
        if own == "scaled_dot_product_attention":
            return self.attention()
        if target in REDUCTIONS or own in ("mean", "sum"):
            return self.reduced()
        if any(word in own for word in SPATIAL):
            return self.spatial()
        if own in ("pad", "constant_pad_nd"):
            return self.padded()
        if own == "pixel_shuffle":
            return self.shuffled()
        if target is aten.index.Tensor:
            return self.indexed()
        if torch.Tag.pointwise in getattr(target, "tags", ()) or target in POINTWISE:
            return self.pointwise(self.node.all_input_nodes)
        return self.unknown()
