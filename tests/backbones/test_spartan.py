"""SpaRTAN, against the authors' outputs; and waves against complex numbers."""

import pytest
import torch

from foveate.backbones import create_model
from foveate.errors import FoveateError
from foveate.ops.spartan import MultiOrderMixer, WaveMixer


@pytest.mark.paper("spartan")
def test_the_authors_outputs(oracle):
    official = oracle("spartan__SpaRTAN_cfg")
    model = create_model("spartan_t")
    assert sum(p.numel() for p in model.parameters()) == official.facts["params"] == 3_820_296
    taps = {"conv.0": "stem.1", "conv.1": "stem.3", "conv": "stem"}
    taps |= {f"layers.{n}": f"stages.{i}.downsample" for i, n in ((1, 3), (2, 7), (3, 20))}
    for i, first, depth in ((0, 0, 3), (1, 4, 3), (2, 8, 12), (3, 21, 2)):
        taps |= {f"layers.{first + j}": f"stages.{i}.blocks.{j}" for j in range(depth)}
    taps["linear"] = "head.fc"
    found = official.agrees(official.load(model), taps)
    assert set(found) == set(official.facts["taps"]) - {"layers"}  # which is its last, layers.22


@pytest.mark.paper("spartan")
@pytest.mark.parametrize("grouped", [False, True])
def test_waves_are_complex_numbers(grouped):
    """Pixel by pixel with Python's own; outputs and gradients in double precision."""
    torch.manual_seed(0)
    op = WaveMixer(4, 2, grouped).eval().double()
    x = torch.randn(1, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    theta, weight = torch.nn.functional.gelu(op.theta(x)), op.proj(x)
    waves = torch.view_as_complex(op.waves)
    rows = []
    for y in range(3):
        for z in range(2):
            best = max(range(4), key=lambda c: x[0, c, y, z].item())
            at = (0, slice(None), y, z)
            feature = weight[at] * theta[at] + weight[0, best, y, z] * theta[0, best, y, z]
            turned = waves * torch.complex(feature[0::2], feature[1::2])
            rows.append(torch.view_as_real(turned).flatten())
    slow = torch.stack(rows, 1).view(1, 8, 3, 2)
    slow = op.proj_out(op.gate(op.act(op.conv(slow))))
    fast = op(x)
    torch.testing.assert_close(fast, slow)
    wanted = (x, op.waves)
    ours, theirs = (
        torch.autograd.grad(t.square().sum(), wanted, retain_graph=True) for t in (fast, slow)
    )
    torch.testing.assert_close(ours, theirs)


def test_mistakes():
    with pytest.raises(FoveateError, match="multiple of 8"):
        MultiOrderMixer(12)
    with pytest.raises(FoveateError, match="even"):
        WaveMixer(5, 1)
