"""Architectures by name. Families register themselves; the room is scanned for them."""

import difflib
import fnmatch
import importlib
import pkgutil
from functools import cache
from typing import Any

from torch import fx, nn

import foveate.backbones as room
from foveate.backbones.base import Backbone, FeaturePyramid, Size
from foveate.errors import FoveateError

_sizes: dict[str, tuple[type[Backbone], Size]] = {}


def register(family: type[Backbone], sizes: dict[str, Size]) -> None:
    """Make a family's sizes known by their names."""
    for name, size in sizes.items():
        if name in _sizes:
            raise ValueError(f"two families have a size called {name}")
        _sizes[name] = (family, size)


@cache
def _scan() -> None:
    for module in pkgutil.iter_modules(room.__path__):
        importlib.import_module(f"{room.__name__}.{module.name}")


def sizes() -> dict[str, tuple[type[Backbone], Size]]:
    """Every native architecture: its family and size, by name."""
    _scan()
    return _sizes


def smallest_sizes() -> list[str]:
    """Of each native family, the size for the smallest images."""
    best: dict[type[Backbone], tuple[int, str]] = {}
    for name, (family, size) in sizes().items():
        found = size.side, name
        best[family] = min(best.get(family, found), found)
    return sorted(name for _, name in best.values())


def list_models(pattern: str | None = None) -> list[str]:
    """Names that `create_model` takes: ours, and with a pattern that begins with `timm/` timm's."""
    if pattern and pattern.startswith("timm/"):
        import timm

        return [f"timm/{name}" for name in timm.list_models(pattern.removeprefix("timm/"))]
    return sorted(name for name in sizes() if pattern is None or fnmatch.fnmatch(name, pattern))


def suggest_models(side: int) -> list[str]:
    """Architectures worth racing for images of `side` pixels, by their rank.

    Raises: FoveateError if there are none for images so small or so large.
    """
    racing = [
        (*size.races, size.rank, name)
        for name, (_, size) in sizes().items()
        if size.races is not None
    ]
    fitting = sorted((rank, name) for low, high, rank, name in racing if low <= side <= high)
    if not fitting:
        smallest, largest = min(low for low, *_ in racing), max(high for _, high, *_ in racing)
        raise FoveateError(
            f"no architecture is suggested for images of {side} pixels a side: give {smallest} to "
            f"{largest}, or name an architecture"
        )
    return [name for _, name in fitting]


def family_recipe(name: str) -> dict[str, Any]:
    """Fields of a training recipe that suit an architecture trained from scratch."""
    base, _ = _split_tag(name)
    return dict(sizes()[base][0].recipe) if base in sizes() else dict(Backbone.recipe)


def require_name(name: str) -> None:
    """Raises: FoveateError with near names if there is no such architecture."""
    if name.startswith("timm/"):
        import timm

        if not timm.is_model(name.removeprefix("timm/").split(".")[0]):
            near = difflib.get_close_matches(name.removeprefix("timm/"), timm.list_models(), 3)
            _refuse(name, [f"timm/{n}" for n in near])
    elif name.startswith("torchvision/"):
        from torchvision.models import list_models as theirs

        if name.removeprefix("torchvision/") not in theirs():
            near = difflib.get_close_matches(name.removeprefix("torchvision/"), theirs(), 3)
            _refuse(name, [f"torchvision/{n}" for n in near])
    elif _split_tag(name)[0] not in sizes():
        near = difflib.get_close_matches(name, sizes(), 3)
        _refuse(name, near)


def _refuse(name: str, near: list[str]) -> None:
    hint = f"did you mean {' or '.join(near)}?" if near else "`foveate models` lists them"
    raise FoveateError(f"there is no model {name!r}: {hint}")


