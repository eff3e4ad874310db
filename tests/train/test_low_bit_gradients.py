"""Gradients of few bits: on their grid, right in the mean, and made again by a resumption."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.surgery.dorefa import DoReFa, DoReFaLayer
from foveate.surgery.low_bits import AsItIs, Pack
from foveate.train import Ingredient, evaluate, train
from foveate.train.dorefa import LowBitGradients, quantise_gradient


@pytest.mark.paper("dorefa")
@pytest.mark.parametrize("bits", [1, 2, 4, 6])
@pytest.mark.parametrize("noise", [True, False])
def test_each_sample_has_a_grid_of_its_own(bits, noise):
    torch.manual_seed(0)
    g = torch.randn(5, 3, 16, 16) * torch.tensor([1.0, 1e-6, 1e4, 0.0, 3.0]).view(-1, 1, 1, 1)
    found = quantise_gradient(g, bits, noise)
    for was, now in zip(g, found, strict=True):
        largest = was.abs().max()
        wanted = 2 * largest * (torch.arange(2**bits) / (2**bits - 1) - 0.5)
        assert torch.isin(now, wanted).all()
        assert (now - was).abs().max() <= (2 if noise else 1) * largest / (2**bits - 1) * 1.001
    assert not found[3].any()
    assert torch.equal(found.abs().amax((1, 2, 3)), g.abs().amax((1, 2, 3)))


@pytest.mark.paper("dorefa")
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_mean_is_right_with_noise_and_wrong_without(bits):
    """Within five standard errors, each of 200 numbers; the largest comes out as itself."""
    torch.manual_seed(0)
    g, draws = torch.randn(1, 200).clamp(-2, 2), 20_000
    step = 2 * g.abs().max() / (2**bits - 1)
    many = quantise_gradient(g.view(1, -1, 1).expand(1, 200, draws), bits)[0]
    error = many.mean(1) - g[0]
    standard = many.std(1) / draws**0.5
    assert (error.abs() <= 5 * standard + 1e-6).all()
    assert (standard <= 0.51 * step / draws**0.5).all()
    biased = quantise_gradient(g, bits, noise=False) - g
    assert biased.abs().mean() > 0.2 * step
    assert biased.abs().mean() > 20 * error.abs().mean()


@pytest.mark.paper("dorefa")
def test_both_products_of_the_way_back_have_few_bits():
    """What is handed on, and made of weights and biases, is as of a gradient rounded by hand."""
    torch.manual_seed(0)
    conv, x = nn.Conv2d(3, 4, 3), torch.rand(5, 3, 8, 8, requires_grad=True)
    upstream = torch.randn(5, 4, 6, 6)
    given = (x, conv.weight, conv.bias)
    wanted = torch.autograd.grad(conv(x), given, quantise_gradient(upstream, 3, noise=False))
    layer = DoReFaLayer(conv, DoReFa(weight_bits=None))
    layer.input = AsItIs()
    part, training = LowBitGradients(bits=3, noise=False), SimpleNamespace(model=layer)
    part.start(training)
    part.batch(training, None)
    found = torch.autograd.grad(layer(x), given, upstream)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    part.gradients(training)
    plain = torch.autograd.grad(conv(x), given, upstream)
    assert torch.equal(torch.autograd.grad(layer(x), given, upstream)[0], plain[0])
    assert not torch.allclose(plain[0], wanted[0], rtol=0.1)


class Stop(Ingredient):
    def __init__(self, step):
        self.step = step

    def step_end(self, training):
        if training.clock.step == self.step:
            raise InterruptedError


@pytest.mark.paper("dorefa")
def test_it_learns_resumes_and_is_packed(squares, make_model, recipe, tmp_path):
    settings = recipe(epochs=6, optimizer="adamw", learning_rate=0.01)

    def low_bit():
        return DoReFa(weight_bits=1, activation_bits=2).apply(make_model(), torch.rand(2, 3, 8, 8))[
            0
        ]

    model = low_bit()
    train(model, squares, settings, tmp_path / "a", ingredients=[LowBitGradients()], progress=False)
    judged = evaluate(model, squares.splits["train"])
    assert judged.top1 > 0.6
    packed, _ = Pack().apply(model)
    assert evaluate(packed, squares.splits["train"]).top1 == judged.top1
    assert not any(layer._forward_hooks for layer in model.modules())
    for stop in (2, 11, -1):
        again = low_bit()
        parts = [LowBitGradients(), Stop(stop)]
        try:
            train(again, squares, settings, tmp_path / "b", ingredients=parts, progress=False)
        except InterruptedError:
            continue
    whole, resumed = model.state_dict(), again.state_dict()
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_mistakes(squares, make_model, recipe, tmp_path):
    for bits in (0, 17):
        with pytest.raises(FoveateError, match=f"bits is {bits}"):
            LowBitGradients(bits)
    with pytest.raises(FoveateError, match="apply DoReFa"):
        train(make_model(), squares, recipe(), tmp_path, ingredients=[LowBitGradients()])
