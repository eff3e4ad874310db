"""What a layer multiplies its weights with, as rows of a matrix: convolutions by unfolding."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def columns(
    x: Tensor, weight: Tensor, geometry: dict[str, Any], some: int, generator: torch.Generator
) -> Tensor:
    """Inputs of single outputs of a layer, at randomly chosen places of each image.

    Args:
        x: input of the layer, (B, C, H, W), or (B, ..., C) of a linear one.
        weight: of the layer.
        geometry: of `geometry_of` the layer.
        some: places of an image, at most.
        generator: chooses; one with the same seed chooses the same places.

    Returns: (groups, places, weights of an output), to be multiplied with `by_group(weight)`.
    """
    if weight.ndim == 2:
        rows = x.reshape(len(x), -1, x.shape[-1]).transpose(1, 2)
        return _chosen(rows, 1, some, generator)
    kernel, dilation, groups = weight.shape[2:], geometry["dilation"], geometry["groups"]
    x = F.pad(x, _margins(kernel, dilation, geometry["padding"]))
    rows = F.unfold(x, tuple(kernel), dilation, 0, geometry["stride"])
    return _chosen(rows, groups, some, generator)


def by_group(weight: Tensor, geometry: dict[str, Any]) -> Tensor:
    """A layer's weight as (groups, outputs of a group, weights of an output)."""
    return weight.reshape(geometry.get("groups", 1), -1, weight[0].numel())


def _chosen(rows: Tensor, groups: int, some: int, generator: torch.Generator) -> Tensor:
    """(B, groups x weights, places) at some places, as (groups, places, weights)."""
    places = rows.shape[2]
    if places > some:
        chosen = torch.rand(len(rows), places, generator=generator).argsort(1)[:, :some]
        chosen = chosen.to(rows.device)[:, None].expand(-1, rows.shape[1], -1)
        rows = rows.gather(2, chosen)
    rows = rows.reshape(len(rows), groups, -1, rows.shape[2])
    return rows.permute(1, 0, 3, 2).flatten(1, 2)


def _margins(kernel: Any, dilation: Any, padding: Any) -> list[int]:
    """A convolution's padding as F.pad takes it: left, right, top, bottom."""
    if padding == "valid":
        return [0] * 4
    if padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return [total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2]
    return [padding[1], padding[1], padding[0], padding[0]]
