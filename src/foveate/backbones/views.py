"""What training and explanation ask of any backbone, ours or timm's or another."""

from typing import Any

from torch import nn

from foveate.backbones.base import Backbone, Explanation


def no_weight_decay(model: nn.Module) -> set[str]:
    """Names of parameters that must not decay, besides vectors."""
    named: Any = getattr(model, "no_weight_decay", set)
    return set(named())


def layer_groups(model: nn.Module) -> list[list[str]]:
    """Names of parameters, layer by layer from the input to the head.

    A network that says nothing of its layers is one group a top-level child.
    """
    if isinstance(model, Backbone):
        return model.layer_groups()
    matcher: Any = getattr(model, "group_matcher", None)
    if callable(matcher):
        from timm.models import group_with_matcher  # pyright: ignore[reportAttributeAccessIssue]

        groups = group_with_matcher(model.named_parameters(), matcher(coarse=False))
        return [groups[key] for key in sorted(groups)]
    names = [name for name, _ in model.named_parameters()]
    children = dict.fromkeys(name.split(".")[0] for name in names)
    return [[n for n in names if n.split(".")[0] == child] for child in children]


def explanation(model: nn.Module) -> Explanation | None:
    """The map to look at, or None where the network does not tell."""
    if isinstance(model, Backbone):
        return model.explanation()
    if hasattr(model, "num_prefix_tokens"):
        return Explanation(_last_tokens(model), "BNC", int(model.num_prefix_tokens))  # pyright: ignore
    layout = "BHWC" if getattr(model, "output_fmt", "NCHW") == "NHWC" else "BCHW"
    modules = dict(model.named_modules())
    for info in reversed(list(getattr(model, "feature_info", None) or [])):
        name = info.get("module") if isinstance(info, dict) else None
        if name in modules:
            return Explanation(name, layout)
    return None


def _last_tokens(model: nn.Module) -> str:
    """The last map of tokens that all still count: with a class token, after the last attention
    only that one does."""
    norms = [name for name, _ in model.named_modules() if name.endswith(".norm1")]
    return norms[-1] if norms else "norm"
