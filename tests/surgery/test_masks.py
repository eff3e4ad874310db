"""Masks: against torch's own pruning, through every way of saving, and with other edits."""

import json

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import prune

import foveate
from foveate import FoveateError
from foveate.measure import count
from foveate.surgery.channels.remove import Narrow
from foveate.surgery.gpusq_vit import MaskTwoOfFour
from foveate.surgery.gradual_pruning import MaskSmallest, largest
from foveate.surgery.lineage import lineage
from foveate.surgery.masks import Mask, masked, sparsity, weights
from foveate.surgery.mixturegrowth import Templates
from foveate.surgery.quant_whitepaper import Quantise, QuantisedLayer
from foveate.surgery.replay import replay


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.Flatten(),
        nn.Linear(8 * 36, 5),
    ).eval()


def images():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Reader(nn.Module):
    """What reads sequences: recurrent layers and attention."""

    def __init__(self):
        super().__init__()
        self.read = nn.LSTM(6, 8, num_layers=2, batch_first=True)
        self.look = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x, _ = self.read(x)
        return self.head(self.look(x, x, x, need_weights=False)[0].mean(1))


@pytest.mark.paper("gradual_pruning")
@pytest.mark.parametrize("share", [0.0, 0.37, 0.5, 0.9])
def test_masks_of_least_magnitude_are_torchs(share):
    model = net()
    theirs = net()
    layers = [(theirs[i], "weight") for i in (0, 3, 5)]
    for layer, name in layers:
        prune.l1_unstructured(layer, name, amount=share)
    edited, coverage = MaskSmallest(sparsity=share).apply(model)
    for i in (0, 3, 5):
        assert torch.equal(edited[i].weight_mask, theirs[i].weight_mask.bool())
        assert torch.equal(edited[i].weight, theirs[i].weight)
    assert [line.changed for line in coverage] == [True] * 3
    theirs = net()
    layers = [(theirs[i], "weight") for i in (0, 3, 5)]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=share)
    edited, _ = MaskSmallest(sparsity=share, scope="global").apply(model)
    assert all(torch.equal(edited[i].weight, theirs[i].weight) for i in (0, 3, 5))
    assert sparsity(model).zeros == 0


def test_what_is_counted():
    edited, coverage = MaskSmallest(sparsity=0.25, skip=("3",)).apply(net())
    found = sparsity(edited)
    total = 3 * 8 * 9 + 8 * 4 * 9 + 8 * 36 * 5
    assert found.weights == total
    assert found.zeros == (total - 8 * 4 * 9) // 4
    assert found.share == found.zeros / total
    assert found.layers == {"0.weight": 0.25, "3.weight": 0.0, "5.weight": 0.25}
    assert {line.name: line.changed for line in coverage} == {"0": True, "3": False, "5": True}
    assert coverage[0].why == "25.00% of its weights held at zero"
    assert list(masked(edited)) == ["0.weight", "5.weight"]
    assert sparsity(Mask().apply(net())[0]).zeros == 0


def test_equals_go_in_order():
    masks = largest({"a": torch.ones(4), "b": torch.ones(2)}, 0.5)
    assert masks["a"].tolist() == [False, False, False, True]
    assert masks["b"].all()


@pytest.mark.paper("gradual_pruning")
def test_recurrent_layers_and_attention():
    torch.manual_seed(0)
    model = Reader().eval()
    edited, _ = MaskSmallest(sparsity=0.75).apply(model)
    names = {f"read.weight_{kind}_l{i}" for kind in ("ih", "hh") for i in (0, 1)}
    assert names | {"look.in_proj_weight", "look.out_proj.weight", "head.weight"} == set(
        sparsity(edited).layers
    )
    assert all(share == 0.75 for share in sparsity(edited).layers.values())
    x = torch.randn(2, 5, 6)
    by_hand = Reader().eval()
    state = model.state_dict()
    for name, weight in masked(edited).items():
        state[name] = state[name] * weight.mask
    by_hand.load_state_dict(state)
    assert torch.equal(edited(x), by_hand(x))


def test_shared_weights_have_one_mask():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    edited, _ = MaskSmallest().apply(model)
    assert list(weights(edited)) == ["0.weight"]
    assert edited[1].weight.count_nonzero() == 8


