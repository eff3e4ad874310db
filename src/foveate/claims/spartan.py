"""Channels mixed as waves are more accurate than a plain MLP of as many parameters."""

from functools import partial

from torch import nn

from foveate.backbones import create_model
from foveate.backbones.parts import ConvMlp, MetaBlock
from foveate.claims import Finding, Lab, claim
from foveate.ops.spartan import WaveMixer


def with_waves(classes: int) -> nn.Module:
    """A small SpaRTAN."""
    return create_model("spartan_mini32", num_classes=classes)


def with_mlps(classes: int) -> nn.Module:
    """The same with plain channel mixers, as wide as gives them the same parameters."""
    net = with_waves(classes)
    for block in net.modules():
        if isinstance(block, MetaBlock) and isinstance(block.mlp, WaveMixer):
            dim = block.mlp.theta.in_channels
            size = sum(p.numel() for p in block.mlp.parameters())
            block.mlp = ConvMlp(dim, round((size - dim) / (2 * dim + 1)))
    return net


@claim(
    "spartan",
    says="At equal parameters, channels mixed as waves are more accurate than plain MLPs.",
    paper="77.7% on ImageNet with 3.8M parameters and 1.0 GFLOPs (table I)",
    minutes=3.0,
)
def waves_are_more_accurate(lab: Lab) -> Finding:
    x = lab.noise(1, 3, 32, 32)
    nets = {"waves": lab.make(partial(with_waves, 10)), "mlps": lab.make(partial(with_mlps, 10))}
    counts = {name: lab.count(net, x) for name, net in nets.items()}
    return Finding.above(
        0.0,
        lab.gain(with_waves, with_mlps, lab.recipe(epochs=3.0), size=8),
        unit=" points",
        details={
            "parameters": {name: found.params for name, found in counts.items()},
            "mmacs_at_32_pixels": {name: found.macs / 1e6 for name, found in counts.items()},
        },
        note=f"spartan_mini32 in both, {lab.source} at 8 pixels, 3 epochs.",
    )
