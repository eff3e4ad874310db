"""SVT, against the authors' outputs."""

import pytest
import torch

from foveate.backbones import create_model, load_weights


@pytest.mark.paper("svt")
def test_the_authors_outputs(oracle):
    official = oracle("svt__svt_s_return_denseFalse")
    model = official.load(create_model("svt_s"))
    assert sum(p.numel() for p in model.parameters()) == official.facts["params"]
    seen = []
    model.head.block.register_forward_hook(lambda m, i, out: seen.append(out))
    apart = {"post_network.0": "the first token alone, compared below"}
    found = set(official.agrees(model, apart))
    assert set(official.facts["taps"]) - found == {"post_network.0"}
    fact = official.facts["taps"]["post_network.0"]
    first = torch.tensor(fact["first"])
    torch.testing.assert_close(seen[0].flatten()[:8], first, atol=1e-4 * fact["std"], rtol=0)


@pytest.mark.paper("svt")
def test_published_parameter_counts():
    """As arXiv 2311.01310 prints them, in millions; only the large size without its second head."""
    for name, dense, millions in (("s", True, 22.0), ("b", True, 32.8), ("l", False, 54.0)):
        with torch.device("meta"):
            model = create_model(f"svt_{name}", dense=dense)
        found = sum(p.numel() for p in model.parameters())
        assert found / 1e6 == pytest.approx(millions, abs=0.09), name


def test_places_vote_in_checkpoints_of_token_labelling(tmp_path):
    torch.manual_seed(0)
    model = create_model("svt_mini32", num_classes=5, dense=True).eval()
    images = torch.randn(2, 3, 32, 32)
    features = model.forward_features(images)
    places = model.head.aux(model.head.norm(features).flatten(2).mT)
    first = model.head.fc(model.forward_head(features, pre_logits=True))
    torch.testing.assert_close(model(images), first + places.amax(1) / 2)
    state = {k.replace("head.aux.", "aux_head."): v for k, v in model.state_dict().items()}
    torch.save(state, tmp_path / "theirs.pth")
    again = create_model("svt_mini32", num_classes=5, dense=True).eval()
    load_weights(again, tmp_path / "theirs.pth")
    torch.testing.assert_close(again(images), model(images))
