"""The Inception mixer in one launch gives what split, three convolutions and concat give."""

import pytest
import torch
from torch.func import functional_call

from foveate import FoveateError
from foveate.ops.inceptionnext import InceptionDepthwise
from foveate.ops.kernels.triton import inception, inception_mix

NAMES = [
    f"{conv}.{name}"
    for conv in ("dwconv_hw", "dwconv_w", "dwconv_h")
    for name in ("weight", "bias")
]


def learnt(draw, part, square=3, band=3, dtype=torch.float32):
    kernels = (square, square), (1, band), (band, 1)
    shapes = [shape for kernel in kernels for shape in ((part, 1, *kernel), (part,))]
    return [draw(*shape, dtype=dtype) for shape in shapes]


def plain(dim, part, square=3, band=3):
    """The readable twin, as a function of the map and of its kernels and biases."""
    op = InceptionDepthwise(dim, square, band, branch_ratio=part / dim)
    return lambda x, *ours: functional_call(op, dict(zip(NAMES, ours, strict=True)), (x,))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("shape", "part", "dtype"),
    [
        ((2, 7, 6, 4), 2, torch.float32),
        ((1, 5, 3, 18), 1, torch.bfloat16),
        ((1, 6, 3, 3), 2, torch.float16),
    ],
)
def test_result_and_gradients_are_the_plain_mixers(agree, draw, shape, part, dtype, channels_last):
    x = draw(*shape, channels_last=channels_last, dtype=dtype)
    agree(inception_mix, plain(shape[1], part), [x, *learnt(draw, part, dtype=dtype)])


@pytest.mark.slow
def test_the_papers_kernels(agree, draw):
    agree(inception_mix, plain(16, 2, 3, 11), [draw(2, 16, 9, 13), *learnt(draw, 2, 3, 11)])


def test_the_identity_keeps_its_bits_and_layout(draw):
    x = draw(1, 7, 3, 4, channels_last=True)
    y = inception_mix(x, *learnt(draw, 2))
    assert torch.equal(y[:, :1], x[:, :1])
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_without_biases(draw):
    x = draw(1, 4, 3, 2)
    square, _, wide, _, tall, _ = learnt(draw, 1)
    zero = torch.zeros(1, device=x.device)
    got = inception_mix(x, square, None, wide, None, tall, None)
    assert torch.equal(got, inception_mix(x, square, zero, wide, zero, tall, zero))
    assert torch.autograd.grad(got.sum(), (x, square))[1].shape == square.shape


def test_gradients_have_gradients(draw):
    x, ours = draw(1, 4, 3, 2, dtype=torch.float64), learnt(draw, 1, dtype=torch.float64)

    def penalty(mix):
        first = torch.autograd.grad(mix(x, *ours).sin().sum(), (x, *ours), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), (x, *ours))

    torch.testing.assert_close(penalty(inception_mix), penalty(plain(4, 1)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of its own tensors
def test_pytorch_can_trace_and_compile_it(draw):
    square, square_b, wide, wide_b, tall, tall_b = learnt(draw, 1)
    x = draw(1, 4, 4, 5, channels_last=True)
    torch.library.opcheck(inception._forward, (x, square, wide, tall, square_b, wide_b, tall_b))


def test_what_does_not_fit_is_said(draw):
    x, good = draw(1, 7, 5, 5), learnt(draw, 2)
    with pytest.raises(FoveateError, match="do not fit 7 channels"):
        inception_mix(x, *learnt(draw, 3))
    with pytest.raises(FoveateError, match="no centre"):
        inception_mix(x, *learnt(draw, 2, band=4))
    with pytest.raises(FoveateError, match="give all or none"):
        inception_mix(x, good[0], None, *good[2:])
