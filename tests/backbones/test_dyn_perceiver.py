"""Dynamic Perceivers, against the authors' outputs and the networks that they stand beside."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from foveate.adaptive.early_exit import exit_logits, exit_macs
from foveate.backbones import create_model, load_weights
from foveate.backbones.weights import rename
from foveate.ops.dyn_perceiver import TokenAttention
from foveate.vision import Preprocess, VisionModel

MINIS = [f"dyn_perceiver_{net}_mini32" for net in ("mobilenetv3", "regnety", "resnet")]


def vision(name, size, **options):
    model = create_model(name, **options).eval()
    return VisionModel(model, Preprocess(size=size), [str(i) for i in range(model.num_classes)])


@pytest.mark.paper("dyn_perceiver")
def test_the_authors_outputs(oracle):
    official = oracle("dyn_perceiver__mobilenetV3_0x75_perceiver_t128")
    model = official.load(create_model("dyn_perceiver_mobilenetv3_075"))
    assert sum(p.numel() for p in model.parameters()) == official.facts["params"]

    def all_exits(images):
        state, said = (images,), []
        for step in model.steps():
            state, logits = step(*state)
            said.append(logits)
        return said

    model.forward = all_exits
    found = official.agrees(model)
    assert set(official.facts["taps"]) - set(found) == {"avgpool", "ca_pooling"}  # functions here


@pytest.mark.paper("dyn_perceiver")
def test_work_of_the_exits():
    """As the authors' repository lists it for MobileNetV3 x 0.75; it counts pooling, and no merge
    with the code's values."""
    listed = [97.629792, 181.669488, 205.988448, 264.681648]
    found = exit_macs(vision("dyn_perceiver_mobilenetv3_075", 224))
    assert (found / 1e6).tolist() == pytest.approx(listed, rel=0.006)


NETS = {
    "mobilenetv3_050": lambda: torchvision.models.mobilenet_v3_large(width_mult=0.5),
    "mobilenetv3_200": lambda: torchvision.models.mobilenet_v3_large(width_mult=2.0),
    "regnety_400mf": torchvision.models.regnet_y_400mf,
    "regnety_800mf": torchvision.models.regnet_y_800mf,
    "regnety_1_6gf": torchvision.models.regnet_y_1_6gf,
    "regnety_3_2gf": torchvision.models.regnet_y_3_2gf,
    "resnet18": lambda: timm.create_model("resnet18"),
    "resnet34": lambda: timm.create_model("resnet34"),
    "resnet50": lambda: timm.create_model("resnet50"),
}


def network(model):
    """Tensors of the network alone, in the order of its layers."""
    parts = [model.stem, *(stage.body for stage in model.stages), model.head.cnn]
    return [tensor for part in parts for tensor in part.state_dict().values()]


@pytest.mark.paper("dyn_perceiver")
@pytest.mark.parametrize("name", NETS)
def test_the_network_is_the_published_one(name):
    with torch.device("meta"):
        ours = network(create_model(f"dyn_perceiver_{name}"))
    theirs = NETS[name]().state_dict().values()
    assert [t.shape for t in ours] == [t.shape for t in theirs]


