"""A block's tail through the fused kernel: its norm, layer scale and biases folded into weights.

Blocks of Foveate and of timm name their parts alike (`norm`, `mlp.fc1`,
`mlp.act`, `mlp.fc2`, `gamma`, `drop_path`), so one function serves both.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from foveate.ops.kernels.batch_norm import follow
from foveate.ops.kernels.mlp import fits, mlp
from foveate.ops.kernels.moments import channel_moments

Layers = tuple[nn.Module, nn.Module]
"""Both layers of a channel mixer."""


def fusable(block: nn.Module, x: Tensor) -> Layers | None:
    """The layers of a block's tail that can go through the kernel; None where it can't.

    Args:
        block: a block of ConvNeXt's pattern: see `fused_tail`.
        x: what it is given, (B, C, H, W).
    """
    layers = _layers(block)
    if layers is None or any(is_watched(m) for m in block.modules() if m is not block):
        return None
    tensors = (t for layer in layers for t in (layer.weight, layer.bias))
    return layers if fits(x, *tensors) else None  # pyright: ignore[reportArgumentType]


def fused_tail(block: nn.Module, layers: Layers, x: Tensor, residual: Tensor) -> Tensor:
    """residual + drop_path(gamma * mlp(norm(x))) of a block.

    Args:
        block: has `norm` (layer or batch norm), `mlp` (two 1x1 convolutions or
            linear layers with GELU between), `gamma` (or None) and `drop_path`.
        layers: of that `mlp`, as `fusable` gives them.
        x: what the token mixer gave, (B, C, H, W).
        residual: what the block was given.
    """
    w1, b1, w2, b2 = *_affine(layers[0]), *_affine(layers[1])
    norm, eps = block.norm, None
    if isinstance(norm, nn.LayerNorm):
        eps = norm.eps
        scale, shift = norm.weight, norm.bias
    else:
        x, scale, shift = _batch_norm(norm, x)  # pyright: ignore[reportArgumentType]
    if shift is not None:
        b1 = b1 + w1 @ shift
    if scale is not None:
        w1 = w1 * scale
    if block.gamma is not None:
        w2, b2 = w2 * block.gamma[:, None], b2 * block.gamma  # pyright: ignore
    keep = _kept_images(block.drop_path, x)  # pyright: ignore[reportArgumentType]
    return mlp(x, w1, b1, w2, b2, residual=residual, keep=keep, eps=eps)


def _layers(block: nn.Module) -> Layers | None:
    """Both layers of the channel mixer, if it has GELU between them and no more."""
    parts = dict(block.mlp.named_children())  # pyright: ignore
    fc1, act, fc2 = (parts.pop(name, None) for name in ("fc1", "act", "fc2"))
    if not is_gelu(act):
        return None
    if not (_is_pointwise(fc1) and _is_pointwise(fc2) and all(map(_does_nothing, parts.values()))):
        return None
    if not isinstance(block.norm, nn.LayerNorm) and type(block.norm) is not nn.BatchNorm2d:
        return None
    return fc1, fc2  # pyright: ignore[reportReturnType]


def kind(module: nn.Module) -> str:
    """The full name of a module's class, which need not be importable."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def is_gelu(module: nn.Module | None) -> bool:
    """Whether a module is the exact GELU, PyTorch's or timm's."""
    if isinstance(module, nn.GELU):
        return module.approximate == "none"
    return module is not None and kind(module) == "timm.layers.activations.GELU"


def _is_pointwise(layer: nn.Module | None) -> bool:
    if type(layer) is nn.Linear:
        return True
    return (
        type(layer) is nn.Conv2d
        and layer.kernel_size == layer.stride == (1, 1)
        and layer.padding == (0, 0)
        and layer.groups == 1
    )


def _does_nothing(module: nn.Module) -> bool:
    if isinstance(module, nn.Dropout):
        return module.p == 0 or not module.training
    return isinstance(module, nn.Identity)


def is_watched(module: nn.Module) -> bool:
    """Whether somebody asked to see what goes through a module that fusing would skip."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
    )


def _affine(layer: nn.Module) -> tuple[Tensor, Tensor]:
    weight = layer.weight.flatten(1)  # pyright: ignore
    return weight, layer.bias if layer.bias is not None else weight.new_zeros(len(weight))  # pyright: ignore


def _batch_norm(norm: nn.BatchNorm2d, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The maps, and scale and shift of each channel; running statistics move as in the module."""
    if norm.training or norm.running_mean is None or norm.running_var is None:
        x, mean, variance = channel_moments(x)
        follow(norm, mean.detach(), variance.detach(), x.numel() // x.shape[1])
    else:
        mean, variance = norm.running_mean, norm.running_var
    scale = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -mean * scale
    return x, scale, shift if norm.bias is None else shift + norm.bias


def _kept_images(drop_path: nn.Module, x: Tensor) -> Tensor | None:
    """The factor of each image that stochastic depth draws, or None for no dropping."""
    rate = float(getattr(drop_path, "rate", getattr(drop_path, "drop_prob", 0.0)) or 0.0)
    if rate == 0 or not drop_path.training:
        return None
    kept = x.new_empty(x.shape[0]).bernoulli_(1 - rate)
    return kept / (1 - rate) if getattr(drop_path, "scale_by_keep", True) else kept
