"""Let any network's layers run through the kernels, and let them be as they were again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

from torch import Tensor, nn

from foveate.ops.kernels.batch_norm import batch_norm_forward
from foveate.ops.kernels.depthwise import LARGEST, conv_forward
from foveate.ops.kernels.gelu import gelu
from foveate.ops.kernels.inception import inception_mix
from foveate.ops.kernels.layer_norm import layer_norm_channels
from foveate.ops.kernels.tail import fusable, fused_tail, is_gelu, is_watched, kind


@dataclass(frozen=True)
class Shortcut:
    """How modules of a kind run through a kernel.

    Attributes:
        fits: whether a module is of the kind.
        method: name of its method that is replaced on the instance.
        by: what replaces it; it falls back to PyTorch by itself.
    """

    fits: Callable[[nn.Module], bool]
    method: str
    by: Callable[..., Tensor]


def accelerate(model: nn.Module) -> list[str]:
    """Run a model's layers through the kernels from now on.

    Parameters, names and hooks stay as they are, and results are the same up
    to rounding; where a kernel can't run (another device or type, tracing,
    exporting) PyTorch does, as before. Known are depthwise `nn.Conv2d`s,
    GELUs, batch norms in training, layer norms of maps, Inception mixers, and blocks of ConvNeXt's
    pattern, in Foveate's backbones, timm's, torchvision's and others' networks.

    Args:
        model: changed in place; `restore` undoes it.

    Returns: the names of the modules that were changed.
    """
    changed = []
    for name, module in model.named_modules():
        for shortcut in SHORTCUTS:
            if shortcut.method not in vars(module) and shortcut.fits(module):
                object.__setattr__(module, shortcut.method, MethodType(shortcut.by, module))
                changed.append(name)
                break
    return changed


def restore(model: nn.Module) -> None:
    """Undo `accelerate`."""
    for module in model.modules():
        _restore(module)


def _restore(module: nn.Module) -> None:
    for shortcut in SHORTCUTS:
        own = vars(module).get(shortcut.method)
        if getattr(own, "__func__", None) is shortcut.by:
            object.__delattr__(module, shortcut.method)


@contextmanager
def accelerated(model: nn.Module) -> Iterator[list[str]]:
    """`accelerate` for the length of a `with` block; what was fast before it stays so."""
    changed = accelerate(model)
    modules = [model.get_submodule(name) for name in changed]
    try:
        yield changed
    finally:
        for module in modules:
            _restore(module)


# ---------------------------------------------------------------- kinds of modules


def _one_of(*names: str) -> Callable[[nn.Module], bool]:
    """Whether a module's class is one of these, which need not be importable."""
    return lambda module: kind(module) in names


def _is_depthwise(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and type(module)._conv_forward is nn.Conv2d._conv_forward
        and 1 < module.groups == module.in_channels == module.out_channels
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and all(side % 2 and side <= LARGEST for side in module.kernel_size)
        and max(module.kernel_size) > 1
    )


_is_channel_norm = _one_of(
    "foveate.ops.layer_norm.LayerNorm2d",
    "timm.layers.norm.LayerNorm2d",
    "torchvision.models.convnext.LayerNorm2d",
)
_is_norm_with_act = _one_of("timm.layers.norm_act.BatchNormAct2d")
_is_mixer = _one_of(
    "foveate.ops.inceptionnext.InceptionDepthwise", "timm.models.inception_next.InceptionDWConv2d"
)
_is_block = _one_of(
    "foveate.backbones.parts.Block",
    "timm.models.convnext.ConvNeXtBlock",
    "timm.models.inception_next.MetaNeXtBlock",
)


def _is_undilated_mixer(module: nn.Module) -> bool:
    return _is_mixer(module) and module.dwconv_hw.dilation == (1, 1)  # pyright: ignore


# ---------------------------------------------------------------- what they do instead


def _norm_forward(norm: Any, x: Tensor) -> Tensor:
    if norm.weight is None or x.shape[1:2] != norm.normalized_shape:
        return type(norm).forward(norm, x)
    return layer_norm_channels(x, norm.weight, norm.bias, norm.eps)


def _norm_act_forward(norm: Any, x: Tensor) -> Tensor:
    return norm.act(norm.drop(batch_norm_forward(norm, x)))


def _gelu_forward(act: Any, x: Tensor) -> Tensor:
    return gelu(x)


def _mixer_forward(mixer: Any, x: Tensor) -> Tensor:
    convs = (mixer.dwconv_hw, mixer.dwconv_w, mixer.dwconv_h)
    if any(map(is_watched, convs)):
        return type(mixer).forward(mixer, x)
    return inception_mix(x, *(t for conv in convs for t in (conv.weight, conv.bias)))


def _block_forward(block: Any, x: Tensor) -> Tensor:
    passes_on = isinstance(getattr(block, "shortcut", None), nn.Identity | None)
    layers = fusable(block, x) if passes_on else None
    if layers is None:
        return type(block).forward(block, x)
    mixer = getattr(block, "_mixer", "conv_dw" if hasattr(block, "conv_dw") else "token_mixer")
    return fused_tail(block, layers, getattr(block, mixer)(x), x)


SHORTCUTS = (
    Shortcut(_is_depthwise, "_conv_forward", conv_forward),
    Shortcut(is_gelu, "forward", _gelu_forward),
    Shortcut(lambda module: type(module) is nn.BatchNorm2d, "forward", batch_norm_forward),
    Shortcut(_is_norm_with_act, "forward", _norm_act_forward),
    Shortcut(_is_channel_norm, "forward", _norm_forward),
    Shortcut(_is_undilated_mixer, "forward", _mixer_forward),
    Shortcut(_is_block, "forward", _block_forward),
)
