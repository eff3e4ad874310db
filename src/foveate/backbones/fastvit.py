"""FastViT: RepMixers, then attention on the coarsest maps, with branches that merge.

timm's modules under Foveate's contract; `foveate.ops.fastvit.RepMixer` is the mixer alone.

Source: fastvit (arXiv 2303.14189, section 3 and table 2).
"""

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.backbones.base import ADAMW, Backbone, Size
from foveate.backbones.registry import register
from foveate.catalog import implements
from foveate.ops.merge import fuse_conv_bn_eval, merge


class SubsampledPoint(nn.Conv2d):
    """A strided 1x1 convolution: of the pixels that it sees, and of no others.

    PyTorch's own ends the process when it trains on 3 channels in channels_last
    (torch 2.15 on CPUs).
    """

    def forward(self, input: Tensor) -> Tensor:
        down, right = self.stride
        return F.conv2d(input[:, :, ::down, ::right], self.weight, self.bias)


class FastViTHead(nn.Module):
    """A wider map, average pool, linear. Shapes: (B, dim, H, W) to (B, num_classes)."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.final_conv = net.final_conv
        self.drop = net.head.drop
        self.fc = net.head.fc

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.drop(self.final_conv(x).mean((2, 3)))
        return x if pre_logits else self.fc(x)


@implements("fastvit")
class FastViT(Backbone):
    """Four stages, all but the last of RepMixers.

    Args:
        num_classes, in_chans: outputs and input channels.
        depths, dims: blocks and channels of each stage.
        mlp_ratio: hidden width of the channel mixers over their channels.
        attending: last stages that attend instead of mixing.
        deploy: build the merged form.
        drop_rate, drop_path_rate: dropout before the classifier, and the
            largest rate of stochastic depth.
    """

    recipe: ClassVar[dict[str, Any]] = ADAMW
    timm_key_rules = ((r"^final_conv\.", "head.final_conv."),)

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        dims: tuple[int, ...] = (64, 128, 256, 512),
        mlp_ratio: int = 4,
        attending: int = 0,
        deploy: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        from timm.models.fastvit import FastVit, RepConditionalPosEnc

        mixing, count = len(depths) - attending, len(depths)
        where: Any = partial(RepConditionalPosEnc, spatial_shape=(7, 7))
        net = FastVit(
            in_chans,
            layers=depths,
            embed_dims=dims,
            mlp_ratios=(mlp_ratio,) * count,
            token_mixers=("repmixer",) * mixing + ("attention",) * attending,
            pos_embs=(None,) * mixing + (where,) * attending,
            downsamples=(False,) + (True,) * (count - 1),
            se_downsamples=(False,) * count,
            num_classes=num_classes,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
        )
        self.stem, self.stages, self.head = net.stem, net.stages, FastViTHead(net)
        first: Any = self.stem[0]
        first.conv_scale.conv.__class__ = SubsampledPoint
        strides = [info["reduction"] for info in net.feature_info]
        self._finish(num_classes, in_chans, list(dims), strides)
        self.default_cfg["first_conv"] = "stem.0.conv_kxk.0.conv"
        if deploy:
            merge(self)

    @torch.no_grad()
    def merge_branches(self) -> None:
        """Fold timm's branches, and the norms that it leaves behind convolutions."""
        modules: list[Any] = list(self.modules())
        for module in modules:
            if getattr(module, "reparam_conv", True) is None:
                module.reparameterize()
        for module in modules:
            if isinstance(getattr(module, "bn", None), nn.BatchNorm2d):
                module.conv = fuse_conv_bn_eval(module.conv, module.bn)
                module.bn = nn.Identity()


def _size(name: str, top1: float, **config: Any) -> Size:
    tags = ("apple_in1k", "apple_dist_in1k")
    hub = {tag: f"timm/fastvit_{name}.{tag}" for tag in tags}
    return Size(config, side=256, weights=hub, crop=0.9, top1=top1)


_DEEP, _THIRTY_SIX = (4, 4, 12, 4), (6, 6, 18, 6)

SIZES = {
    "fastvit_t8": _size("t8", 75.6, depths=(2, 2, 4, 2), dims=(48, 96, 192, 384), mlp_ratio=3),
    "fastvit_t12": _size("t12", 79.1, mlp_ratio=3),
    "fastvit_s12": _size("s12", 79.8),
    "fastvit_sa12": _size("sa12", 80.6, attending=1),
    "fastvit_sa24": _size("sa24", 82.6, depths=_DEEP, attending=1),
    "fastvit_sa36": _size("sa36", 83.6, depths=_THIRTY_SIX, attending=1),
    "fastvit_ma36": _size("ma36", 83.9, depths=_THIRTY_SIX, dims=(76, 152, 304, 608), attending=1),
    "fastvit_mini32": Size(
        {"depths": (2, 2), "dims": (64, 128), "mlp_ratio": 3, "attending": 1}, side=32, crop=1.0
    ),
}

register(FastViT, SIZES)
