"""Foveate: a folder of images becomes a small, fast, explained vision model.

The names below are imported when first used, so `import foveate` costs nothing.
"""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from foveate.errors import FoveateError

if TYPE_CHECKING:
    from foveate.backbones import create_model, list_models
    from foveate.deploy import Predictor, load, load_model, load_network, save
    from foveate.train import Recipe
    from foveate.vision import Preprocess, VisionModel

__version__ = version("foveate")

_HOMES = {
    "Predictor": "foveate.deploy",
    "Preprocess": "foveate.vision",
    "Recipe": "foveate.train",
    "VisionModel": "foveate.vision",
    "create_model": "foveate.backbones",
    "list_models": "foveate.backbones",
    "load": "foveate.deploy",
    "load_model": "foveate.deploy",
    "load_network": "foveate.deploy",
    "save": "foveate.deploy",
}

__all__ = [
    "FoveateError",
    "Predictor",
    "Preprocess",
    "Recipe",
    "VisionModel",
    "create_model",
    "list_models",
    "load",
    "load_model",
    "load_network",
    "save",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'foveate' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
