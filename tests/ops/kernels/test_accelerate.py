import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import foveate
from foveate import compiled
from foveate.ops.kernels import accelerate, accelerated, native, restore

METHODS = {"forward", "_conv_forward"}
NETS = [
    "inception_next_mini32",
    "convnext_mini32",
    "timm/convnext_atto",
    "timm/inception_next_atto",
    "timm/lcnet_050",
]


def net(name):
    torch.manual_seed(0)
    made = foveate.create_model(name, num_classes=10).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for key, parameter in made.named_parameters():
            if "gamma" in key:
                parameter.fill_(0.5)
    return made


def batch(side=32):
    x = torch.rand(4, 3, side, side).contiguous(memory_format=torch.channels_last)
    return x, torch.arange(4)


def gradients(model, x, targets):
    model.zero_grad()
    loss = cross_entropy(model(x), targets)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("training", [True, False])
def test_a_net_learns_the_same(library, name, training):
    plain = net(name).train(training)
    fast = copy.deepcopy(plain)
    assert len(accelerate(fast)) > 10
    x, targets = batch(64)
    exact = copy.deepcopy(plain).double()
    (loss, found), (_, theirs) = gradients(fast, x, targets), gradients(plain, x, targets)
    expected, truth = gradients(exact, x.double(), targets)
    assert loss == pytest.approx(expected, rel=1e-5)
    for key, value in truth.items():
        allowed = 3 * (theirs[key] - value).norm() + 1e-4 * value.norm() + 5e-6
        assert (found[key] - value).norm() <= allowed, key
    for key, value in exact.named_buffers():
        torch.testing.assert_close(
            fast.get_buffer(key).double(), value.double(), rtol=1e-4, atol=1e-5
        )


def test_blocks_are_fused(library):
    model = net("convnext_mini32").train()
    with accelerated(model):
        names = _graph(model(batch()[0]))
    assert "_MlpBackward" in names
    assert "_DepthwiseBackward" in names
    assert not any("Mkldnn" in n and "Gelu" in n for n in names)


def _graph(y):
    seen, todo = set(), [y.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [n for n, _ in node.next_functions]
    return {node.name() for node in seen}


def test_restoring_leaves_no_trace(library):
    model = net("convnext_mini32").eval()
    before = {name: set(vars(m)) for name, m in model.named_modules()}
    x, _ = batch()
    expected = model(x)
    accelerate(model)
    restore(model)
    assert {name: set(vars(m)) for name, m in model.named_modules()} == before
    assert torch.equal(model(x), expected)


def test_one_within_another(library):
    model = net("convnext_mini32")
    with accelerated(model) as changed:
        with accelerated(model) as nothing:
            assert nothing == []
        assert all(vars(model.get_submodule(name)).keys() & METHODS for name in changed)


def test_state_and_names_stay(library):
    model = net("convnext_mini32")
    keys = list(model.state_dict())
    with accelerated(model):
        assert list(model.state_dict()) == keys
        copied = copy.deepcopy(model)
    restore(copied)
    assert list(copied.state_dict()) == keys


def test_stochastic_depth_draws_the_same(library):
    model = foveate.create_model("convnext_mini32", num_classes=10, drop_path_rate=0.5).train()
    x, _ = batch()
    torch.manual_seed(3)
    plain = model(x)
    with accelerated(model):
        torch.manual_seed(3)
        fast = model(x)
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


def test_hooks_inside_blocks_still_see(library):
    model = net("convnext_mini32").eval()
    seen = []
    inner = next(m for name, m in model.named_modules() if name.endswith("mlp.act"))
    inner.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    with accelerated(model):
        model(batch()[0])
    assert len(seen) == 1


def test_counting_and_exporting_see_pytorch(library):
    from foveate.measure import count

    model = net("convnext_mini32").eval()
    x, _ = batch()
    expected = count(model, x)
    with accelerated(model):
        counted = count(model, x)
        exported = torch.export.export(model, (x,))
    assert (counted.macs, counted.flops) == (expected.macs, expected.flops)
    operators = {str(n.target) for n in exported.graph.nodes if n.op == "call_function"}
    assert any("conv2d" in name for name in operators)
    torch.testing.assert_close(exported.module()(x), model(x), rtol=1e-4, atol=1e-5)


def test_vmap_goes_through_pytorch(library):
    model = nn.Conv2d(3, 3, 3, padding=1, groups=3)
    x = torch.randn(4, 1, 3, 8, 8)
    with accelerated(model):
        torch.testing.assert_close(torch.vmap(model)(x), torch.stack([model(v) for v in x]))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PyTorch's own, as it sets up derivatives
def test_forward_derivatives_go_through_pytorch(library):
    model = nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False)
    x = torch.randn(1, 3, 8, 8)
    with accelerated(model):
        y, tangent = torch.func.jvp(model, (x,), (x,))
    torch.testing.assert_close(y, tangent)  # it is linear


@pytest.mark.usefixtures("no_library")
def test_without_kernels_nothing_changes():
    model = net("inception_next_mini32").eval()
    x, _ = batch()
    expected = model(x)
    with accelerated(model):
        torch.testing.assert_close(model(x), expected)
    assert native.level() is None


def test_an_unknown_level_is_no_level(monkeypatch):
    monkeypatch.setenv(compiled.VARIABLE, "x86-64-v9")
    compiled.forget()
    try:
        assert native.level() is None
    finally:
        compiled.forget()
