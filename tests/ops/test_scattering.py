"""The dual-tree complex wavelet transform and what SVT does between it and its inverse."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from foveate.errors import FoveateError
from foveate.ops.svt import (
    HIGH,
    HIGH_BACK,
    LOW,
    LOW_BACK,
    HalfScatteringMixer,
    ScatteringMixer,
    join_bands,
    split_bands,
)


@pytest.mark.parametrize("size", [(56, 56), (8, 6), (7, 9), (3, 2), (1, 1)])
def test_perfect_reconstruction(size):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    low, real, imaginary = split_bands(x)
    even = tuple(side + side % 2 for side in size)
    assert low.shape == (2, 3, *even)
    assert real.shape == imaginary.shape == (6, 2, 3, even[0] // 2, even[1] // 2)
    again = join_bands(low, real, imaginary)[:, :, : size[0], : size[1]]
    torch.testing.assert_close(again, x, atol=1e-10, rtol=0)


def test_filters_and_their_inverses_cancel():
    """Analysis, then synthesis, of both bands together: an impulse, whatever the signal."""
    both = np.convolve(LOW, LOW_BACK) + np.convolve(HIGH, HIGH_BACK)
    impulse = np.zeros(31)
    impulse[15] = 1
    np.testing.assert_allclose(both, impulse, atol=1e-15)
    assert [sum(taps) for taps in (LOW, LOW_BACK)] == pytest.approx([1, 1])
    assert [sum(taps) for taps in (HIGH, HIGH_BACK)] == pytest.approx([0, 0], abs=1e-15)


@pytest.mark.paper("svt")
def test_numbers_of_pytorch_wavelets():
    """DTCWTForward(J=1, biort="near_sym_b") of version 1.3.0 for the same map, in double."""
    values = np.random.default_rng(0).standard_normal((1, 1, 6, 5))
    low, real, imaginary = split_bands(torch.from_numpy(values))
    first = [
        0.18858377314024768,
        0.5370861475960025,
        0.6388634038007182,
        0.09006007048228637,
        -0.5748490955266482,
        -0.7391974509912551,
    ]
    corner = [
        -0.8089715654228838 + 0.06140680131357512j,
        -0.006636709768089444 - 0.31483115514553484j,
        -0.22741481439753752 - 0.3487995481867773j,
        0.19095016639865964 - 0.014412665211165548j,
        0.238228799531563 + 0.048277582843137934j,
        0.4679940739869385 - 0.6089398976061796j,
    ]
    assert low[0, 0, 0].tolist() == pytest.approx(first, abs=1e-14)
    found = torch.complex(real, imaginary)[:, 0, 0, 0, 0]
    np.testing.assert_allclose(found.numpy(), corner, atol=1e-14)


def test_each_band_sees_edges_of_its_direction():
    down, right = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    for band, degrees in enumerate((15, 45, 75, 105, 135, 165)):
        across = math.radians(degrees + 90)
        fine = 2.8 if band in (1, 4) else 2.0
        wave = torch.cos(fine * (right * math.cos(across) - down * math.sin(across)))
        _, real, imaginary = split_bands(wave[None, None])
        energy = (real**2 + imaginary**2)[:, 0, 0, 4:-4, 4:-4].mean((1, 2))
        assert energy.argmax() == band


def twin(op, x):
    """The mixer as the paper writes it: complex products of blocks, term by term."""
    low, real, imaginary = split_bands(x)
    bands = torch.complex(real, imaginary)

    def mlp(part, z, layout):
        for weight, bias, act in ((part.weight1, part.bias1, True), (part.weight2, part.bias2, 0)):
            weight, bias = torch.complex(*weight), torch.complex(*bias)
            z = torch.einsum(layout, z, weight) + bias
            if act:
                z = torch.complex(F.relu(z.real), F.relu(z.imag))
        return z

    blocks = bands.permute(0, 1, 3, 4, 2).unflatten(4, (op.blocks, -1))
    bands = mlp(op.high, blocks, "obhwgi,gij->obhwgj").flatten(4).permute(0, 1, 4, 2, 3)
    if op.tokens is not None:
        bands = mlp(op.tokens, bands, "obchi,hij->obchj")
    joined = join_bands(low * op.low, bands.real, bands.imag)
    return joined[:, :, : x.shape[2], : x.shape[3]]


@pytest.mark.paper("svt")
@pytest.mark.parametrize("tokens", [False, True])
def test_the_mixer_and_its_gradients(tokens):
    torch.manual_seed(0)
    op = ScatteringMixer(8, 6, blocks=2, tokens=tokens).double()
    for p in op.parameters():
        torch.nn.init.normal_(p, std=0.5)
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64, requires_grad=True)
    against = torch.randn_like(x)
    results = []
    for y in (op(x), twin(op, x)):
        wanted = torch.autograd.grad((y * against).sum(), [x, *op.parameters()])
        results.append([y, *wanted])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_scales_are_interpolated_for_other_maps():
    op = ScatteringMixer(4, 8)
    torch.nn.init.constant_(op.low, 1.0)
    for p in op.high.parameters():
        torch.nn.init.zeros_(p)
    x = torch.ones(1, 4, 7, 11)
    torch.testing.assert_close(op(x), x)  # all of a constant map is low


def test_half_of_the_channels_scatter_and_they_alternate():
    op = HalfScatteringMixer(8, 6)
    x = torch.randn(2, 8, 6, 6)
    y = op(x)
    torch.testing.assert_close(y[:, ::2], op.conv(x[:, :4]))
    torch.testing.assert_close(y[:, 1::2], op.scattering(x[:, 4:]))


def test_mistakes():
    with pytest.raises(FoveateError, match="blocks"):
        ScatteringMixer(10, 8)
    with pytest.raises(FoveateError, match="tokens"):
        ScatteringMixer(8, 8, tokens=True)(torch.zeros(1, 8, 8, 6))
