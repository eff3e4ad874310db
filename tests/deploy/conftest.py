"""A trained model and its artifact, made once for all tests of the room."""

import pytest
import torch

from foveate import data
from foveate.deploy import export
from foveate.vision import VisionModel


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What is measured in a test is remembered for that test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def digits():
    return data.open("digits")


@pytest.fixture(scope="session")
def trained(digits, taught, tmp_path_factory):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = VisionModel.create("sprint_s", digits.labels, size=16)
    return taught(model, digits, 4, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def artifact(trained, digits, tmp_path_factory):
    return export(trained, digits, tmp_path_factory.mktemp("artifact") / "model", again=True)
