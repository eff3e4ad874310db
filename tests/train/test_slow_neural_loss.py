"""The slow neural loss: a sum by hand, and that it reaches slow networks alone."""

from types import SimpleNamespace

import pytest
import torch

from foveate.backbones import create_model
from foveate.errors import FoveateError
from foveate.train.hyperzzw_terminator import SlowNeuralLoss, slow_neural_loss


@pytest.mark.paper("hyperzzw_terminator")
def test_every_pair_of_blocks():
    kernels = [torch.randn(1, dim, 4, 4) for dim in (3, 12, 24)]
    expected = 0.0
    for i, deep in enumerate(kernels):
        for shallow in kernels[:i]:
            n, m = shallow.shape[1], deep.shape[1]
            parts = [(deep[0, c] - shallow[0, c % n]).square().mean() for c in range(m)]
            expected += sum(parts) / m
    torch.testing.assert_close(slow_neural_loss(kernels), expected)


@pytest.mark.paper("hyperzzw_terminator")
def test_its_feedback_goes_to_the_global_slow_networks():
    model = create_model("terminator_mini32", num_classes=2)
    training = SimpleNamespace(model=SimpleNamespace(backbone=model))
    ingredient = SlowNeuralLoss(weight=2.0)
    ingredient.start(training)
    nothing = torch.zeros(())
    loss = ingredient.loss(training, nothing, nothing, nothing)
    torch.testing.assert_close(loss, 2 * slow_neural_loss(model.hyper_kernels()))
    loss.backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    slow = [f"{block}.slow." for block in ("stem", "stages.0", "stages.1")]
    assert reached == {n for n, _ in model.named_parameters() if n.startswith(tuple(slow))}


def test_another_backbone_is_refused():
    training = SimpleNamespace(model=SimpleNamespace(backbone=torch.nn.Identity()))
    with pytest.raises(FoveateError, match="hyper-kernels"):
        SlowNeuralLoss().start(training)
