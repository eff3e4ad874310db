"""bfloat16 is taken where a step is clearly faster with it, by a clock that the test turns."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from foveate.train import precision
from foveate.vision import Preprocess, VisionModel


class Timed(nn.Module):
    """A classifier whose steps take as long as the test says."""

    def __init__(self, clock: dict[str, float], half: float) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 8 * 8, 4)
        self.clock, self.half = clock, half

    def __deepcopy__(self, memo):
        return Timed(self.clock, self.half)

    def forward(self, x):
        self.clock["now"] += self.half if torch.is_autocast_enabled("cpu") else 1.0
        self.clock["most"] = max(self.clock["most"], len(x))
        return self.head(x.flatten(1))


@pytest.mark.parametrize(
    ("half", "chosen", "most"),
    [(0.5, "bfloat16", 8), (0.95, "float32", 8), (3.0, "float32", precision.FIRST)],
)
def test_it_must_pay_and_a_hopeless_one_sees_few_images(monkeypatch, half, chosen, most):
    clock = {"now": 0.0, "most": 0}
    monkeypatch.setattr(precision, "time", SimpleNamespace(perf_counter=lambda: clock["now"]))
    model = VisionModel(Timed(clock, half), Preprocess(size=8), list("abcd"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8)
    assert precision.choose_precision(model, images, 4) == chosen
    assert clock["most"] == most
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
