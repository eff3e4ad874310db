"""A merged network computes what it did, in fewer kernels, whoever wrote it."""

import json

import pytest
import timm
import torch
import torchvision
from timm.utils.model import reparameterize_model
from torch import fx, nn

from foveate import FoveateError
from foveate.backbones import create_model
from foveate.measure import count as count_work
from foveate.surgery.fold import Fold
from foveate.surgery.graphs import aten, capture
from foveate.surgery.lean import largest_error, lean
from foveate.surgery.lineage import lineage
from foveate.surgery.maps import channels_first
from foveate.surgery.merging import Merge, merge_graph
from foveate.surgery.replay import replay


class Branches(nn.Module):
    """Kernels of several sizes, gaps and groups, a norm and the identity, side by side."""

    def __init__(self, dim: int, groups: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(dim, dim, 5, padding=2, groups=groups)
        self.band = nn.Conv2d(dim, dim, (1, 3), padding=(0, 1), groups=groups, bias=False)
        self.sparse = nn.Conv2d(dim, dim, 3, padding=2, dilation=2, groups=groups)
        self.point = nn.Conv2d(dim, dim, 1, groups=groups)
        self.first, self.second = nn.BatchNorm2d(dim), nn.BatchNorm2d(dim)
        self.third = nn.BatchNorm2d(dim)
        self.gain = nn.Parameter(torch.rand(dim, 1, 1) + 0.5)

    def forward(self, x):
        mixed = self.first(self.wide(x)) + self.second(self.band(x)) - self.third(x)
        return x + self.gain * (mixed + self.sparse(x) / 2 + self.point(x) + 0.25)


class Tokens(nn.Module):
    """A norm before a linear layer, and one behind it that sees all tokens as one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.behind = nn.BatchNorm1d(12), nn.BatchNorm1d(10)
        self.inside, self.head = nn.Linear(12, 10), nn.Linear(12, 5)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        mixed = self.inside(tokens)
        mixed = self.behind(mixed.flatten(0, 1)).reshape_as(mixed)
        return mixed.mean(1).sum(-1, keepdim=True) + self.head(self.before(x.mean((2, 3))))


class LastBlock(nn.Module):
    """A block of a ConvNeXt: its norm and linear layers take channels last."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mixer = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.rand(dim))

    def forward(self, x):
        y = self.norm(self.mixer(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(nn.functional.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


def settle(model: nn.Module) -> nn.Module:
    """Norms with statistics and gains unlike those that they begin with."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            mean, variance = module.running_mean, module.running_var
            assert mean is not None
            assert variance is not None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(mean, std=0.2)
            nn.init.uniform_(variance, 0.5, 1.5)
    return model.eval()


def count(graph: nn.Module, *targets: object) -> int:
    assert isinstance(graph, fx.GraphModule)
    return sum(node.target in targets for node in graph.graph.nodes)


@pytest.mark.parametrize("groups", [1, 6])
def test_parallel_branches_become_one_kernel(groups):
    torch.manual_seed(0)
    model, images = settle(Branches(6, groups)), torch.randn(3, 6, 9, 11)
    merged, coverage = Merge().apply(model, images)
    assert count(merged, aten.conv2d.default) == 1
    assert isinstance(merged, fx.GraphModule)
    assert [node.op for node in merged.graph.nodes].count("call_function") == 1
    torch.testing.assert_close(merged(images), model(images), rtol=1e-4, atol=1e-5)
    assert all(line.changed for line in coverage)


def test_batches_of_any_size():
    torch.manual_seed(0)
    model = settle(Branches(6, 6))
    merged, _ = Merge().apply(model, torch.randn(2, 6, 9, 9))
    for batch in (1, 5):
        images = torch.randn(batch, 6, 9, 9)
        torch.testing.assert_close(merged(images), model(images), rtol=1e-4, atol=1e-5)


def test_norms_fold_into_linear_layers_on_both_sides():
    torch.manual_seed(0)
    model, images = settle(Tokens()), torch.randn(3, 12, 4, 4)
    merged, coverage = Merge().apply(model, images)
    assert count(merged, aten._native_batch_norm_legit_no_training.default) == 0
    assert sum(line.changed for line in coverage) == 2
    torch.testing.assert_close(merged(images), model(images), rtol=1e-4, atol=1e-5)


def test_a_kernel_that_would_cost_more_is_not_made():
    """A dense 1x1 beside a depthwise 3x3 would become a dense 3x3."""

    class Dear(nn.Module):
        def __init__(self):
            super().__init__()
            self.light = nn.Conv2d(16, 16, 3, padding=1, groups=16)
            self.dense = nn.Conv2d(16, 16, 1)

        def forward(self, x):
            return self.light(x) + self.dense(x)

    with pytest.raises(FoveateError, match="nothing to change"):
        Merge().apply(Dear(), torch.randn(2, 16, 8, 8))


def test_every_second_pixel_is_a_stride():
    class Sliced(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide = nn.Conv2d(6, 6, 3, stride=(2, 3), padding=1)
            self.point = nn.Conv2d(6, 6, 1)

        def forward(self, x):
            return self.wide(x) + self.point(x[:, :, ::2, ::3])

    torch.manual_seed(0)
    model, images = Sliced().eval(), torch.randn(3, 6, 9, 10)
    merged, _ = Merge().apply(model, images)
    assert count(merged, aten.conv2d.default) == 1
    assert count(merged, aten.add.Tensor, aten.slice.Tensor) == 0
    torch.testing.assert_close(merged(images), model(images), rtol=1e-4, atol=1e-5)


def test_a_stride_before_a_wider_kernel_would_be_a_sparse_one():
    class Gapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 3)

        def forward(self, x):
            return self.conv(x[:, :, ::2, ::2])

    with pytest.raises(FoveateError, match="nothing to change"):
        Merge().apply(Gapped(), torch.randn(3, 6, 9, 10))


def test_what_others_use_stays():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.conv(x)
            return self.norm(y) * y.sigmoid()

    with pytest.raises(FoveateError, match="nothing to change"):
        Merge().apply(settle(Shared()), torch.randn(2, 4, 8, 8))


def test_a_shift_does_not_pass_padding():
    """Zeros around a map are not zeros once a norm has moved inside the kernel."""
    torch.manual_seed(0)
    norm, conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
    model, images = settle(nn.Sequential(norm, conv)), torch.randn(2, 4, 8, 8)
    with pytest.raises(FoveateError):
        Merge().apply(model, images)
    nn.init.zeros_(norm.bias)
    norm.running_mean = torch.zeros(4)
    merged, _ = Merge().apply(model, images)
    torch.testing.assert_close(merged(images), model(images), rtol=1e-4, atol=1e-5)


def test_a_merge_that_cannot_be_proven_is_left_with_its_figure():
    torch.manual_seed(0)
    model, images = settle(Branches(6, 6)), torch.randn(2, 6, 9, 9)
    graph = capture(model, images)
    before = graph(images)
    coverage = merge_graph(graph, images, tolerance=-1.0)
    assert not any(line.changed for line in coverage)
    assert all("off by" in line.why for line in coverage)
    assert torch.equal(graph(images), before)


def test_the_model_itself_stays():
    model = settle(Branches(6, 6))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Merge().apply(model, torch.randn(2, 6, 9, 9))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_maps_are_computed_with_channels_first():
    torch.manual_seed(0)
    model = nn.Sequential(LastBlock(8), LastBlock(8)).eval()
    images = torch.randn(2, 8, 7, 5)
    graph = capture(model, images)
    coverage = channels_first(graph)
    assert [line.kind for line in coverage].count("Linear") == 4
    assert [line.kind for line in coverage].count("LayerNorm") == 2
    assert count(graph, aten.permute.default, aten.linear.default, aten.layer_norm.default) == 0
    torch.testing.assert_close(graph(images), model(images), rtol=1e-4, atol=1e-5)
    merge_graph(graph, images)
    assert count(graph, aten.conv2d.default) == 6
    torch.testing.assert_close(graph(images), model(images), rtol=1e-4, atol=1e-5)


def test_who_wants_channels_last_gets_them():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(8, 6), nn.LayerNorm(6)

        def forward(self, x):
            y = self.norm(self.layer(x.permute(0, 2, 3, 1)))
            return y.cumsum(1)

    torch.manual_seed(0)
    model, images = Half().eval(), torch.randn(2, 8, 5, 4)
    graph = capture(model, images)
    channels_first(graph)
    torch.testing.assert_close(graph(images), model(images), rtol=1e-4, atol=1e-5)


class Scaled(nn.Module):
    """Norms of an image's own values, with a scale and a shift behind each."""

    def __init__(self) -> None:
        super().__init__()
        self.maps, self.tokens = nn.GroupNorm(2, 8), nn.LayerNorm(8, elementwise_affine=False)
        self.gain, self.offset = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))

    def forward(self, x):
        y = self.maps(x) * (self.gain - 1)[:, None, None] + self.offset[:, None, None]
        return (self.tokens(y.flatten(2).mT) * self.gain - self.offset / 3).cumsum(1)


def test_a_scale_behind_a_norm_is_the_norms():
    torch.manual_seed(0)
    model, images = Scaled(), torch.randn(2, 8, 5, 4)
    nn.init.normal_(model.maps.weight)
    nn.init.normal_(model.maps.bias)
    merged, coverage = Merge().apply(model, images)
    assert count(merged, aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor) == 0
    assert count(merged, aten.group_norm.default, aten.layer_norm.default) == 2
    assert [line.why[:8] for line in coverage] == ["one norm", "one norm"]
    torch.testing.assert_close(merged(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["repvgg_a0", "mobileone_s0", "fastvit_t8", "repghostnet_050", "repvit_m0_9"],
)
def test_timms_own_deployed_form(name):
    """Outputs, arithmetic and kernels are those of its reparameterisation of the same weights."""
    torch.manual_seed(0)
    model, images = settle(timm.create_model(name)), torch.rand(2, 3, 64, 64)
    theirs = reparameterize_model(model)
    ours, coverage = Merge().apply(model, images)
    assert largest_error(theirs, ours, images) < 1e-5
    assert count_work(ours, images).macs == count_work(theirs, images).macs
    held = sum(tensor.numel() for tensor in ours.state_dict().values())
    norms = sum(m.num_features for m in theirs.modules() if isinstance(m, nn.BatchNorm2d))
    scales = sum(p.numel() for n, p in theirs.named_parameters() if n.endswith(".gamma"))
    assert held == sum(p.numel() for p in theirs.parameters()) - norms - scales  # ours has none
    assert all(line.changed for line in coverage)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unireplknet_a", "overlock_xt", "fastvit_t8"])
def test_the_deployed_form_of_our_backbones(name):
    """The general edit finds at least what the families' own merges know."""
    torch.manual_seed(0)
    model, images = settle(create_model(name)), torch.rand(2, 3, 64, 64)
    known, _ = Fold().apply(model)
    found, _ = Merge().apply(model, images)
    assert largest_error(known, found, images) < 1e-5
    assert count_work(found, images).macs == count_work(known, images).macs
    held = [sum(t.numel() for t in m.state_dict().values()) for m in (found, known)]
    assert held[0] <= held[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "kernels"),
    [
        ("repvgg_a0", 64, 22),
        ("mobileone_s0", 64, None),
        ("fastvit_t8", 64, None),
        ("repghostnet_050", 64, None),
        ("levit_128s", 224, None),
        ("convnext_atto", 64, None),
        ("repvit_m0_9", 64, None),
    ],
)
def test_networks_of_timm(name, size, kernels):
    """No batch norm is left, and where it is known, only as many kernels as were published."""
    torch.manual_seed(0)
    model, images = settle(timm.create_model(name)), torch.rand(2, 3, size, size)
    graph, _ = lean(model, images)
    assert largest_error(model, graph, images) < 1e-3
    assert count(graph, aten._native_batch_norm_legit_no_training.default) == 0
    if kernels is not None:
        assert count(graph, aten.conv2d.default) == kernels


@pytest.mark.slow
def test_a_network_of_torchvision():
    torch.manual_seed(0)
    model = settle(torchvision.models.mobilenet_v3_small())
    images = torch.rand(2, 3, 64, 64)
    graph, _ = lean(model, images)
    assert largest_error(model, graph, images) < 1e-3
    assert count(graph, aten._native_batch_norm_legit_no_training.default) == 0


def test_tables_that_python_keeps_are_written_too():
    """LeViT's biases of attention, once they were looked up, lie in a dict."""

    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.kept = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), {}
            self.biases = nn.Parameter(torch.randn(4, 9))

        def forward(self, x):
            table = self.kept.setdefault("table", self.biases[:, 2:6, None].detach())
            return self.norm(self.conv(x)) + table

    torch.manual_seed(0)
    model, images = settle(Table()), torch.rand(2, 3, 4, 4)
    merged, _ = Merge().apply(model, images)
    again = replay(Table(), json.loads(json.dumps(lineage(merged))))
    again.load_state_dict(merged.state_dict())
    torch.testing.assert_close(merged(images), model(images))
    assert torch.equal(again(images), merged(images))


def test_python_that_depends_on_values_is_said():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(FoveateError, match="cannot be captured"):
        capture(Branching(), torch.rand(2, 3, 4, 4))
