"""From a trained model to programs that run fast, and back into use."""

from foveate.deploy.artifact import load_model, load_network, save
from foveate.deploy.candidates import WAYS, Candidate
from foveate.deploy.deployed import Deployed, load_fastest
from foveate.deploy.export import FORMATS, Artifact, export, latency
from foveate.deploy.fastest import Search, fastest
from foveate.deploy.parity import Parity, parity
from foveate.deploy.predictor import Prediction, Predictor, load

__all__ = [
    "FORMATS",
    "WAYS",
    "Artifact",
    "Candidate",
    "Deployed",
    "Parity",
    "Prediction",
    "Predictor",
    "Search",
    "export",
    "fastest",
    "latency",
    "load",
    "load_fastest",
    "load_model",
    "load_network",
    "parity",
    "save",
]
