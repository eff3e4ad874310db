"""Grad-CAM: where in the image the evidence for a class lies.

Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via
Gradient-based Localization" (arXiv 1610.02391, section 3).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.backbones import Explanation, explanation
from foveate.errors import FoveateError

CHUNK = 32


def saliency(
    model: nn.Module, images: ArrayLike | Tensor, targets: ArrayLike | Tensor
) -> np.ndarray:
    """Show where each image speaks for a class.

    The map to look at is the one that the backbone's `explanation()` names; for a
    model that names none it is the last one with more than one pixel.

    Args:
        model: a VisionModel, or any module from images to logits (B, classes).
        images: (B, 3, H, W), uint8 or float, as the model takes them.
        targets: (B,) class indices to explain.

    Returns: float32 (B, H, W) in [0, 1]: each image's strongest place is 1, and
        an image in which nothing speaks for its class is 0 everywhere.
    Raises: FoveateError if the model makes no map.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    pixels = torch.as_tensor(images, device=device)
    classes = torch.as_tensor(targets, device=device).long()
    if len(pixels) == 0:
        return np.zeros((0, *pixels.shape[-2:]), np.float32)
    with _evaluating(model):
        module, lies = _explained(model, pixels[:1])
        chunks = zip(pixels.split(CHUNK), classes.split(CHUNK), strict=True)
        maps = [_normalise(_cam(model, module, lies, x, y), x) for x, y in chunks]
    return torch.cat(maps).cpu().numpy()


def _cam(
    model: nn.Module, module: nn.Module, lies: Explanation, images: Tensor, targets: Tensor
) -> Tensor:
    """Channels weighted by their mean gradient, summed, negative evidence dropped: (B, h, w)."""
    taken: list[Tensor] = []

    def take(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        taken.append(output.detach().requires_grad_())
        return taken[-1].clone()

    handle = module.register_forward_hook(take)
    try:
        with torch.enable_grad():
            logits = model(images)
            score = logits.gather(1, targets[:, None]).sum()
            (gradient,) = torch.autograd.grad(score, taken[-1])
    finally:
        handle.remove()
    activation = _as_map(taken[-1].detach(), lies, images)
    weights = _as_map(gradient, lies, images).mean(dim=(2, 3), keepdim=True)
    return (weights * activation).sum(dim=1).relu().float()


def _normalise(cam: Tensor, images: Tensor) -> Tensor:
    """To the size of the images, each image's maximum 1: (B, h, w) to (B, H, W)."""
    resized = F.interpolate(cam[:, None], images.shape[-2:], mode="bilinear", align_corners=False)
    peak = resized.amax(dim=(2, 3), keepdim=True)
    return torch.where(peak > 0, resized / peak, 0).clamp(0, 1)[:, 0]


def _as_map(x: Tensor, lies: Explanation, images: Tensor) -> Tensor:
    """A map of any layout as (B, C, h, w)."""
    if lies.layout == "BCHW":
        return x
    if lies.layout == "BHWC":
        return x.permute(0, 3, 1, 2)
    tokens = (x.mT if lies.layout == "BNC" else x.flatten(2))[:, :, lies.prefix_tokens :]
    grid = _grid(tokens.shape[2], images.shape[-2] / images.shape[-1])
    return tokens.unflatten(2, grid)


def _grid(tokens: int, aspect: float) -> tuple[int, int]:
    """Rows and columns that the tokens fill, as near to the image's aspect as can be."""
    rows = [r for r in range(1, tokens + 1) if tokens % r == 0]
    best = min(rows, key=lambda r: abs(math.log(r * r / tokens / aspect)))
    return best, tokens // best


def _explained(model: nn.Module, image: Tensor) -> tuple[nn.Module, Explanation]:
    """The module whose output is looked at, and how that output lies."""
    backbone = getattr(model, "backbone", model)
    named = explanation(backbone)
    if named is None:
        return _last_map(model, image), Explanation("")
    return backbone.get_submodule(named.module), named


def _last_map(model: nn.Module, image: Tensor) -> nn.Module:
    """The module that, on this image, is the last to give a 4-D map of more than one pixel."""
    seen: list[nn.Module] = []

    def note(module: nn.Module, _inputs: tuple[Tensor, ...], output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[-2:].numel() > 1:
            seen.append(module)

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise FoveateError(
            f"{type(model).__name__} makes no map (B, C, H, W) to explain: "
            "give its backbone an explanation() that names the module to look at"
        )
    return seen[-1]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The whole model in evaluation mode, and every module's own mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
