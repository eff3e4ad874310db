"""OverLoCK, in both forms, against the authors' outputs."""

import numpy as np
import pytest
import torch

from foveate.backbones import create_model, layer_groups, load_weights
from foveate.ops.merge import is_mergeable, merge

BLOCKS = {"sub_blocks3.": "stages.2.focus.", "sub_blocks4.": "stages.3.blocks."}


@pytest.mark.paper("overlock")
@pytest.mark.parametrize("form", ["_overlock_xt", "_xt_reparam"])
def test_the_authors_outputs(oracle, form):
    official = oracle(f"overlock_{form}")
    model = official.load(create_model("overlock_xt", deploy="reparam" in form))
    assert sum(p.numel() for p in model.parameters()) == official.facts["params"]
    dynamic = {name: fact for name, fact in official.facts["taps"].items() if "sub_" in name}
    seen = {}
    for name, fact in dynamic.items():
        for theirs, ours in BLOCKS.items():
            name = name.replace(theirs, ours)
        module = model.get_submodule(name)
        channels = fact["shape"][1]  # the authors hand on the context apart

        def keep(module, inputs, out, key=name, channels=channels):
            seen[key] = out[:, :channels].clone()

        module.register_forward_hook(keep)
    found = set(official.agrees(model, dict.fromkeys([*dynamic, "patch_embedx"], "elsewhere")))
    assert {"blocks1.1", "blocks3.2", "blocks4.1", "high_level_proj", "head.4"} <= found
    assert len(seen) == 8
    for out, fact in zip(seen.values(), dynamic.values(), strict=True):
        assert list(out.shape) == fact["shape"]
        apart = np.abs(out.flatten()[:8].numpy() - np.array(fact["first"])).max()
        assert apart <= 1e-4 * max(fact["std"], abs(fact["mean"]))
        assert out.mean().item() == pytest.approx(fact["mean"], abs=1e-4 * fact["std"])
        assert out.std().item() == pytest.approx(fact["std"], rel=1e-4)


@pytest.mark.paper("overlock")
def test_published_parameter_counts():
    """The table of the authors' page, in millions; of the deployed form without its auxiliary."""
    for name, millions in {"xt": 16, "t": 33, "s": 56, "b": 95}.items():
        with torch.device("meta"):
            model = create_model(f"overlock_{name}", auxiliary=False)
        found = sum(p.numel() for key, p in model.named_parameters() if ".dil_" not in key)
        assert found / 1e6 == pytest.approx(millions, abs=0.8), name


@pytest.mark.paper("overlock")
@pytest.mark.parametrize("side", [64, 43])
@torch.inference_mode()
def test_merging_changes_no_output(side):
    torch.manual_seed(0)
    model = create_model("overlock_mini32", num_classes=5, auxiliary=True).eval().double()
    for key, tensor in model.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif tensor.dtype.is_floating_point:
            tensor.add_(0.1 * torch.randn_like(tensor))
    images = torch.randn(2, 3, side, side, dtype=torch.float64)
    before, parameters = model(images), sum(p.numel() for p in model.parameters())
    assert is_mergeable(model)
    after = merge(model)(images)
    torch.testing.assert_close(after, before, atol=1e-9, rtol=1e-9)
    assert sum(p.numel() for p in model.parameters()) < parameters
    assert torch.equal(merge(model)(images), after)


def test_the_overview_has_a_classifier_of_its_own():
    model = create_model("overlock_mini32", num_classes=5, auxiliary=True)
    model.reset_classifier(3)
    overview = torch.randn(2, 96, 4, 4)
    assert model.stages[2].auxiliary(overview).shape == (2, 3)
    names = [name for group in layer_groups(model) for name in group]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    focus = next(i for i, n in enumerate(names) if n.startswith("stages.2.focus.0."))
    overview = next(i for i, n in enumerate(names) if n.startswith("stages.2.overview.blocks.0."))
    assert names.index("stages.2.blocks.0.dwconv.weight") < overview < focus


def test_weights_for_other_classes_leave_both_classifiers(tmp_path):
    torch.manual_seed(0)
    names = create_model("overlock_mini32", num_classes=5, auxiliary=True).state_dict()
    torch.save(names, tmp_path / "weights.pth")
    model = create_model("overlock_mini32", num_classes=3, auxiliary=True)
    skipped = load_weights(model, tmp_path / "weights.pth").skipped
    assert {name.rsplit(".", 1)[0] for name in skipped} == {"head.fc", "stages.2.auxiliary.1.fc"}


def test_context_reaches_the_focus():
    """What the overview sees changes the map that it guides."""
    torch.manual_seed(0)
    model = create_model("overlock_mini32", num_classes=5).eval()
    images = torch.randn(1, 3, 32, 32)
    before = model.forward_intermediates(images, intermediates_only=True)
    assert [m.shape[1] for m in before] == [24, 48, 64 + 24, 96 + 24]
    model.stages[2].narrow.bias.data += 1
    after = model.forward_intermediates(images, intermediates_only=True)
    assert torch.equal(before[1], after[1])
    assert not torch.allclose(before[2], after[2])
