"""RIFormer, against the authors' outputs; and that nothing mixes tokens."""

import pytest
import torch

from foveate.backbones import create_model
from foveate.backbones.riformer import ReparamIdentity


@pytest.mark.paper("riformer")
def test_the_authors_outputs(oracle):
    official = oracle("riformer__s12")
    model = create_model("riformer_s12", num_classes=0)
    assert sum(p.numel() for p in model.parameters()) == official.facts["params"]
    official.load(model)
    model.forward = lambda x: model.head.norm(model.forward_features(x))
    stages = {f"network.{i}" for i in range(7)}
    assert stages | {"patch_embed", "norm6"} <= set(official.agrees(model))


@pytest.mark.paper("riformer")
def test_published_parameter_counts():
    """Table 8 of arXiv 2304.05659, in millions."""
    published = {"s12": 11.9, "s24": 21.4, "s36": 30.9, "m36": 56.2, "m48": 73.5}
    for name, millions in published.items():
        with torch.device("meta"):
            found = sum(p.numel() for p in create_model(f"riformer_{name}").parameters())
        assert found / 1e6 == pytest.approx(millions, abs=0.15), name


def test_the_affine_of_equation_4():
    op = ReparamIdentity(3)
    torch.nn.init.normal_(op.weight)
    torch.nn.init.normal_(op.bias)
    x = torch.randn(2, 3, 4, 5)
    affine = op.weight.view(1, 3, 1, 1) * x + op.bias.view(1, 3, 1, 1)
    torch.testing.assert_close(op(x), affine - x)
