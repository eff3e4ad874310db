"""What one dispatched operation costs: multiply-adds, arithmetic, or nothing but movement.

Matrix products and convolutions take torch's own formulas; what torch has none
for is here. Arithmetic that is no product is counted per element: one for a
pointwise operation or a reduction's input, a few for a normalisation. An
operation that nothing here knows costs None, and the caller says so.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

PER_OUTPUT = {
    "hardswish": 4,
    "hardswish_": 4,
    "hardsigmoid": 3,
    "hardsigmoid_": 3,
    "_prelu_kernel": 2,
    "upsample_nearest2d": 0,
    "upsample_bilinear2d": 7,
    "_upsample_bilinear2d_aa": 7,
    "upsample_bicubic2d": 31,
    "_upsample_bicubic2d_aa": 31,
    "grid_sampler_2d": 11,
    "native_dropout": 1,
    "floor_divide": 1,
}
"""Operations an element of the result."""

PER_INPUT = {
    "native_batch_norm": 2,
    "_native_batch_norm_legit": 2,
    "_native_batch_norm_legit_no_training": 2,
    "_native_batch_norm_legit_functional": 2,
    "cudnn_batch_norm": 2,
    "_batch_norm_no_update": 2,
    "_batch_norm_with_update": 2,
    "native_layer_norm": 7,
    "native_group_norm": 7,
    "_fused_rms_norm": 4,
    "_softmax": 4,
    "_safe_softmax": 4,
    "_log_softmax": 4,
    "_adaptive_avg_pool2d": 1,
    "adaptive_max_pool2d": 1,
    "linalg_vector_norm": 2,
    "var_mean": 3,
    "var": 3,
    "std": 3,
    "std_mean": 3,
    "cumsum": 1,
    "cumprod": 1,
    "topk": 1,
    "sort": 1,
    "max": 1,
    "min": 1,
    "amax": 1,
    "amin": 1,
    "argmax": 1,
    "argmin": 1,
    "logsumexp": 3,
    "log_sigmoid_forward": 3,
}
"""Operations an element of the first argument."""

MOVES = {
    *("_unsafe_view", "_reshape_alias", "_reshape_copy", "alias_copy", "lift_fresh", "set_"),
    *("cat", "stack", "clone", "copy_", "_to_copy", "contiguous", "repeat", "roll", "flip"),
    *("constant_pad_nd", "reflection_pad2d", "replication_pad2d", "pixel_shuffle"),
    *("pixel_unshuffle", "channel_shuffle", "im2col", "index", "index_select", "gather"),
    *("scatter", "scatter_", "index_put", "index_put_", "_index_put_impl_", "masked_select"),
    *("embedding", "one_hot", "nonzero", "fill_", "zero_", "arange", "linspace", "empty"),
    *("empty_like", "empty_strided", "zeros", "zeros_like", "ones", "ones_like", "full"),
    *("full_like", "new_empty", "new_zeros", "new_ones", "new_full", "scalar_tensor", "eye"),
    *("rand", "rand_like", "randn", "randn_like", "randint", "randperm", "bernoulli"),
    *("bernoulli_", "uniform_", "normal_", "tril", "triu", "tril_", "triu_", "tril_indices"),
    *("triu_indices", "masked_fill", "masked_fill_", "where", "_local_scalar_dense", "is_nonzero"),
    *("unsafe_split", "unsafe_split_with_sizes", "as_strided_", "squeeze_", "unsqueeze_", "t_"),
    *("_conj", "_fft_copy", "view_as_complex", "view_as_real", "select_scatter", "slice_scatter"),
    *("diagonal_copy", "detach", "detach_", "resize_", "_assert_async", "lift", "unfold_copy"),
    *("dequantize", "quantize_per_tensor", "quantize_per_channel", "int_repr", "bucketize"),
}
"""Operations that bring numbers elsewhere and compute none."""

Cost = tuple[int, int]
"""Multiply-adds, and arithmetic operations in all (a multiply-add is two)."""


def cost(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Cost | None:
    """What an operation costs, or None if it is not known.

    Args:
        func: an OpOverload, with the arguments and the result that it was called with.
    """
    name = func.overloadpacket.__name__
    if func.is_view:
        return 0, 0
    if func.overloadpacket in flop_registry:
        flops = flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
        flops *= 4 if any(t.is_complex() for t in tensors(args)) else 1
        return flops // 2, flops
    if name in PRODUCTS:
        macs = PRODUCTS[name](args, out)
        return macs, 2 * macs
    if name.startswith("_fft"):
        return 0, _fft(args, out)
    if name in MOVES:
        return 0, 0
    if name in PER_OUTPUT:
        return 0, PER_OUTPUT[name] * _elements(out)
    if name in PER_INPUT or torch.Tag.reduction in func.tags:
        return 0, PER_INPUT.get(name, 1) * _elements(args[0])
    if "pool" in name and isinstance(args[1], list | tuple):
        return 0, math.prod(args[1]) * (2 if len(args[1]) == 1 else 1) * _elements(out)
    if torch.Tag.pointwise in func.tags:
        factor = (6 if name.startswith("mul") else 2) if _is_complex(out) else 1
        return 0, factor * _elements(out)
    return None


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested arguments."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))


# ---------------------------------------------------------------- products without a formula


def _matrix_vector(args: Any, out: Any) -> int:
    """mv(A, x): (M, N) by (N,)."""
    return args[0].numel()


def _added_matrix_vector(args: Any, out: Any) -> int:
    """addmv(y, A, x)."""
    return args[1].numel()


def _dot(args: Any, out: Any) -> int:
    """dot(x, y)."""
    return args[0].numel()


def _outer(args: Any, out: Any) -> int:
    """outer(x, y), addr."""
    return out.numel()


def _integer_product(args: Any, out: Any) -> int:
    """_int_mm(A, B): (M, K) by (K, N)."""
    return args[0].numel() * args[1].shape[1]


def _weight_only_product(args: Any, out: Any) -> int:
    """_weight_int8pack_mm(x, weight, scales) and its kin: (M, K) to (M, N)."""
    return args[0].shape[-1] * out.numel()


def _distances(args: Any, out: Any) -> int:
    """_cdist_forward(x, y): (..., P, M) against (..., R, M)."""
    return out.numel() * args[0].shape[-1]


def _bilinear(args: Any, out: Any) -> int:
    """_trilinear(i1, i2, i3, expand1, expand2, expand3, ...), torch.nn.Bilinear's: a product of
    three broadcast tensors, of which the first two are multiplied on the way."""
    shapes = []
    for tensor, expanded in zip(args[:3], args[3:6], strict=True):
        for axis in sorted(expanded):
            tensor = tensor.unsqueeze(axis)
        shapes.append(tensor.shape)
    return math.prod(torch.broadcast_shapes(*shapes))


def _recurrent_layer(args: Any, out: Any) -> int:
    """mkldnn_rnn_layer(x, w_ih, w_hh, ...): both products at every step of every sequence."""
    x, w_input, w_hidden = args[:3]
    return x.numel() // x.shape[-1] * (w_input.numel() + w_hidden.numel())


def _fused_recurrence(args: Any, out: Any) -> int:
    """_cudnn_rnn and the whole lstm, gru, rnn: every weight matrix at every step."""
    x = args[0]
    weights = args[1] if isinstance(args[1], list | tuple) else args[2]
    return x.numel() // x.shape[-1] * sum(w.numel() for w in weights if w.ndim == 2)


def _quantised_linear(args: Any, out: Any) -> int:
    """quantized::linear(x, packed, ...)."""
    return args[0].shape[-1] * out.numel()


def _quantised_convolution(args: Any, out: Any) -> int:
    """quantized::conv2d(x, packed, ...)."""
    weight = torch.ops.quantized.conv2d_unpack(args[1])[0]
    return math.prod(weight.shape[1:]) * out.numel()


def _onednn_linear(args: Any, out: Any) -> int:
    """onednn::qlinear_pointwise(x, scale, zero, weight, ...): (..., K) to (..., N)."""
    return args[0].shape[-1] * out.numel()


def _deformable_convolution(args: Any, out: Any) -> int:
    """torchvision::deform_conv2d(x, weight, ...), its sampling left out."""
    return math.prod(args[1].shape[1:]) * out.numel()


PRODUCTS: dict[str, Callable[[Any, Any], int]] = {
    "mv": _matrix_vector,
    "addmv": _added_matrix_vector,
    "dot": _dot,
    "vdot": _dot,
    "addr": _outer,
    "_int_mm": _integer_product,
    "_weight_int8pack_mm": _weight_only_product,
    "_weight_int4pack_mm": _weight_only_product,
    "_weight_int4pack_mm_for_cpu": _weight_only_product,
    "_cdist_forward": _distances,
    "_euclidean_dist": _distances,
    "_trilinear": _bilinear,
    "mkldnn_rnn_layer": _recurrent_layer,
    "_cudnn_rnn": _fused_recurrence,
    "linear": _quantised_linear,
    "linear_relu": _quantised_linear,
    "linear_dynamic": _quantised_linear,
    "linear_relu_dynamic": _quantised_linear,
    "conv2d": _quantised_convolution,
    "conv2d_relu": _quantised_convolution,
    "qlinear_pointwise": _onednn_linear,
    "deform_conv2d": _deformable_convolution,
}


def _fft(args: Any, out: Any) -> int:
    """5 N log2 N a transform of N complex points, half of it where one side is real."""
    x, axes = args[0], args[1]
    half = not (x.is_complex() and out.is_complex())
    full = out if half and x.is_complex() else x
    points = math.prod(full.shape[d] for d in axes)
    one = 5 * points * math.log2(max(points, 2)) / (2 if half else 1)
    return round(full.numel() // points * one)


def _elements(value: Any) -> int:
    first = next(tensors(value), None)
    return 0 if first is None else first.numel()


def _is_complex(out: Any) -> bool:
    first = next(tensors(out), None)
    return first is not None and first.is_complex()
