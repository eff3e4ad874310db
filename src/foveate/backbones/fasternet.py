"""FasterNet: partial convolutions and pointwise ones, one norm and one activation a block.

Source: fasternet (arXiv 2303.03667, section 3.3 and table 8). The authors' code is under MIT.
"""

from typing import Any, ClassVar

from torch import Tensor, nn

from foveate.backbones.base import ADAMW, Backbone, Size
from foveate.backbones.parts import Block, Stage, drop_path_rates, initialise
from foveate.backbones.registry import register
from foveate.catalog import implements
from foveate.ops.conv_norm import ConvNorm
from foveate.ops.fasternet import PartialConv
from foveate.ops.merge import merge

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU}

_SHARED_RULES = (
    (r"^patch_embed\.proj\.", "stem.conv."),
    (r"^patch_embed\.norm\.", "stem.norm."),
    (r"\.downsample\.reduction\.", ".downsample.conv."),
    (r"\.partial_conv3\.", ".conv."),
    (r"\.mlp\.0\.", ".mlp.0.conv."),
    (r"\.mlp\.1\.", ".mlp.0.norm."),
    (r"\.mlp\.3\.", ".mlp.2."),
    (r"^(?:classifier|head)\.(weight|bias)$", r"head.fc.\1"),
)


class FasterHead(nn.Module):
    """Average pool, a wider layer, dropout, linear. Shapes: (B, dim, H, W) to (B, num_classes)."""

    def __init__(self, dim: int, hidden: int, num_classes: int, act: nn.Module, drop: float):
        super().__init__()
        self.hidden = nn.Linear(dim, hidden, bias=False)
        self.act = act
        self.drop = nn.Dropout(drop)
        self.fc = nn.Linear(hidden, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.drop(self.act(self.hidden(x.mean((2, 3)))))
        return x if pre_logits else self.fc(x)


@implements("fasternet")
class FasterNet(Backbone):
    """Stages of partial convolutions, each followed by two pointwise ones.

    Args:
        num_classes, in_chans: outputs and input channels.
        depths: blocks of each stage.
        dim: channels of the first stage; each further one has twice as many.
        share: one of so many channels is convolved.
        hidden: width of the layer before the classifier.
        act: `gelu` or `relu`.
        patch: stride of the stem: 4 as published, 1 or 2 for small images.
        deploy: build the merged form.
        drop_rate, drop_path_rate: dropout before the classifier, and the
            largest rate of stochastic depth.
    """

    recipe: ClassVar[dict[str, Any]] = ADAMW
    key_rules = (
        *((rf"^stages\.{2 * i}\.blocks\.", f"stages.{i}.blocks.") for i in (1, 2, 3)),
        *((rf"^stages\.{2 * i - 1}\.([rn])", rf"stages.{i}.downsample.\1") for i in (1, 2, 3)),
        (r"^avgpool_pre_head\.1\.", "head.hidden."),
        *_SHARED_RULES,
    )
    timm_key_rules = ((r"^conv_head\.", "head.hidden."), *_SHARED_RULES)

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: tuple[int, ...] = (1, 2, 8, 2),
        dim: int = 40,
        share: int = 4,
        hidden: int = 1280,
        act: str = "gelu",
        patch: int = 4,
        deploy: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        dims = [dim * 2**i for i in range(len(depths))]
        self.stem = ConvNorm(in_chans, dim, patch, patch, pad=0)
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            down = ConvNorm(dims[i - 1], dims[i], 2, 2, pad=0) if i else nn.Identity()
            blocks: list[nn.Module] = [
                Block(
                    dims[i],
                    mixer=("spatial_mixing", PartialConv(dims[i], share)),
                    norm=nn.Identity(),
                    mlp=nn.Sequential(
                        ConvNorm(dims[i], 2 * dims[i]),
                        ACTIVATIONS[act](),
                        nn.Conv2d(2 * dims[i], dims[i], 1, bias=False),
                    ),
                    scale=None,
                    drop_path=rate,
                )
                for rate in rates
            ]
            stages.append(Stage(down, blocks))
        self.stages = nn.Sequential(*stages)
        self.head = FasterHead(dims[-1], hidden, num_classes, ACTIVATIONS[act](), drop_rate)
        initialise(self)
        self._finish(num_classes, in_chans, dims, [patch * 2**i for i in range(len(dims))])
        self.default_cfg["first_conv"] = "stem.conv"
        if deploy:
            merge(self)


def _size(name: str, top1: float, **config: Any) -> Size:
    return Size(config, weights={"in1k": f"timm/fasternet_{name}.in1k"}, crop=0.9, top1=top1)


SIZES = {
    "fasternet_t0": _size("t0", 71.9),
    "fasternet_t1": _size("t1", 76.2, dim=64),
    "fasternet_t2": _size("t2", 78.9, dim=96, act="relu"),
    "fasternet_s": _size("s", 81.3, dim=128, depths=(1, 2, 13, 2), act="relu"),
    "fasternet_m": _size("m", 83.0, dim=144, depths=(3, 4, 18, 3), act="relu"),
    "fasternet_l": _size("l", 83.5, dim=192, depths=(3, 4, 18, 3), act="relu"),
    "fasternet_mini32": Size(
        {"depths": (1, 3, 2), "dim": 64, "hidden": 256, "patch": 2}, side=32, crop=1.0
    ),
}

register(FasterNet, SIZES)