def test_masks_are_saved_and_loaded(tmp_path):
    model = MaskSmallest(sparsity=0.6).apply(timm.create_model("resnet10t", num_classes=4))[0]
    foveate.save(model, tmp_path)
    again = foveate.load_network(tmp_path)
    assert sparsity(again) == sparsity(model)
    for name, weight in masked(model).items():
        assert torch.equal(masked(again)[name].mask, weight.mask)
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(again(x), model.eval()(x))


@pytest.mark.parametrize(
    "chain",
    [
        [MaskSmallest(), Narrow(share=0.4, skip=("3",))],
        [Narrow(share=0.4, skip=("3",)), MaskSmallest()],
        [MaskSmallest(), Quantise()],
        [Quantise(), MaskSmallest(sparsity=0.7)],
        [MaskSmallest(sparsity=0.3), MaskSmallest(sparsity=0.6)],
    ],
    ids=lambda chain: "-".join(type(edit).__name__ for edit in chain),
)
def test_masks_among_other_edits(chain):
    model = net()
    for edit in chain:
        model, _ = edit.apply(model, images())
    assert all(torch.equal(w.value != 0, w.mask) for w in masked(model).values())
    again = replay(net(), json.loads(json.dumps(lineage(model))))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(images()), model(images()))


def test_channels_take_their_masks_along():
    model, _ = MaskSmallest(sparsity=0.5).apply(net())
    narrow, _ = Narrow(share=0.5, only=("0",)).apply(model, images())
    assert narrow[0].weight.shape == narrow[0].weight_mask.shape
    assert count(narrow, images()).macs < count(model, images()).macs


def test_zeros_are_zeros_in_integers():
    model, _ = Quantise().apply(MaskSmallest(sparsity=0.5).apply(net())[0], images())
    for layer in model.modules():
        if isinstance(layer, QuantisedLayer):
            held = ~layer.layer.weight_mask
            assert layer.integers().weight.flatten()[held.flatten()].count_nonzero() == 0


FAMILIES = [
    "resnet18",
    "regnety_002",
    "densenet121",
    "efficientnet_b0",
    "mobilenetv3_small_050",
    "convnext_atto",
    "inception_next_atto",
    "fastvit_t8",
    "levit_128s",
    "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "pvt_v2_b0",
    "mixer_s32_224",
    "ese_vovnet19b_slim_dw",
    "ghostnet_050",
    "resnext50_32x4d",
]


@pytest.mark.slow
@pytest.mark.parametrize("edit", [MaskSmallest(sparsity=0.6), MaskTwoOfFour()], ids=["60%", "2:4"])
@pytest.mark.parametrize("name", FAMILIES)
def test_families(name, edit):
    model = timm.create_model(name, num_classes=8)
    edited, coverage = edit.apply(model)
    held = masked(edited)
    assert len(held) == sum(line.changed for line in coverage) > 5
    if isinstance(edit, MaskSmallest):
        assert sparsity(edited).share == pytest.approx(0.6, abs=0.01)
    else:
        assert all(weight.sparsity == 0.5 for weight in held.values())
        assert all(weight.value.shape[1] % 4 == 0 for weight in held.values())
    again = replay(timm.create_model(name, num_classes=8), json.loads(json.dumps(lineage(edited))))
    again.load_state_dict(edited.state_dict())
    assert sparsity(again) == sparsity(edited)
    assert list(masked(again)) == list(held)


def test_mistakes():
    for fields in ({"sparsity": 1.0}, {"sparsity": -0.1}, {"scope": "net"}):
        with pytest.raises(FoveateError, match=next(iter(fields))):
            MaskSmallest(**fields)
    with pytest.raises(FoveateError, match="skip names 'nose'"):
        Mask(skip=("nose",)).apply(net())
    with pytest.raises(FoveateError, match="found nothing to change"):
        Mask().apply(nn.BatchNorm2d(3))
    with pytest.raises(FoveateError, match="found nothing to change"):
        MaskSmallest(scope="global", skip=("*",)).apply(net())
    with pytest.raises(FoveateError, match=r"masked: mixtures have no zeros"):
        Templates().apply(Mask().apply(net())[0])
