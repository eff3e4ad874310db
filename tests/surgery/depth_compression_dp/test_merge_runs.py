"""What is merged computes what it did, to the last border pixel, trained or not."""

import pytest
import timm
import torch
from torch import nn

import foveate
from foveate import FoveateError, VisionModel
from foveate.measure import count
from foveate.surgery.depth_compression_dp.deactivate import Deactivate
from foveate.surgery.depth_compression_dp.merge_runs import MergeRuns
from foveate.surgery.lineage import lineage
from foveate.surgery.merging import Merge
from foveate.surgery.quant_whitepaper_qualcomm.simulate import Simulate

pytestmark = pytest.mark.paper("depth_compression_dp")


def prepared(nets, model, images=None, **fields):
    """With every activation gone that can go: all cost nothing, and the fastest is taken."""
    edit = Deactivate(share=0.99, latency=nets.per_layer, score=lambda model: 0.0, **fields)
    return edit.apply(model, nets.images() if images is None else images)[0]


@pytest.mark.parametrize("longest", [2, 3, 6])
def test_outputs_stay(nets, network, longest):
    model = prepared(nets, network, longest=longest)
    merged, coverage = MergeRuns().apply(model)
    torch.testing.assert_close(
        merged(nets.images(7)), model(nets.images(7)), rtol=1e-11, atol=1e-12
    )
    layers = [sum(isinstance(m, nn.Conv2d) for m in net.modules()) for net in (model, merged)]
    pieces = lineage(model)[-1]["plan"]["pieces"]
    assert layers[0] - layers[1] == sum(len(piece["convs"]) - 1 for piece in pieces) > 0
    assert len(coverage) == sum(len(piece["convs"]) for piece in pieces)


def test_a_residual_connection_lies_in_the_kernel(nets):
    model = prepared(nets, nets.make("resnet"))
    merged, _ = MergeRuns().apply(model)
    sums = [step.op for step in torch.fx.symbolic_trace(merged).graph.nodes]
    assert "call_function" not in sums
    assert [m.kernel_size for m in merged.modules() if isinstance(m, nn.Conv2d)] == [(9, 9)]


def test_depthwise_layers_stay_depthwise(nets):
    model = prepared(nets, nets.make("depthwise"), skip=("0.0",))
    merged, _ = MergeRuns().apply(model)
    wide = [m for m in merged.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
    assert all(layer.groups == 12 for layer in wide)
    torch.testing.assert_close(merged(nets.images()), model(nets.images()), rtol=1e-11, atol=1e-12)


def test_training_between(nets, network):
    """Steps in training mode, whose shapes fit and whose gradients arrive, and then the merge."""
    model = prepared(nets, network).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(6):
        loss = nn.functional.cross_entropy(model(nets.images()), torch.tensor([0, 1, 2, 3]))
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    merged, _ = MergeRuns().apply(model.eval())
    torch.testing.assert_close(merged(nets.images()), model(nets.images()), rtol=1e-11, atol=1e-12)


def test_twice_in_turn(nets):
    """What stood on both sides of a run that was merged can be merged with it later."""
    model = prepared(nets, nets.make("vgg"), longest=2)
    with pytest.raises(FoveateError, match="not merged yet"):
        prepared(nets, model)
    once, _ = MergeRuns().apply(model)
    with pytest.raises(FoveateError, match="has not gone through since it was last merged"):
        MergeRuns().apply(once)
    again = prepared(nets, once)
    twice, _ = MergeRuns().apply(again)
    torch.testing.assert_close(twice(nets.images()), again(nets.images()), rtol=1e-11, atol=1e-12)
    steps = ["Deactivate", "MergeRuns"] * 2
    assert [step["edit"] for step in lineage(twice)] == steps


def test_without_preparation(nets):
    with pytest.raises(FoveateError, match="apply Deactivate before"):
        MergeRuns().apply(nets.make("vgg"))


def test_what_cannot_be_merged_any_more(nets):
    model = prepared(nets, nets.make("vgg").float(), nets.images().float())
    rounded, _ = Simulate().apply(model, nets.images().float())
    with pytest.raises(FoveateError, match="merge before"):
        MergeRuns().apply(rounded)
    graph, _ = Merge().apply(model, nets.images().float())
    for edit in (MergeRuns(), Deactivate()):
        with pytest.raises(FoveateError, match="no modules any more"):
            edit.apply(graph, nets.images().float())


def test_layers_that_were_exchanged(nets):
    model = prepared(nets, nets.make("vgg"))
    model[0][3] = nn.Conv2d(8, 8, 3, 2, padding=1).double()
    with pytest.raises(FoveateError, match="not as Deactivate left it"):
        MergeRuns().apply(model)


def test_the_part_of_a_model(nets):
    """A backbone that was edited by itself is merged within its whole."""
    inner, head = nets.make("mobilenet"), nn.Linear(5, 2).double()
    model = nn.Sequential(prepared(nets, inner), head)
    merged, _ = MergeRuns().apply(model)
    torch.testing.assert_close(merged(nets.images()), model(nets.images()), rtol=1e-11, atol=1e-12)


def test_saved_and_loaded(nets, tmp_path):
    torch.manual_seed(0)
    model = VisionModel.create("resnet_mini32", ["a", "b", "c"], size=16)
    x = torch.rand(4, 3, 16, 16)
    off, _ = Deactivate(share=0.8, latency=nets.per_layer).apply(model, x)
    merged, _ = MergeRuns().apply(off)
    last, _ = Merge().apply(merged, x)
    assert count(merged.eval(), x).macs != count(model.eval(), x).macs
    for number, edited in enumerate((off, merged, last)):
        foveate.save(edited.eval(), tmp_path / str(number))
        again = foveate.load_model(tmp_path / str(number))
        with torch.inference_mode():
            assert torch.equal(again(x), edited(x))
    assert [step["edit"] for step in lineage(again)] == ["Deactivate", "MergeRuns", "Merge"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv2_050"])
def test_networks_of_timm(nets, name):
    torch.manual_seed(0)
    model = timm.create_model(name).double().eval()
    off = prepared(nets, model, longest=3)
    merged, _ = MergeRuns().apply(off)
    torch.testing.assert_close(merged(nets.images()), off(nets.images()), rtol=1e-9, atol=1e-10)
