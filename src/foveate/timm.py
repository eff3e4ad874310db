"""`import foveate.timm` adds every native architecture to timm's registry.

A name that timm has already gets ours as `foveate_NAME`; timm's own are never
replaced. The rest is timm's: `timm.create_model`, `features_only`,
checkpoints, and its training script.
"""

from typing import Any

from timm.models import is_model, register_model
from timm.models._features import FeatureGetterNet
from torch import nn

from foveate.backbones import create_model, sizes


def _entry(name: str, ours: str) -> None:
    """Register a function that builds `ours` under `name`."""

    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        unused = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
        kwargs = {k: v for k, v in kwargs.items() if k not in unused and v is not None}
        features_only = kwargs.pop("features_only", False)
        out_indices = kwargs.pop("out_indices", None)
        model = create_model(ours, pretrained=pretrained, **kwargs)
        model.pretrained_cfg = model.default_cfg  # pyright: ignore
        if not features_only:
            return model
        stages = len(model.feature_info)  # pyright: ignore
        return FeatureGetterNet(model, out_indices=tuple(out_indices or range(stages)))

    build.__name__ = name
    build.__module__ = __name__
    build.__doc__ = f"{ours}, built by Foveate."
    register_model(build)


__all__: list[str] = []

for _name in sizes():
    for _alias in {_name if not is_model(_name) else f"foveate_{_name}", f"foveate_{_name}"}:
        _entry(_alias, _name)
