"""VisionModel: pixels in, logits out. What is trained, attacked, explained and exported."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.errors import FoveateError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How images become what the backbone was trained on.

    Args:
        size: side of the square input, in pixels.
        mean, std: of each channel of images in [0, 1].
        interpolation: how images of another size are scaled, bicubic or bilinear.
        crop: share of the shorter side that is kept when an image is cut to a
            square before it comes in; the model itself only scales.

    Raises: FoveateError that names the field.
    """

    size: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bicubic"
    crop: float = 1.0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise FoveateError(f"preprocess.size is {self.size}: give a side in pixels")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise FoveateError("preprocess needs three means and three positive deviations")
        if self.interpolation not in ("bicubic", "bilinear"):
            raise FoveateError(
                f"preprocess.interpolation is {self.interpolation!r}: choose bicubic or bilinear"
            )
        if not 0 < self.crop <= 1:
            raise FoveateError(f"preprocess.crop is {self.crop}: give a share above 0, at most 1")

    def to_json(self) -> dict[str, Any]:
        """The fields, JSON-ready."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Preprocess":
        """The opposite of `to_json`."""
        return cls(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})


class VisionModel(nn.Module):
    """A backbone with its preprocessing inside and names for its outputs.

    Args:
        backbone: maps normalised (B, 3, S, S) to logits (B, len(labels)).
        preprocess: size and normalisation.
        labels: names of the classes.
        architecture: `{"name": ..., "kwargs": ...}`, what `create` needs to
            build the backbone again.

    Attributes:
        lineage: the edits that were applied since, JSON-ready, in order.

    Shapes: RGB images (B, 3, H, W), (3, H, W), (B, H, W, 3) or (H, W, 3), uint8
        or floats in [0, 1], to logits (B, len(labels)).
    Raises: FoveateError for anything else.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        preprocess: Preprocess,
        labels: list[str],
        architecture: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.preprocess = preprocess
        self.labels = list(labels)
        self.architecture = architecture or {}
        self.lineage: list[dict[str, Any]] = []
        for name in ("mean", "std"):
            values = torch.tensor(getattr(preprocess, name)).view(1, 3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    @classmethod
    def create(
        cls,
        name: str,
        labels: list[str],
        size: int | None = None,
        *,
        pretrained: bool = False,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        **kwargs: Any,
    ) -> "VisionModel":
        """Build a backbone by name, and give it the preprocessing that it was published with.

        Args:
            name: as `foveate.create_model` takes it.
            labels: names of the classes.
            size: side of the input; by default the published one.
            pretrained: begin with published weights; the classifier is new
                unless the number of classes is the same.
            mean, std: other than the published normalisation.
            kwargs: for the backbone.
        """
        from foveate.backbones import create_model

        backbone = create_model(name, num_classes=len(labels), pretrained=pretrained, **kwargs)
        published = getattr(backbone, "default_cfg", None) or {}
        preprocess = Preprocess(
            size=size or published.get("input_size", (3, 224, 224))[-1],
            mean=mean or tuple(published.get("mean", IMAGENET_MEAN)),
            std=std or tuple(published.get("std", IMAGENET_STD)),
        )
        return cls(backbone, preprocess, labels, {"name": name, "kwargs": kwargs})

    def forward(self, images: Tensor | np.ndarray) -> Tensor:
        return self.backbone(self.prepare(images))

    def prepare(self, images: Tensor | np.ndarray) -> Tensor:
        """Scaled and normalised input of the backbone: float (B, 3, size, size)."""
        images = as_batch(images).to(self.mean.device)
        scale = 1 / 255 if images.dtype == torch.uint8 else 1.0
        images = images.to(self.mean.dtype)
        size = self.preprocess.size
        if images.shape[-2:] != (size, size):
            images = F.interpolate(
                images, (size, size), mode=self.preprocess.interpolation, antialias=True
            ).clamp(0, 1 / scale)
        return (images * scale - self.mean) / self.std


def as_batch(images: Tensor | np.ndarray) -> Tensor:
    """Any layout of RGB images as (B, 3, H, W), of the dtype that they have.

    Raises: FoveateError if they are no RGB images.
    """
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images)
    if images.ndim == 3:
        images = images[None]
    if images.ndim == 4 and images.shape[1] != 3 and images.shape[3] == 3:
        images = images.permute(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] != 3:
        raise FoveateError(
            f"images of shape {tuple(images.shape)} are not RGB: give (B, 3, H, W) or (B, H, W, 3)"
        )
    if images.dtype != torch.uint8 and not images.dtype.is_floating_point:
        raise FoveateError(f"images of {images.dtype} are neither uint8 nor floats in [0, 1]")
    return images
