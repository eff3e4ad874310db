"""ResNet and what papers put into it, against the authors' and timm's outputs."""

import pytest
import timm
import torch

from foveate.backbones import create_model, sizes


@pytest.mark.paper("resnet")
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnet_equals_timm(twins, name):
    _same(*twins(name))


@pytest.mark.paper("se")
def test_se_resnet_equals_timm(twins):
    """Of fifty layers; in the shallower ones timm rounds hidden widths up to eights."""
    _same(*twins("seresnet50"))


@pytest.mark.paper("eca")
def test_eca_resnet_gives_the_authors_outputs(oracle):
    official = oracle("eca__eca_resnet18")
    model = official.load(create_model("eca_resnet18"))
    assert sum(p.numel() for p in model.parameters()) == official.facts["params"]
    assert {"conv1", "layer1.0", "layer1", "layer4.1", "layer4", "fc"} <= set(
        official.agrees(model)
    )


@pytest.mark.paper("pflayer")
def test_pf_resnet_gives_the_authors_outputs(oracle):
    official = oracle("pflayer__resnet50_max")
    model = official.load(create_model("pf_resnet50_max"))
    assert sum(p.numel() for p in model.parameters()) == official.facts["params"]
    found = official.agrees(model, {"conv1": "stem.2"})
    assert {"conv1", "layer1.0", "layer3.5", "layer4", "fc"} <= set(found)


@pytest.mark.paper("pflayer")
def test_pf_resnet_published_parameter_counts():
    """Table 5 of arXiv 2202.02777, in millions."""
    for name, millions in {"max": 14.2, "hybrid": 17.3}.items():
        with torch.device("meta"):
            found = sum(p.numel() for p in create_model(f"pf_resnet50_{name}").parameters())
        assert found / 1e6 == pytest.approx(millions, abs=0.1), name


@pytest.mark.paper("involution")
def test_rednet_gives_the_authors_outputs(oracle):
    official = oracle("involution__RedNet-26_backbone__no_head")
    model = create_model("rednet26", num_classes=0)
    assert sum(p.numel() for p in model.parameters()) == official.facts["params"]
    official.load(model)
    model.forward = model.forward_features
    stem = {"stem.0": "stem.2", "stem.3": "stem.5", "stem.4": "stem.8", "stem": "none"}
    assert {"stem.1", "layer1", "layer2.0", "layer4"} <= set(official.agrees(model, stem))


@pytest.mark.paper("involution")
def test_rednet_published_parameter_counts():
    """Table 1 of arXiv 2103.06255, in millions."""
    published = {26: 9.2, 38: 12.4, 50: 15.5, 101: 25.6, 152: 34.0}
    for depth, millions in published.items():
        with torch.device("meta"):
            found = sum(p.numel() for p in create_model(f"rednet{depth}").parameters())
        assert found / 1e6 == pytest.approx(millions, abs=0.06), depth


SAME_AS_TIMM = {n for n in sizes() if "resnet" in n and timm.is_model(n)}


@pytest.mark.parametrize("name", sorted(SAME_AS_TIMM - {"seresnet18", "seresnet34"}))
def test_every_size_has_timms_parameters(name):
    with torch.device("meta"):
        theirs, ours = timm.create_model(name), create_model(name)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@torch.inference_mode()
def _same(theirs, ours):
    images = torch.randn(2, 3, 64, 96)
    expected = theirs(images)
    assert (ours(images) - expected).abs().max() < 1e-5 * expected.abs().max()
    for a, b in zip(
        ours.forward_intermediates(images, intermediates_only=True),
        theirs.forward_intermediates(images, intermediates_only=True)[-4:],
        strict=True,
    ):
        assert (a - b).abs().max() < 1e-5 * b.abs().max()