def _split_tag(name: str) -> tuple[str, str | None]:
    """`inception_next_tiny.sail_in1k` to its name and its tag; our spelling of the family too."""
    base, _, tag = name.removeprefix("foveate_").partition(".")
    return base.replace("inceptionnext_", "inception_next_"), tag or None


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    pretrained: bool = False,
    weights: str | None = None,
    features_only: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Build an architecture by name.

    Args:
        name: one of `list_models()`, with a tag of published weights if you
            like (`inception_next_tiny.sail_in1k`), `timm/NAME` or `torchvision/NAME`.
        num_classes: outputs; 0 for features.
        in_chans: input channels.
        pretrained: fetch and load published weights.
        weights: a checkpoint to load instead, .safetensors or .pth.
        features_only: give a pyramid of maps instead of logits.
        kwargs: for the family's constructor.

    Raises: FoveateError if there is no such model, option or weights.
    """
    require_name(name)
    told = {"num_classes": num_classes, "in_chans": in_chans, **kwargs}
    if features_only:
        told["features_only"] = True
    if name.startswith("timm/"):
        model = _create_timm(
            name, num_classes, in_chans, pretrained, weights, features_only, kwargs
        )
    elif name.startswith("torchvision/"):
        model = _create_torchvision(name, num_classes, pretrained, weights, told)
    else:
        model = _create_native(
            name, num_classes, in_chans, pretrained, weights, features_only, kwargs
        )
    vars(model)["architecture"] = {"name": name, "kwargs": told}
    return model


def _create_native(
    name: str,
    num_classes: int,
    in_chans: int,
    pretrained: bool,
    weights: str | None,
    features_only: bool,
    kwargs: dict[str, Any],
) -> nn.Module:
    base, tag = _split_tag(name)
    family, size = sizes()[base]
    try:
        model = family(num_classes, in_chans, **{**size.config, **kwargs})
    except TypeError as error:
        raise FoveateError(f"{name} cannot be built with these options: {error}") from error
    model.default_cfg |= {
        "input_size": (in_chans, size.side, size.side),
        "crop_pct": size.crop,
        "architecture": base,
        "hf_hub_id": size.weights.get(tag or next(iter(size.weights), "")),
    }
    if tag is not None and tag not in size.weights:
        known = ", ".join(size.weights) or "none"
        raise FoveateError(f"{base} has no published weights {tag!r}: there are {known}")
    if pretrained or weights:
        from foveate.backbones.weights import fetch, load_weights

        load_weights(model, weights or fetch(base, model.default_cfg["hf_hub_id"]))
    return FeaturePyramid(model) if features_only else model


def _create_torchvision(
    name: str, num_classes: int, pretrained: bool, weights: str | None, told: dict[str, Any]
) -> nn.Module:
    from torchvision.models import get_model

    if pretrained or told["in_chans"] != 3 or "features_only" in told:
        raise FoveateError(
            f"{name} is built with 3 channels and without weights: load its own with weights=PATH"
        )
    extra = {key: value for key, value in told.items() if key not in ("in_chans", "num_classes")}
    model = get_model(
        name.removeprefix("torchvision/"), weights=None, num_classes=num_classes, **extra
    )
    if weights:
        from foveate.backbones.weights import load_weights

        load_weights(model, weights)
    return model


def architecture_of(model: nn.Module) -> dict[str, Any] | None:
    """What `create_model` would need to build a network again, before any edit.

    Args:
        model: of `create_model`, or of timm by its name alone.

    Returns: `{"name": ..., "kwargs": ...}`, or None if that is not known.
    """
    noted = model.meta if isinstance(model, fx.GraphModule) else vars(model)
    known = noted.get("architecture")
    published = getattr(model, "pretrained_cfg", None) or {}
    if known is None and published.get("architecture"):
        known = {"name": f"timm/{published['architecture']}", "kwargs": {}}
    if known and known["name"] and isinstance(classes := getattr(model, "num_classes", None), int):
        known = {**known, "kwargs": {**known["kwargs"], "num_classes": classes}}
    return known


def _create_timm(
    name: str,
    num_classes: int,
    in_chans: int,
    pretrained: bool,
    weights: str | None,
    features_only: bool,
    kwargs: dict[str, Any],
) -> nn.Module:
    import timm

    if features_only:
        kwargs = {**kwargs, "features_only": True}
    else:
        kwargs = {**kwargs, "num_classes": num_classes}
    try:
        model = timm.create_model(
            name.removeprefix("timm/"), pretrained=pretrained, in_chans=in_chans, **kwargs
        )
    except Exception as error:
        if pretrained:
            raise FoveateError(
                f"cannot fetch the weights of {name} ({type(error).__name__}): go online, or do "
                "without --pretrained"
            ) from error
        raise
    if weights:
        from foveate.backbones.weights import load_weights

        load_weights(model, weights)
    return model
