"""A token mixer that merges into one convolution is faster than one with a skip connection."""

import copy

from torch import Tensor, nn

from foveate.claims import Finding, Lab, claim
from foveate.ops.fastvit import RepMixer
from foveate.ops.merge import merge


class PooledWithSkip(nn.Module):
    """PoolFormer's mixer: the input, and how the mean of its neighbours differs from it."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.pool(x) - x)


@claim(
    "fastvit",
    says="A merged RepMixer takes less time than pooling with a skip connection.",
    paper="25.1% less latency at 384 pixels and 43.9% less at 1024 than pooling (figure 2)",
    minutes=1.0,
)
def merged_mixers_are_faster(lab: Lab) -> Finding:
    maps = lab.noise(8, 64, 56, 56).contiguous(memory_format=lab.channels_last)
    apart = lab.make(lambda: RepMixer(64))
    merged = merge(copy.deepcopy(apart))
    training_form = lab.speed(apart, merged, maps, share=0.3)
    return Finding.speedup(
        1.0,
        lab.speed(lab.make(PooledWithSkip), merged, maps, share=0.6),
        details={"training_form": [training_form.median, training_form.low, training_form.high]},
        note="The mixers alone: 8 maps of 56 pixels and 64 channels, channels_last, eager. The "
        "paper times whole networks on a phone.",
    )
