"""Images that a network asks for, and norms that learn: against real batch norms in training."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import foveate
from foveate import FoveateError, VisionModel
from foveate.surgery.aac_abn_dfq import AdaptNorms, SimulateUnseen
from foveate.surgery.channels.remove import Narrow
from foveate.surgery.imagine import Imagine, absolute_loss
from foveate.surgery.quant_whitepaper_qualcomm.simulate import (
    Simulate,
    none,
    simulated,
    switched,
)
from foveate.surgery.storage import Store

pytestmark = pytest.mark.paper("aac_abn_dfq")


class Net(nn.Module):
    """Two convolutions with norms, a residual, and a head without one."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.norm1(self.stem(x)))
        return self.head((x + self.norm2(self.deep(x))).mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = Net()
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif tensor.ndim == 1:
            tensor.add_(0.4 * torch.randn_like(tensor))
    with torch.no_grad():
        model.norm1.weight[2] *= -1
    return model.eval()


def images(count=16, side=10, seed=1):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def vision():
    torch.manual_seed(0)
    return VisionModel.create("resnet_mini32", ["a", "b", "c"], size=16).eval()


# ---------------------------------------------------------------- images


def test_the_loss_by_hand():
    logits = torch.tensor([[3.0, 1.0, -1.0], [0.0, 2.0, 5.0]])
    classes = torch.tensor([0, 1])
    assert absolute_loss(logits, classes).item() == pytest.approx(-(3.0 - 0.5) / 2)
    asked = math.log(2 * 0.9 / 0.1)
    wanted = (abs(3.0 - asked) + abs(-0.5 - asked)) / 2
    assert absolute_loss(logits, classes, 0.9).item() == pytest.approx(wanted)
    lead = torch.tensor([[asked, 0.0, 0.0]])
    assert lead.softmax(1)[0, 0].item() == pytest.approx(0.9)
    assert absolute_loss(lead, classes[:1], 0.9).item() == pytest.approx(0, abs=1e-6)


def test_strong_images_answer_as_asked():
    model = vision()
    noise = torch.cat(Imagine(kind="noise", count=33).images(model))
    asked, most = (
        torch.cat(Imagine(count=33, steps=60, rate=0.3, sure=sure).images(model))
        for sure in (0.5, 1.0)
    )
    assert asked.shape == (33, 3, 16, 16)
    assert (asked.min() >= 0) & (asked.max() <= 1)
    turns = torch.arange(33) % 3
    with torch.no_grad():
        losses = [absolute_loss(model(x), turns, 0.5).item() for x in (noise, asked)]
        leads = [-absolute_loss(model(x), turns).item() for x in (noise, asked, most)]
    assert losses[1] < 0.5 * losses[0]
    assert leads[0] < leads[1] < leads[2]
    assert torch.equal(
        asked, torch.cat(Imagine(count=33, steps=60, rate=0.3, sure=0.5).images(model))
    )


def test_matching_images_match_in_plain_and_folded_models_alike(net):
    how = Imagine(kind="matching", count=24, steps=40)
    like = images(2)
    made = torch.cat(how.images(net, like))
    noise = torch.cat(Imagine(kind="noise", count=24).images(net, like))

    def off(x):
        found = []
        hook = partial(lambda seen, norm, args: seen.append((norm, args[0])), found)
        handles = [n.register_forward_pre_hook(hook) for n in (net.norm1, net.norm2)]
        with torch.no_grad():
            net(x)
        for handle in handles:
            handle.remove()
        return sum(
            ((x.mean((0, 2, 3)) - norm.running_mean).square().sum()).item()
            + ((x.std((0, 2, 3)) - norm.running_var.sqrt()).square().sum()).item()
            for norm, x in found
        )

    assert off(made) < 0.5 * off(noise)
    folded, _ = Simulate(activation_bits=None).apply(net, like)
    with switched(folded, none):
        assert off(torch.cat(how.images(folded, like))) < 0.5 * off(noise)


# ---------------------------------------------------------------- ranges


def test_ranges_end_where_images_do():
    model = vision()
    edit = SimulateUnseen(activation_bits=4, count=8, steps=5)
    edited, coverage = edit.apply(model)
    assert all(line.changed for line in coverage)
    found = {}

    def look(name, module, args, out):
        found[name] = out.relu().max() if simulated(edited)[name].top else out.max()

    plain, _ = Simulate(activation_bits=None).apply(model, images(2, 16))
    for name, layer in simulated(plain).items():
        layer.register_forward_hook(partial(look, name))
    with torch.no_grad(), switched(plain, none):
        for batch in edit.images(model):
            plain(batch)
    for name, layer in simulated(edited).items():
        torch.testing.assert_close(layer.output_grid.high.detach(), found[name].clamp(min=0))
    given, _ = SimulateUnseen(kind="given", activation_bits=4).apply(model, images(4, 16).sigmoid())
    plainly, _ = Simulate(activation_bits=4, activation_range="minmax").apply(
        model, images(4, 16).sigmoid()
    )
    x = images(2, 16, 5).sigmoid()
    assert torch.equal(given(x), plainly(x))


# ---------------------------------------------------------------- norms


def unfolded(net, rounded):
    """The network as it was, with its batch norms, and weights that are rounded as folded ones."""
    with torch.no_grad():
        for conv, norm, name in ((net.stem, net.norm1, "stem"), (net.deep, net.norm2, "deep")):
            factor = norm.weight / (norm.running_var + norm.eps).sqrt()
            folded = simulated(rounded)[name].rounded_weight()
            conv.weight.copy_(folded / factor.view(-1, 1, 1, 1))
        net.head.weight.copy_(simulated(rounded)["head"].rounded_weight())
    return net


def test_folded_norms_learn_as_real_ones_do(net):
    rounded, _ = Simulate(weight_bits=3, activation_bits=None).apply(net, images())
    batches = [images(8, seed=seed) for seed in (3, 4)]
    edit = AdaptNorms(kind="given", change=False, momentum=0.3, rounds=2)
    adapted, coverage = edit.apply(rounded, batches)
    assert [line.why for line in coverage] == [
        "its statistics adapted",
        "its statistics adapted",
        "left because it had no norm",
    ]
    real = unfolded(net, rounded)
    x = images(seed=9)
    torch.testing.assert_close(real(x), rounded(x), atol=1e-4, rtol=1e-4)
    real.train()
    real.norm1.momentum = real.norm2.momentum = 0.3
    with torch.no_grad():
        for batch in batches * 2:
            real(batch)
    real.eval()
    torch.testing.assert_close(adapted(x), real(x), atol=1e-4, rtol=1e-4)
    assert (adapted(x) - rounded(x)).abs().max() > 0.05
    for name, layer in simulated(adapted).items():
        before = simulated(rounded)[name]
        integers = [part.weight_grid.integers(part.weight) for part in (layer, before)]
        assert torch.equal(*integers)


def statistics(model, name, x):
    """Mean and deviation of a layer's outputs before its ReLU."""
    layer = simulated(model)[name]
    kept = []
    handle = layer.register_forward_hook(lambda layer, args, out: kept.append(out))
    top, layer.top = layer.top, None
    with torch.no_grad():
        model(x)
    layer.top = top
    handle.remove()
    return torch.stack((kept[0].mean((0, 2, 3)), kept[0].std((0, 2, 3))))


def test_only_what_rounding_changes_is_learnt(net):
    """Statistics of images that are not like the data come back to what they were, exactly."""
    rounded, _ = Simulate(weight_bits=2, activation_bits=None).apply(net, images())
    x = 3 * images(seed=8) + 1
    adapted, _ = AdaptNorms(kind="given", momentum=1.0, rounds=1).apply(rounded, x)
    with switched(rounded, none):
        wanted = statistics(rounded, "stem", x)
    assert (statistics(rounded, "stem", x) - wanted).abs().max() > 0.1
    torch.testing.assert_close(statistics(adapted, "stem", x), wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("change", [True, False])
def test_where_nothing_was_rounded_nothing_is_to_be_learnt(net, change):
    rounded, _ = Simulate(weight_bits=2, activation_bits=None).apply(net, images())
    for layer in simulated(rounded).values():
        layer.plain_weight.copy_(layer.rounded_weight().detach())
    adapted, _ = AdaptNorms(kind="given", change=change).apply(rounded, images())
    off = (adapted(images()) - rounded(images())).abs().max().item()
    assert (off < 1e-4) == change


def test_a_model_adapts_to_images_of_its_own():
    model, _ = SimulateUnseen(weight_bits=3, activation_bits=4, count=8, steps=3).apply(vision())
    edit = AdaptNorms(count=8, steps=3)
    adapted, _ = edit.apply(model)
    with switched(model, none):
        made = edit.images(model)
    again, _ = AdaptNorms(kind="given").apply(model, made)
    x = images(2, 16).sigmoid()
    assert torch.equal(adapted(x), again(x))
    assert not torch.equal(adapted(x), model(x))


# ---------------------------------------------------------------- among other edits


class KeepsWhatItComputes(nn.Sequential):
    """As LeViT's attention keeps its biases while it evaluates."""

    def forward(self, x):
        self.kept = self[0].weight.mean()
        return super().forward(x) + self.kept


def test_what_a_model_keeps_can_be_copied():
    torch.manual_seed(0)
    model = KeepsWhatItComputes(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)).eval()
    batch = torch.rand(2, 3, 8, 8)
    SimulateUnseen(steps=2).apply(model, [batch])
    assert not model.kept.requires_grad
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_saved_among_other_edits_and_read_again(tmp_path):
    model = vision()
    for edit in (
        Narrow(share=0.2),
        SimulateUnseen(weight_bits=4, activation_bits=4, count=8, steps=3),
        AdaptNorms(count=8, steps=3),
        Store(),
    ):
        model, _ = edit.apply(model, torch.rand(2, 3, 16, 16))
    foveate.save(model, tmp_path)
    again = foveate.load_model(tmp_path)
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(again(x), model(x))


def test_mistakes(net):
    with pytest.raises(FoveateError, match="kind is 'dreams'"):
        Imagine(kind="dreams")
    with pytest.raises(FoveateError, match="sure is 0"):
        SimulateUnseen(sure=0.0)
    with pytest.raises(FoveateError, match="steps is 0"):
        AdaptNorms(steps=0)
    with pytest.raises(FoveateError, match="momentum is 2"):
        AdaptNorms(momentum=2.0)
    with pytest.raises(FoveateError, match="weight_bits is 1"):
        SimulateUnseen(weight_bits=1)
    with pytest.raises(FoveateError, match="Net does not say what size"):
        SimulateUnseen().apply(net)
    with pytest.raises(FoveateError, match="no batch norm tells"):
        Imagine(kind="matching").images(nn.Conv2d(3, 4, 1), images(2))
    shared, _ = Simulate(per_channel=False).apply(net, images())
    with pytest.raises(FoveateError, match="one grid for all"):
        AdaptNorms(kind="given").apply(shared, images())
