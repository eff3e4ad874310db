"""Every native family keeps the contract of a backbone."""

import pytest
import torch

from foveate.backbones import (
    FeaturePyramid,
    create_model,
    explanation,
    layer_groups,
    list_models,
    load_weights,
    sizes,
    smallest_sizes,
    suggest_models,
)
from foveate.errors import FoveateError


@pytest.fixture(params=sorted({*smallest_sizes(), "sprint_photo_m"}))
def model(request):
    torch.manual_seed(0)
    return create_model(request.param, num_classes=4).eval()


def test_head_of_features_is_the_whole(model):
    images = torch.randn(2, 3, 64, 64)
    features = model.forward_features(images)
    assert features.shape[1] == model.num_features
    assert torch.equal(model.forward_head(features), model(images))
    width = model.forward_head(features, pre_logits=True).shape[1]
    assert width == model.head_hidden_size


def test_maps_are_as_announced(model):
    maps = model.forward_intermediates(torch.randn(1, 3, 64, 96), intermediates_only=True)
    for found, info in zip(maps, model.feature_info, strict=True):
        stride = info["reduction"]
        assert found.shape == (1, info["num_chs"], 64 // stride, 96 // stride)
    last, one = model.forward_intermediates(torch.randn(1, 3, 64, 64), indices=[0], stop_early=True)
    assert len(one) == 1
    assert torch.equal(last, one[0])


def test_pyramid(model, request):
    name = request.node.callspec.params["model"]
    pyramid = create_model(name, features_only=True)
    assert isinstance(pyramid, FeaturePyramid)
    maps = pyramid(torch.randn(1, 3, 64, 64))
    assert [m.shape[1] for m in maps] == pyramid.channels


def test_classifier_can_be_changed_and_taken_off(model):
    images = torch.randn(1, 3, 64, 64)
    model.reset_classifier(9)
    assert model(images).shape == (1, 9)
    model.reset_classifier(0)
    assert model(images).shape == (1, model.head_hidden_size)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("levit_mini32", {}),
        ("recnext_mini32", {}),
        ("glnet_mini32", {"dense": True}),
        ("svt_mini32", {"dense": True}),
        ("overlock_mini32", {"auxiliary": True}),
    ],
)
def test_all_classifiers_change_together(name, options, tmp_path):
    images = torch.randn(2, 3, 64, 64)
    model = create_model(name, num_classes=4, **options).eval()
    torch.save(model.state_dict(), tmp_path / "four.pth")
    for classes in (9, 0, 5):
        model.reset_classifier(classes)
        assert model(images).shape == (2, classes or model.head_hidden_size)
    five = {k: v.shape for k, v in model.state_dict().items()}
    fresh = create_model(name, num_classes=5, **options)
    assert {k: v.shape for k, v in fresh.state_dict().items()} == five
    skipped = load_weights(fresh, tmp_path / "four.pth").skipped
    assert {k.rsplit(".", 1)[0] for k in skipped} == set(fresh.default_cfg["classifier"])


def test_checkpointing_changes_no_gradient(model):
    images = torch.randn(2, 3, 64, 64)
    model.train()
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


def test_layers_name_every_parameter_once_from_stem_to_head(model):
    groups = layer_groups(model)
    names = [name for group in groups for name in group]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert groups[0][0].startswith("stem.")
    assert groups[-1][0].startswith("head.")


def test_explanation_names_the_last_map_in_which_places_count(model):
    seen = []
    lies = explanation(model)

    def keep(module, inputs, output):
        output.retain_grad()
        seen.append(output)

    model.get_submodule(lies.module).register_forward_hook(keep)
    features = model.forward_features(torch.randn(1, 3, 64, 64))
    if lies.layout == "BCHW":
        assert torch.equal(seen[0], features)
    else:
        assert (lies.layout, seen[0].shape) == ("BCN", features.shape)
    model.forward_head(features).sum().backward()
    assert (seen[0].grad[:, :, lies.prefix_tokens :].abs().amax(1) > 0).float().mean() > 0.5


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_odd_sizes_and_layouts(model, layout):
    images = torch.randn(1, 3, 75, 61).to(memory_format=layout)
    torch.testing.assert_close(
        model.to(memory_format=layout)(images), model(images.contiguous()), atol=1e-5, rtol=1e-4
    )


def test_bfloat16(model):
    assert model.bfloat16()(torch.randn(1, 3, 64, 64).bfloat16()).isfinite().all()


def test_too_small_an_image_is_said(model):
    with pytest.raises(FoveateError, match="too small"):
        model(torch.randn(1, 3, 3, 64))


def test_export(model):
    images = torch.randn(2, 3, 64, 64)
    program = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(program(images), model(images))


def test_names_are_listed_matched_and_suggested():
    assert "inception_next_tiny" in list_models()
    assert list_models("convnextv2_*") == sorted(n for n in sizes() if n.startswith("convnextv2"))
    assert suggest_models(32)[0] == "sprint_m"
    assert "convnext_atto" in suggest_models(224)
    with pytest.raises(FoveateError, match="4 pixels a side: give 8 to 4096, or name"):
        suggest_models(4)
    assert create_model("inceptionnext_atto", num_classes=2).num_classes == 2


def test_unknown_names_and_options():
    with pytest.raises(FoveateError, match="convnext_tiny"):
        create_model("convnex_tiny")
    with pytest.raises(FoveateError, match="width"):
        create_model("convnext_atto", width=3)


def test_timm_by_name():
    model = create_model("timm/resnet18", num_classes=3)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3)
    assert "timm/resnet18" in list_models("timm/resnet1*")
    assert explanation(model).module == "layer4"
    vit = create_model("timm/vit_tiny_patch16_224", num_classes=3)
    assert explanation(vit).layout == "BNC"
    assert explanation(create_model("timm/swin_tiny_patch4_window7_224")).layout == "BHWC"