@pytest.mark.paper("dyn_perceiver")
@pytest.mark.parametrize("name", ["mobilenetv3_050", "regnety_400mf", "resnet18"])
def test_a_silent_code_leaves_the_network_as_it_is(name):
    """Where maps learn nothing from the code, the third exit is the published network's output."""
    torch.manual_seed(0)
    reference = NETS[name]().eval()
    model = vision(f"dyn_perceiver_{name}", 64)
    for ours, theirs in zip(network(model.backbone), reference.state_dict().values(), strict=True):
        ours.copy_(theirs)
    for stage in model.backbone.stages[1:]:
        for last in (stage.to_map.proj, stage.to_map.mlp[3]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        third = exit_logits(model, images)[2]
        torch.testing.assert_close(third, reference(model.prepare(images)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("net", "theirs", "ours"),
    [
        ("resnet18", "cnn_stem.1.weight", "stem.1.weight"),
        ("resnet18", "cnn_body_stage2.0.bn1.bias", "stages.1.body.0.bn1.bias"),
        ("resnet18", "classifier_cnn.bias", "head.cnn.1.bias"),
        ("resnet18", "classifier_merge.1.weight", "head.fc.weight"),
        ("regnety_400mf", "cnn_stem.0.weight", "stem.0.weight"),
        (
            "regnety_400mf",
            "cnn_body.block2.block2-0.f.a.1.bias",
            "stages.1.body.block2-0.f.a.1.bias",
        ),
        ("regnety_400mf", "classifier_merge.0.running_var", "head.norm.running_var"),
        ("regnety_400mf", "isc4.1.bias", "stages.3.merge.recall.1.bias"),
    ],
)
def test_names_of_the_authors_checkpoints(net, theirs, ours):
    with torch.device("meta"):
        model = create_model(f"dyn_perceiver_{net}")
    assert rename(theirs, model.key_rules) == ours
    assert ours in model.state_dict()


@pytest.mark.paper("dyn_perceiver")
@pytest.mark.parametrize("seen", [None, 6])
def test_attention_term_by_term(seen):
    torch.manual_seed(0)
    op = TokenAttention(8, seen, inner=4, heads=2, widening=3, places=5 if seen else None).double()
    for p in op.parameters():
        nn.init.normal_(p, std=0.5)
    x = torch.randn(2, 7, 8, dtype=torch.float64, requires_grad=True)
    other = torch.randn(2, 5, 6, dtype=torch.float64) if seen else None

    def twin():
        query = op.norm(x)
        context = query if other is None else op.norm_seen(other)
        q, k, v = op.q(query), op.k(context), op.v(context)
        if op.places is not None:
            k = k + op.places
        heads = []
        for part in (slice(0, 2), slice(2, 4)):
            scores = torch.einsum("bnc,bmc->bnm", q[..., part], k[..., part]) / 2**0.5
            heads.append(torch.einsum("bnm,bmc->bnc", scores.softmax(-1), v[..., part]))
        y = x + op.proj(torch.cat(heads, dim=-1))
        return y + op.mlp(y)

    against = torch.randn(2, 7, 8, dtype=torch.float64)
    results = []
    for y in (op(x, other), twin()):
        wanted = torch.autograd.grad((y * against).sum(), [x, *op.parameters()])
        results.append([y, *wanted])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", MINIS)
def test_the_last_exit_is_the_output_and_needs_no_other_classifier(name):
    model = vision(name, 32, num_classes=5)
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        said = exit_logits(model, images)
        called = []
        model.backbone.head.cnn.register_forward_hook(lambda *_: called.append(1))
        assert torch.equal(model(images), said[-1])
    assert [tuple(logits.shape) for logits in said] == [(2, 5)] * 4
    assert not called


@pytest.mark.parametrize("name", MINIS)
def test_new_classes_reach_every_exit(name, tmp_path):
    trained = create_model(name, num_classes=5)
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    model = create_model(name, num_classes=3).eval()
    report = load_weights(model, tmp_path / "weights.pth")
    assert len(report.skipped) == 10  # weights and biases of four exits, weights of two memories
    trained.reset_classifier(7)
    for net, classes in ((model, 3), (trained.eval(), 7)):
        wrapped = VisionModel(net, Preprocess(size=32), [str(i) for i in range(classes)])
        said = exit_logits(wrapped, torch.rand(2, 3, 32, 32))
        assert [logits.shape[1] for logits in said] == [classes] * 4


def test_without_classes_there_is_one_exit():
    model = create_model(MINIS[2], num_classes=0)
    assert model.exits == ("head.fc",)
    for mode in (True, False):
        model.train(mode)
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, model.head_hidden_size)
    (step,) = model.steps()
    assert step(torch.randn(1, 3, 32, 32))[1].shape == (1, model.head_hidden_size)


def test_training_computes_all_exits_and_takes_a_single_image():
    torch.manual_seed(0)
    model = create_model(MINIS[2], num_classes=4).train()
    called = []
    for name in model.exits:
        layer = model.get_submodule(name)
        layer.register_forward_hook(lambda *_, name=name: called.append(name))
    model(torch.randn(1, 3, 32, 32)).sum().backward()
    assert tuple(called) == model.exits
    assert all(p.grad is not None for p in model.parameters())
