"""Networks by name: one file a family, one contract for all."""

from foveate.backbones.base import Backbone, Explanation, FeaturePyramid, Size
from foveate.backbones.registry import (
    architecture_of,
    create_model,
    family_recipe,
    list_models,
    register,
    require_name,
    sizes,
    smallest_sizes,
    suggest_models,
)
from foveate.backbones.views import explanation, layer_groups, no_weight_decay
from foveate.backbones.weights import Loaded, load_weights

__all__ = [
    "Backbone",
    "Explanation",
    "FeaturePyramid",
    "Loaded",
    "Size",
    "architecture_of",
    "create_model",
    "explanation",
    "family_recipe",
    "layer_groups",
    "list_models",
    "load_weights",
    "no_weight_decay",
    "register",
    "require_name",
    "sizes",
    "smallest_sizes",
    "suggest_models",
]
