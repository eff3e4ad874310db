"""VoVNet, against the authors' outputs and timm's."""

import pytest
import timm
import torch

from foveate.backbones import create_model


@pytest.mark.paper("vovnet")
def test_the_authors_outputs(oracle):
    official = oracle("vovnet__vovnet39")
    model = official.load(create_model("vovnet39"))
    assert sum(p.numel() for p in model.parameters()) == official.facts["params"]
    found = official.agrees(model)
    assert {"stem", "stage2", "stage3.Pooling", "stage5.OSA5_2", "classifier"} <= set(found)


@pytest.mark.paper("vovnet")
@pytest.mark.parametrize(("ours", "theirs"), [("vovnet39", "vovnet39a"), ("vovnet57", "vovnet57a")])
def test_as_many_parameters_as_timms(ours, theirs):
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in model.parameters())
            for model in (create_model(ours), timm.create_model(theirs))
        ]
    assert counts[0] == counts[1]
