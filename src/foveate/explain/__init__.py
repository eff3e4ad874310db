"""Why a model decides: maps of what in an image spoke for a class."""

from foveate.explain.gradcam import saliency

__all__ = ["saliency"]
