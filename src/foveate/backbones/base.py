"""What every backbone can do, written once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from foveate.backbones.parts import ClassTokenStage, initialise
from foveate.errors import FoveateError

MakeClassifier = Callable[[int], nn.Module]
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
ADAMW: dict[str, Any] = {
    "optimizer": "adamw",
    "learning_rate": 2e-3,
    "weight_decay": 0.05,
    "batch_size": 128,
    "warmup": 0.1,
}
"""The recipe of most families since ConvNeXt, at a batch that a small machine holds."""


@dataclass(frozen=True)
class Explanation:
    """Where to look when asking why a model decided.

    Args:
        module: name of the submodule whose output is the map to look at.
        layout: `BCHW` for maps, `BHWC` for maps with channels last, `BNC` for
            tokens in rows of the image, `BCN` for such as a map one pixel wide.
        prefix_tokens: tokens before those of the image, for `BNC` and `BCN`.
    """

    module: str
    layout: Literal["BCHW", "BHWC", "BNC", "BCN"] = "BCHW"
    prefix_tokens: int = 0


@dataclass(frozen=True)
class Size:
    """One size of a family, as data.

    Args:
        config: what the family's constructor is called with.
        side: of the images that it was made for, in pixels.
        weights: published weights: the hub's repository by tag, the default first.
        crop: share of the shorter side that is kept when published weights are judged.
        races: smallest and largest side of images for which `foveate fit`
            considers it unasked; None for never.
        rank: its place among those that are considered; a budget that is too
            short for all takes the first.
        top1: percent on ImageNet-1K that the authors publish for it, trained on
            nothing else.
    """

    config: dict[str, Any]
    side: int = 224
    weights: dict[str, str] = field(default_factory=dict)
    crop: float = 0.875
    races: tuple[int, int] | None = None
    rank: int = 9
    top1: float | None = None


class Backbone(nn.Module):
    """A network of a stem, stages and a head.

    A family sets `stem`, `stages` and `head` in its constructor, the latter
    with `forward(x, pre_logits)` and a classifier `fc`, then calls `_finish`.

    Attributes:
        num_classes, num_features: outputs; channels of the last map.
        feature_info: per stage `num_chs`, `reduction` (stride against the
            input) and `module`.
        least_side: of the smallest images that it takes.
        more_classifiers: besides the last layer, those that answer in classes: how
            one for so many is made, by name.
        default_cfg: input size, normalisation and crop, as timm calls them.

    Shapes: (B, in_chans, H, W) to (B, num_classes).
    """

    recipe: ClassVar[dict[str, Any]] = {}
    """Fields of `foveate.train.Recipe` with which the family is trained from scratch."""
    key_rules: tuple[tuple[str, str], ...] = ()
    """Patterns and replacements that turn the authors' names of parameters into ours, or into
    nothing for what is not learnt."""
    timm_key_rules: ClassVar[tuple[tuple[str, str], ...]] = ()
    """The same for timm's names, where they differ from both."""

    stem: nn.Module
    stages: nn.Sequential
    head: nn.Module

    def _finish(
        self,
        num_classes: int,
        in_chans: int,
        widths: list[int],
        strides: list[int],
        more_classifiers: Mapping[str, MakeClassifier] | None = None,
    ) -> None:
        """Fill in what follows from the widths and total strides of the stages."""
        self.more_classifiers = more_classifiers or {}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = widths[-1]
        self.head_hidden_size = self.classifier_in_features
        self.feature_info = [
            {"num_chs": width, "reduction": stride, "module": f"stages.{i}"}
            for i, (width, stride) in enumerate(zip(widths, strides, strict=True))
        ]
        self.least_side = strides[-1]
        self.grad_checkpointing = False
        self.default_cfg: dict[str, Any] = {
            "input_size": (in_chans, 224, 224),
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "num_classes": num_classes,
            "classifier": (self.classifier_name, *self.more_classifiers)
            if self.more_classifiers
            else self.classifier_name,
            "first_conv": "stem.0",
            **IMAGENET,
        }

    # ------------------------------------------------------------ forward

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map: (B, num_features, H / stride, W / stride).

        Where a class token leads, it is a row of tokens: (B, num_features, 1 + N, 1).
        """
        self._check_size(x)
        x = self.stem(x)
        for stage in self.stages:
            x = self._run(stage, x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of the last map, or with `pre_logits` what the classifier would see."""
        return self.head(x, pre_logits=pre_logits)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The maps of the stages, in timm's signature.

        Args:
            x: images.
            indices: which stages, negative ones from the end; a number n for
                the last n; None for all.
            norm: accepted for compatibility; maps are as the stages leave them.
            stop_early: do not run stages after the last one asked for.
            output_fmt: NCHW, the only one that there is.
            intermediates_only: leave out the last map and return the list alone.

        Returns: list of maps (B, C, H, W), or the last map and that list.
        """
        if output_fmt != "NCHW":
            raise FoveateError(f"output_fmt is {output_fmt!r}: these maps come as NCHW only")
        self._check_size(x)
        images, n = x, len(self.stages)
        if indices is None:
            indices = list(range(n))
        elif isinstance(indices, int):
            indices = list(range(n - indices, n))
        wanted = [i % n for i in indices]
        maps = []
        x = self.stem(x)
        for i, stage in enumerate(self.stages):
            if stop_early and i > max(wanted):
                break
            x = self._run(stage, x)
            if i in wanted:
                maps.append(self._as_map(i, x, images))
        return maps if intermediates_only else (x, maps)

    def _as_map(self, index: int, x: Tensor, images: Tensor) -> Tensor:
        """What a stage gives, as a map of places alone."""
        if not isinstance(self.stages[index], ClassTokenStage):
            return x
        stride = self.feature_info[index]["reduction"]
        return x[:, :, 1:, 0].unflatten(2, [side // stride for side in images.shape[2:]])

    def _run(self, stage: nn.Module, x: Tensor) -> Tensor:
        if self.grad_checkpointing and self.training:
            return checkpoint(stage, x, use_reentrant=False)  # pyright: ignore[reportReturnType]
        return stage(x)

    def _check_size(self, x: Tensor) -> None:
        if min(x.shape[-2:]) < self.least_side:
            raise FoveateError(
                f"images of {tuple(x.shape[-2:])} pixels are too small for {type(self).__name__}, "
                f"which makes them {self.feature_info[-1]['reduction']} times smaller: give at "
                f"least {self.least_side} pixels a side"
            )

    # ------------------------------------------------------------ the classifier

    @property
    def classifier_name(self) -> str:
        """Name of the last linear layer."""
        return "head.fc"

    @property
    def classifier_in_features(self) -> int:
        """Width of what the classifier sees."""
        classifier = self.get_classifier()
        return classifier.in_features if isinstance(classifier, nn.Linear) else self.num_features

    def get_classifier(self) -> nn.Module:
        """The last linear layer, or an identity if there are no classes."""
        return self.get_submodule(self.classifier_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier; 0 classes leave features. `global_pool` can only be `avg`."""
        if global_pool not in (None, "avg"):
            raise FoveateError(f"global_pool is {global_pool!r}: this head pools its own way")
        had = not isinstance(self.get_classifier(), nn.Identity)
        main: dict[str, MakeClassifier] = {
            self.classifier_name: partial(nn.Linear, self.head_hidden_size)
        }
        for name, make in {**main, **self.more_classifiers}.items():
            if had and isinstance(self.get_submodule(name), nn.Identity):
                continue  # merging has folded it into the last layer
            fresh = make(num_classes) if num_classes > 0 else nn.Identity()
            initialise(fresh)
            reference = next(self.parameters())
            self.set_submodule(name, fresh.to(reference.device, reference.dtype))
        self.num_classes = num_classes

    # ------------------------------------------------------------ what training asks

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute stages twice instead of keeping what is in them."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of matrices that must not decay; vectors never do."""
        return set()

    def layer_groups(self) -> list[list[str]]:
        """Names of parameters, layer by layer from the input to the head."""
        layers = ["stem."]
        for i, stage in enumerate(self.stages):
            if not hasattr(stage, "blocks"):
                layers.append(f"stages.{i}.")
                continue
            layers += [f"stages.{i}.{name}" for name, _ in stage.named_parameters(recurse=False)]
            last = {"blocks": 1, "norm": 2}
            for part in sorted(dict(stage.named_children()), key=lambda name: last.get(name, 0)):
                inner = stage.blocks if part == "blocks" else ()  # pyright: ignore
                names = [f"{part}.{j}." for j in range(len(inner))] or [f"{part}."]  # pyright: ignore
                layers += [f"stages.{i}.{name}" for name in names]
        layers.append("head.")
        names = [name for name, _ in self.named_parameters()]
        groups = [[n for n in names if n.startswith(layer)] for layer in layers]
        return [group for group in groups if group]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers as patterns, in timm's form."""
        blocks: Any = r"^stages\.(\d+)"
        if not coarse:
            blocks = [
                (r"^stages\.(\d+)\.downsample", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            ]
        return {"stem": r"^stem", "blocks": blocks}

    def explanation(self) -> Explanation:
        """The map to look at: the last one, or where a class token leads, what the last block sees.

        After the last attention no other token counts.
        """
        last = len(self.stages) - 1
        stage = self.stages[last]
        if isinstance(stage, ClassTokenStage):
            return Explanation(f"stages.{last}.blocks.{len(stage.blocks) - 1}.norm1", "BCN", 1)
        return Explanation(f"stages.{last}")


class FeaturePyramid(nn.Module):
    """A backbone as a list of maps, from fine to coarse, for dense tasks.

    Args:
        backbone: whose head is dropped.

    Shapes: (B, 3, H, W) to a list of (B, C, H / stride, W / stride).
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        backbone.reset_classifier(0)
        self.backbone = backbone
        self.channels = [info["num_chs"] for info in backbone.feature_info]
        self.reductions = [info["reduction"] for info in backbone.feature_info]

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.backbone.forward_intermediates(x, intermediates_only=True)
