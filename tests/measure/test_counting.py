"""Counts against closed forms, and against what timm publishes of its models."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foveate.measure import count, count_each


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def macs(module, *shapes) -> int:
    found = count(module, *(torch.zeros(shape) for shape in shapes))
    assert not found.uncounted
    return found.macs


CONVOLUTIONS = {
    "plain": (nn.Conv2d(6, 8, 3, padding=1), (2, 6, 10, 12), 2 * 8 * 120 * 6 * 9),
    "strided": (nn.Conv2d(6, 8, 3, stride=2, padding=1), (1, 6, 10, 12), 8 * 30 * 6 * 9),
    "grouped": (nn.Conv2d(6, 12, 3, padding=1, groups=3), (1, 6, 4, 4), 12 * 16 * 2 * 9),
    "depthwise": (nn.Conv2d(6, 6, 7, padding=3, groups=6), (1, 6, 9, 9), 6 * 81 * 49),
    "dilated": (nn.Conv2d(6, 8, 3, padding=2, dilation=2), (1, 6, 9, 9), 8 * 81 * 6 * 9),
    "oblong": (nn.Conv2d(4, 4, (1, 11), padding=(0, 5)), (1, 4, 5, 20), 4 * 100 * 4 * 11),
    "of a line": (nn.Conv1d(3, 5, 4), (2, 3, 10), 2 * 5 * 7 * 3 * 4),
    "of a volume": (nn.Conv3d(2, 3, 3), (1, 2, 5, 6, 7), 3 * 3 * 4 * 5 * 2 * 27),
    # A transposed convolution spreads each input number over a kernel for every output channel.
    "transposed": (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 5, 5), 25 * 4 * 6 * 4),
    "transposed in groups": (nn.ConvTranspose2d(4, 6, 3, groups=2), (1, 4, 5, 5), 25 * 4 * 3 * 9),
}


@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolutions(case):
    module, shape, expected = case
    assert macs(module, shape) == expected


PRODUCTS = {
    "linear": (nn.Linear(7, 5), [(2, 3, 7)], 6 * 7 * 5),
    "no bias": (nn.Linear(7, 5, bias=False), [(4, 7)], 4 * 7 * 5),
    "bilinear": (nn.Bilinear(3, 4, 5), [(2, 3), (2, 4)], 2 * 3 * 4 * 5),
    "batched": (Apply(torch.matmul), [(2, 3, 4, 5), (2, 3, 5, 6)], 2 * 3 * 4 * 5 * 6),
    "matrix and vector": (Apply(torch.matmul), [(4, 5), (5,)], 20),
    "einsum": (Apply(lambda a, b: torch.einsum("bhid,bhjd->bhij", a, b)), [(2, 3, 4, 5)] * 2, 480),
    "einsum over two": (Apply(lambda a, b: torch.einsum("abc,abd->cd", a, b)), [(2, 3, 4)] * 2, 96),
    "distances": (Apply(torch.cdist), [(30, 7), (40, 7)], 30 * 40 * 7),
    "embedding": (Apply(lambda x: F.embedding(x.long(), torch.zeros(9, 4))), [(3, 5)], 0),
}


@pytest.mark.parametrize("case", PRODUCTS.values(), ids=PRODUCTS)
def test_products(case):
    module, shapes, expected = case
    assert macs(module, *shapes) == expected


@pytest.mark.parametrize("backend", ["MATH", "FLASH_ATTENTION"])
def test_attention_by_every_path(backend):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    b, h, n, m, d = 2, 3, 16, 24, 8
    attend = Apply(F.scaled_dot_product_attention)
    with sdpa_kernel(getattr(SDPBackend, backend)):
        assert macs(attend, (b, h, n, d), (b, h, m, d), (b, h, m, d)) == 2 * b * h * n * m * d


@pytest.mark.parametrize("batch_first", [True, False])
def test_torch_transformer_layers(batch_first):
    b, n, d, wide = 2, 6, 8, 16
    layer = nn.TransformerEncoderLayer(d, 2, wide, batch_first=batch_first)
    shape = (b, n, d) if batch_first else (n, b, d)
    projections, attention, mlp = 4 * b * n * d * d, 2 * b * n * n * d, 2 * b * n * d * wide
    assert macs(layer, shape) == projections + attention + mlp


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("both_ways", [False, True])
def test_recurrences(kind, both_ways):
    steps, batch, wide, hidden = 5, 2, 3, 4
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[kind]
    net = kind(wide, hidden, num_layers=2, bidirectional=both_ways)
    ways = 1 + both_ways
    first = steps * batch * gates * hidden * (wide + hidden)
    second = steps * batch * gates * hidden * (ways * hidden + hidden)
    assert macs(net, (steps, batch, wide)) == ways * (first + second)


def test_quantised_layers():
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = torch.ao.quantization.quantize_dynamic(net, {nn.Linear})
        found = count(small, torch.zeros(5, 8))
    assert found.macs == 5 * (8 * 6 + 6 * 4)
    assert not found.uncounted


def test_integer_products():
    multiply = Apply(lambda a, b: torch._int_mm(a.to(torch.int8), b.to(torch.int8)))
    assert macs(multiply, (32, 16), (16, 24)) == 32 * 16 * 24


@pytest.mark.parametrize(
    ("transform", "halves"),
    [(torch.fft.fft2, 0), (torch.fft.rfft2, 1)],
)
def test_fourier_transforms(transform, halves):
    images = torch.zeros(2, 3, 16, 32, dtype=torch.float32 if halves else torch.complex64)
    found = count(Apply(transform), images)
    points = 16 * 32
    assert found.flops == 6 * 5 * points * math.log2(points) / 2**halves
    assert not found.uncounted


def test_a_filter_in_frequency_space():
    """As global filter networks have it: there, a product, and back."""
    weight = torch.zeros(3, 16, 9, dtype=torch.complex64)
    net = Apply(lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * weight, s=(16, 16)))
    found = count(net, torch.zeros(1, 3, 16, 16))
    transform = 3 * 5 * 256 * 8 / 2
    assert found.flops == 2 * transform + 6 * weight.numel()
    assert not found.uncounted


def test_arithmetic_that_is_no_product():
    found = count(nn.Sequential(nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()), torch.zeros(1, 3, 8, 8))
    assert (found.macs, found.flops) == (0, 192 + 48 * 4)


def test_what_cannot_be_counted_is_listed():
    @torch.library.custom_op("foveate_test::mystery", mutates_args=())
    def mystery(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    found = count(nn.Sequential(nn.Linear(4, 4), Apply(mystery)), torch.zeros(1, 4))
    assert found.uncounted == {"foveate_test.mystery": 1}
    assert found.is_lower_bound
    assert found.macs == 16


def test_layers_add_up_and_know_their_names():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()))
    found = count(net, torch.zeros(1, 3, 6, 6))
    assert {layer.name: layer.macs for layer in found.layers} == {
        "": 0,
        "0": 8 * 16 * 27,
        "1": 0,
        "1.0": 8 * 16 * 8,
        "1.1": 0,
    }
    assert found.below("1").macs == 8 * 16 * 8
    assert found.below("").macs == found.macs
    assert found.below("").params == found.params == sum(p.numel() for p in net.parameters())


def test_shared_modules_count_their_work_twice_and_their_parameters_once():
    layer = nn.Linear(4, 4)
    found = count(nn.Sequential(layer, nn.ReLU(), layer), torch.zeros(1, 4))
    assert (found.params, found.macs) == (20, 32)


def test_memory_and_movement_have_closed_forms():
    net = nn.Sequential(nn.ReLU(), nn.ReLU(), nn.ReLU())
    found = count(net, torch.zeros(1, 1000))
    assert found.bytes == 3 * 2 * 4000
    assert found.peak_bytes == 3 * 4000  # the caller's input, a layer's input, its output
    assert count(nn.Linear(10, 20, bias=False), torch.zeros(3, 10)).bytes == 4 * (30 + 200 + 60)


def test_the_mode_is_restored_and_no_hook_is_left():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout()).train()
    before = net[0].running_mean.clone()
    count(net, torch.ones(2, 3, 4, 4))
    assert net.training
    assert torch.equal(net[0].running_mean, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_work_that_follows_the_input():
    def early(x):
        return x @ torch.zeros(4, 4) if x.sum() > 0 else x @ torch.zeros(4, 8)

    images = torch.stack([torch.full((4, 4), v) for v in (1.0, -1.0, -1.0)])
    spread = count_each(Apply(lambda x: early(x[0])), images)
    assert spread.macs.tolist() == [64, 128, 128]
    assert spread.median == 128
    assert spread.quantile(0.0) == 64
    assert np.all(spread.macs > 0)


# GMACs and millions of activations that timm publishes of its models, counted with fvcore at
# the given side: results/benchmark-infer-amp-nchw-pt291-cu128-4090.csv of
# huggingface/pytorch-image-models (Apache-2.0).
PUBLISHED = {
    "resnet50": (224, 4.11, 11.11),
    "convnext_tiny": (224, 4.47, 13.44),
    "vit_small_patch16_224": (224, 4.61, None),
    "deit_tiny_distilled_patch16_224": (224, 1.27, None),
    "levit_256": (224, 1.13, None),
    "efficientnet_b0": (224, 0.40, 6.75),
    "mobilevit_s": (256, 2.03, None),
    "mixer_s16_224": (224, 3.79, 5.97),
    "resmlp_12_224": (224, 3.01, 5.50),
    "coatnet_nano_rw_224": (224, 2.41, None),
    "vovnet39a": (224, 7.09, 6.73),
    "dla60": (224, 4.26, 10.16),
    "seresnext26d_32x4d": (224, 2.73, 10.19),
    "regnetx_032": (224, 3.20, 11.37),
    "tiny_vit_5m_224": (224, 1.27, None),
    "davit_tiny": (224, 4.54, None),
    "poolformer_s12": (224, 1.82, 5.53),
    "inception_next_atto": (224, 0.50, 3.63),
}


def norms_as_fvcore(found) -> float:
    """fvcore adds norms to multiply-adds: 2 operations a number for batch norms, as we have
    them, and 5 for layer norms, where we count 7."""
    kinds = [(layer.kind.lower(), layer.flops) for layer in found.layers]
    batch = sum(flops for kind, flops in kinds if "batchnorm" in kind)
    return batch + 5 / 7 * sum(flops for kind, flops in kinds if "layernorm" in kind)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name):
    import timm

    side, giga, mega = PUBLISHED[name]
    found = count(timm.create_model(name), torch.zeros(1, 3, side, side))
    assert not found.uncounted
    assert (found.macs + norms_as_fvcore(found)) / 1e9 == pytest.approx(giga, rel=0.01, abs=0.0051)
    if mega is not None:
        assert found.activations / 1e6 == pytest.approx(mega, rel=0.01, abs=0.0051)


@pytest.mark.parametrize(("name", "giga"), [("swin_t", 4.49), ("densenet121", 2.83)])
def test_published_counts_of_torchvision(name, giga):
    """torchvision states the GFLOPS of its weights, by which it means multiply-adds."""
    import torchvision

    found = count(torchvision.models.get_model(name), torch.zeros(1, 3, 224, 224))
    assert not found.uncounted
    assert found.macs / 1e9 == pytest.approx(giga, rel=0.01)


def test_within_inference_mode():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(inplace=True))
    with torch.inference_mode():
        found = count(model, torch.zeros(1, 3, 8, 8))
    assert found.macs == 3 * 9 * 8 * 36
