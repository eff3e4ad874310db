"""Messages between slices, against the recursion written out, and how far they reach."""

import pytest
import torch

from foveate.ops.scnn import SpatialPropagation


@pytest.mark.paper("scnn")
def test_the_recursion_of_equation_1():
    """Downwards: row i adds to its own the rectified convolution of row i - 1 as it has become."""
    torch.manual_seed(0)
    op = SpatialPropagation(4, 5, ("down",)).double()
    x = torch.randn(2, 4, 6, 7, dtype=torch.float64)
    kernel = op.messages["down"].weight
    expected = x.clone()
    for i in range(1, 6):
        for j in range(7):
            total = torch.zeros(2, 4, dtype=torch.float64)
            for n in range(5):
                if 0 <= j + n - 2 < 7:
                    total += expected[:, :, i - 1, j + n - 2] @ kernel[:, :, n].T
            expected[:, :, i, j] = x[:, :, i, j] + total.relu().detach()
    torch.testing.assert_close(op(x), expected)


@pytest.mark.paper("scnn")
def test_directions_are_turns_of_one_another():
    torch.manual_seed(0)
    down = SpatialPropagation(3, 3, ("down",))
    x = torch.randn(1, 3, 5, 5)
    for name, turn in {
        "up": lambda t: t.flip(2),
        "right": lambda t: t.transpose(2, 3),
        "left": lambda t: t.flip(3).transpose(2, 3),
    }.items():
        other = SpatialPropagation(3, 3, (name,))
        other.messages[name].load_state_dict(down.messages["down"].state_dict())
        back = (lambda t: t.transpose(2, 3).flip(3)) if name == "left" else turn
        torch.testing.assert_close(other(x), back(down(turn(x))))


@pytest.mark.paper("scnn")
def test_every_pixel_hears_of_every_other():
    op = SpatialPropagation(2, 3).double()
    for message in op.messages.values():
        torch.nn.init.constant_(message.weight, 0.1)
    x = torch.rand(1, 2, 7, 8, dtype=torch.float64, requires_grad=True)
    for corner in ((0, 0), (6, 7), (3, 0)):
        (gradient,) = torch.autograd.grad(op(x)[0, 0, corner[0], corner[1]], x)
        assert (gradient != 0).all()


def test_parameters():
    assert sum(p.numel() for p in SpatialPropagation(8).parameters()) == 4 * 8 * 8 * 9
