import pytest
import torch

from foveate.ops.inceptionnext import InceptionDepthwise
from foveate.ops.kernels import accelerate, inception_mix
from foveate.ops.kernels.inception import plain_inception_mix


def weights(width):
    kernels = ((3, 3), (1, 11), (11, 1))
    return [t for k in kernels for t in (torch.randn(width, 1, *k), torch.randn(width))]


@pytest.mark.parametrize(("channels", "width"), [(24, 3), (96, 12), (40, 5), (9, 3)])
def test_it_is_split_convolve_concatenate(library, maps, agrees, channels, width):
    agrees(inception_mix, plain_inception_mix, (maps(2, channels, 13, 14), *weights(width)))


def test_an_image_is_gone_through_in_parts(library, maps, agrees):
    """Rows are so long that in channels_last its parts of the mixer do 7 of them at a time."""
    agrees(inception_mix, plain_inception_mix, (maps(2, 64, 20, 97), *weights(8)))


def test_gradients_of_gradients(library):
    x, rest = torch.randn(1, 8, 5, 5, requires_grad=True), weights(1)

    def penalty(mix):
        (gx,) = torch.autograd.grad(mix(x, *rest).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(gx.square().sum(), x)[0]

    ours, theirs = penalty(inception_mix), penalty(plain_inception_mix)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-2)


def test_the_mixers_module_uses_it(library):
    mixer = InceptionDepthwise(16)
    x = torch.randn(2, 16, 12, 12)
    before = mixer(x)
    assert "" in accelerate(mixer)
    after = mixer(x)
    assert after.grad_fn.name() == "_InceptionBackward"
    torch.testing.assert_close(after, before)
