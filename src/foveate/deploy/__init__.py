"""From a trained model to programs that run fast, and back into use."""

from foveate.deploy.artifact import load_model, save
from foveate.deploy.export import FORMATS, Artifact, export, latency
from foveate.deploy.parity import Parity, parity
from foveate.deploy.predictor import Prediction, Predictor, load

__all__ = [
    "FORMATS",
    "Artifact",
    "Parity",
    "Prediction",
    "Predictor",
    "export",
    "latency",
    "load",
    "load_model",
    "parity",
    "save",
]
