"""Every native family leaves PyTorch with its outputs, and compiles in one piece."""

import contextlib
import io

import pytest
import torch

from foveate.backbones import sizes, smallest_sizes
from foveate.deploy.formats import Program, to_openvino, write_onnx
from foveate.deploy.runtimes import OnnxRuntime, OpenVinoRuntime
from foveate.vision import VisionModel

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")


@pytest.fixture(params=smallest_sizes())
def model(request) -> VisionModel:
    torch.manual_seed(0)
    labels = [str(i) for i in range(5)]
    side = min(64, sizes()[request.param][1].side)
    model = VisionModel.create(request.param, labels, side).eval()
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_onnx_and_openvino_give_the_same(model, tmp_path):
    side = model.preprocess.size
    images = torch.rand(3, 3, side, side)
    with torch.inference_mode():
        expected = Program(model).eval()(images).numpy()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        write_onnx(model, tmp_path / "model.onnx")
    runtimes = (
        OnnxRuntime(tmp_path / "model.onnx"),
        OpenVinoRuntime(to_openvino(tmp_path / "model.onnx")),
    )
    for run in runtimes:
        for count in (3, 1):
            found = run(images[:count].numpy())
            assert abs(found - expected[:count]).max() < 1e-5 * abs(expected).max()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_one_graph(model):
    torch._dynamo.reset()
    side = model.preprocess.size
    explained = torch._dynamo.explain(Program(model).eval())(torch.rand(2, 3, side, side))
    assert explained.graph_break_count == 0, explained.break_reasons
