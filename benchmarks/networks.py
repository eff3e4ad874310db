"""Networks of many kinds that edits, and peers of theirs, are tried on: small, and unlike any that
was just made, so that nothing is right by chance."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from foveate.backbones import create_model

CLASSES, SETTLING = 10, 16


@dataclass(frozen=True)
class Network:
    """One of timm's networks, without published weights.

    Args:
        name: timm's.
        side: of the images that it is tried with.
        kwargs: what makes it smaller, as `timm.create_model` takes it.
    """

    name: str
    side: int
    kwargs: dict[str, Any] = field(default_factory=dict)

    def make(self) -> nn.Module:
        """The network in evaluation mode; the same numbers each time."""
        torch.manual_seed(0)
        model = create_model(f"timm/{self.name}", num_classes=CLASSES, **self.kwargs)
        return settled(model, self.images(SETTLING))

    def images(self, count: int) -> Tensor:
        """Blots of colour (count, 3, side, side), unlike each other; the same each time."""
        chance = torch.Generator().manual_seed(1)
        blots = torch.randn(count, 3, 4, 4, generator=chance)
        return F.interpolate(blots, self.side, mode="bicubic")


def _tokens(name: str, side: int = 64, **kwargs: Any) -> Network:
    """A network that is made for one size of image."""
    return Network(name, side, {"img_size": side, **kwargs})


NETWORKS = {
    network.name: network
    for network in (
        Network("resnet10t", 32),
        Network("regnety_002", 32),
        Network("densenet121", 32, {"block_config": (2, 2, 2, 2)}),
        Network("efficientnet_b0", 32),
        Network("mobilenetv3_small_050", 32),
        Network("convnext_atto", 32),
        Network("inception_next_atto", 32),
        Network("fastvit_t8", 64),
        _tokens("levit_128s"),
        _tokens("deit_tiny_patch16_224", depth=4),
        _tokens("swin_tiny_patch4_window7_224", depths=(1, 1, 2, 1), embed_dim=48),
        Network("pvt_v2_b0", 64),
        _tokens("mixer_s32_224"),
        Network("ese_vovnet19b_slim_dw", 64),
        Network("ghostnet_050", 32),
        Network("repghostnet_050", 32),
        Network("repvit_m0_9", 64),
        Network("shvit_s1", 64),
        Network("starnet_s1", 32),
        Network("hgnetv2_b0", 32),
        Network("poolformer_s12", 64),
        Network("edgenext_xx_small", 64),
        Network("mobilevit_xxs", 64),
        _tokens("convit_tiny", depth=4),
        _tokens("xcit_nano_12_p16_224", depth=4),
        _tokens("cait_xxs24_224", depth=4),
    )
}
"""By name. The first fifteen are of the kinds that most work is done with."""


@torch.no_grad()
def settled(model: nn.Module, images: Tensor) -> nn.Module:
    """Give norms, biases and zeros numbers unlike those that they begin with, and norms the
    statistics that they would have learnt from images (N, 3, H, W): nothing dies or bursts."""
    chance = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.ndim == 1 or not parameter.any():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=chance))
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(images)
    for norm in norms:
        norm.momentum = 0.1
        assert norm.running_var is not None
        norm.running_var.add_(0.01)
    return model.eval()
