"""The leanest graph that computes what a trained network computes."""

import copy

import torch
from torch import Tensor, fx, nn

from foveate.ops.merge import merge
from foveate.surgery.edit import Covered
from foveate.surgery.graphs import capture
from foveate.surgery.maps import channels_first
from foveate.surgery.merging import merge_graph


def lean(
    model: nn.Module, images: Tensor, *, rewrite_maps: bool = True, tolerance: float = 1e-4
) -> tuple[fx.GraphModule, list[Covered]]:
    """Capture a model and merge in it all that can be merged.

    Args:
        model: any torch network, trained; stays as it is.
        images: a batch that it takes, to prove each merge on.
        rewrite_maps: also compute with channels first what can be (see `maps`).
        tolerance: largest error of one merge, and of all together, against the largest output.

    Returns: the graph, for any batch size, and what was done.
    Raises: FoveateError if the model's graph cannot be captured.
    """
    images = images[:2]
    graph = capture(merge(copy.deepcopy(model)), images)
    coverage = channels_first(graph) if rewrite_maps else []
    coverage += merge_graph(graph, images, tolerance)
    return graph, coverage


@torch.inference_mode()
def largest_error(before: nn.Module, after: nn.Module, images: Tensor) -> float:
    """Largest difference of two networks' outputs, against the largest output."""
    expected, given = before(images), after(images)
    return float((expected - given).abs().max() / expected.abs().max().clamp_min(1e-12))
