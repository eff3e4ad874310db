"""EMOv2, against the authors' outputs and attention within loops over windows."""

import pytest
import torch

from foveate.backbones import create_model
from foveate.errors import FoveateError
from foveate.ops.emov2 import SpannedAttention


@pytest.mark.paper("emov2")
def test_the_authors_outputs(oracle):
    official = oracle("emov2__EMO2_1M")
    model = official.load(create_model("emov2_1m"))
    assert sum(p.numel() for p in model.parameters()) == official.facts["params"]
    official.facts["outputs"] = official.facts["outputs"][:1]
    stem = {"stage0.0": "stem.1", "stage0.1": "stem.3", "stage0.2": "stem.4"}
    found = set(official.agrees(model, stem))
    assert {"stage0.0", "stage0.2", "stage1.1", "stage3.7", "stage4.2", "norm", "head"} <= found


@pytest.mark.paper("emov2")
def test_published_parameter_counts():
    """Table 2 of arXiv 2412.06674, in millions, cut after a digit."""
    for name, millions in {"1m": 1.4, "2m": 2.3, "5m": 5.1}.items():
        with torch.device("meta"):
            found = sum(p.numel() for p in create_model(f"emov2_{name}").parameters())
        assert found // 1e5 / 10 == millions, name


@pytest.mark.paper("emov2")
@pytest.mark.parametrize("size", [(6, 6), (5, 7)])
def test_near_and_spanned_windows(size):
    torch.manual_seed(0)
    op = SpannedAttention(4, 6, head_dim=2, window=3).double()
    x = torch.randn(1, 4, *size, dtype=torch.float64)
    high, wide = (-(-side // 3) * 3 for side in size)
    padded = torch.zeros(1, 4, high, wide, dtype=torch.float64)
    padded[..., : size[0], : size[1]] = x
    qk, v = op.qk(padded)[0], torch.nn.functional.gelu(op.v(padded))[0]
    expected = torch.zeros(6, high, wide, dtype=torch.float64)
    rows, columns = high // 3, wide // 3
    for r in range(rows):
        for c in range(columns):
            near = [(3 * r + i, 3 * c + j) for i in range(3) for j in range(3)]
            far = [(r + rows * i, c + columns * j) for i in range(3) for j in range(3)]
            for places in (near, far):
                y, z = (torch.tensor(line) for line in zip(*places, strict=True))
                for head in range(2):
                    q = qk[2 * head : 2 * head + 2, y, z].T
                    k = qk[4 + 2 * head : 6 + 2 * head, y, z].T
                    shares = (q @ k.T / 2**0.5).softmax(-1)
                    values = v[3 * head : 3 * head + 3, y, z].T
                    expected[3 * head : 3 * head + 3, y, z] += (shares @ values).T
    torch.testing.assert_close(op(x)[0], expected[:, : size[0], : size[1]])


def test_heads_that_do_not_fit():
    with pytest.raises(FoveateError, match="head_dim"):
        SpannedAttention(10, 10, head_dim=4)
