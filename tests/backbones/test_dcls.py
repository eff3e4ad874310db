"""Learnable spacings: the authors' outputs, gradients of positions, kernels with closed forms."""

import pytest
import torch
from torch.nn import functional as F

from foveate.backbones import create_model
from foveate.errors import FoveateError
from foveate.ops.dcls import Dcls1d, Dcls2d, Dcls3d, DepthwiseDcls


@pytest.mark.paper("dcls")
def test_the_authors_outputs(oracle):
    official = oracle("dcls__convnext_dcls_tiny")
    model = official.load(create_model("convnext_dcls_tiny"))
    assert sum(p.numel() for p in model.parameters()) == official.facts["params"]
    stages = {f"stages.{i}" for i in range(4)}
    assert stages | {"downsample_layers.0", "norm", "head"} <= set(official.agrees(model))


@pytest.mark.paper("dcls")
@pytest.mark.parametrize("interpolation", ["bilinear", "gauss"])
@pytest.mark.parametrize("kind", [Dcls1d, Dcls2d, Dcls3d])
def test_gradients_of_positions_against_finite_differences(kind, interpolation):
    torch.manual_seed(0)
    op = kind(4, 4, 3, 5, groups=2, interpolation=interpolation).double()
    torch.nn.init.uniform_(op.positions, -1.9, 1.9)

    def kernel(*values):
        return torch.func.functional_call(op, dict(zip(names, values, strict=True)), (x,))

    names = [name for name, _ in op.named_parameters()]
    x = torch.randn(1, 4, *[5] * kind.axes, dtype=torch.float64)
    values = tuple(p.detach().requires_grad_() for p in op.parameters())
    assert torch.autograd.gradcheck(kernel, values)


@pytest.mark.paper("dcls")
def test_whole_positions_are_a_dilated_convolution():
    op = Dcls2d(2, 3, 9, 7, bias=False)
    taps = torch.tensor([-3.0, 0.0, 3.0])
    with torch.no_grad():
        op.positions[0] = taps.repeat_interleave(3)
        op.positions[1] = taps.repeat(3)
    x = torch.randn(1, 2, 10, 11)
    expected = F.conv2d(x, op.weight.view(3, 2, 3, 3), padding=3, dilation=3)
    torch.testing.assert_close(op(x), expected, atol=1e-5, rtol=1e-5)


def test_a_weight_is_shared_among_the_four_taps_around_it():
    op = Dcls2d(1, 1, 1, 3, bias=False)
    with torch.no_grad():
        op.weight.fill_(1.0)
        op.positions[0], op.positions[1] = 0.25, -0.5
    expected = torch.tensor([[0, 0, 0], [0.375, 0.375, 0], [0.125, 0.125, 0]])
    torch.testing.assert_close(op.kernel()[0, 0], expected)


def test_the_gauss_sums_to_its_weight():
    op = Dcls3d(2, 4, 3, 9, interpolation="gauss")
    torch.testing.assert_close(op.kernel().sum((2, 3, 4)), op.weight.sum(2))


def test_positions_are_shared_in_a_stage_and_survive_a_round_trip(tmp_path):
    model = create_model("convnext_dcls_mini32", num_classes=3)
    again = create_model("convnext_dcls_mini32", num_classes=3)
    again.load_state_dict(model.state_dict())
    blocks = again.stages[1].blocks
    assert blocks[0].conv_dw.positions is blocks[1].conv_dw.positions
    assert len(model.no_weight_decay()) == 3
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(again.eval()(x), model.eval()(x))


def test_positions_outside_come_back_to_the_edge():
    op = DepthwiseDcls(1, 1, 5)
    torch.nn.init.constant_(op.positions, 40.0)
    assert op.kernel()[0, 0, 4, 4] == op.weight.flatten()[0]


def test_mistakes():
    with pytest.raises(FoveateError, match="odd"):
        Dcls2d(1, 1, 1, 4)
    with pytest.raises(FoveateError, match="gauss"):
        Dcls2d(1, 1, 1, 3, interpolation="cubic")
