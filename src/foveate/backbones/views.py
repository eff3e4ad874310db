"""What training and explanation ask of any backbone, ours or timm's or another."""

from torch import nn

from foveate.backbones.base import Backbone, Explanation


def no_weight_decay(model: nn.Module) -> set[str]:
    """Names of parameters that must not decay, besides vectors."""
    named = getattr(model, "no_weight_decay", None)
    return set(named()) if callable(named) else set()


def layer_groups(model: nn.Module) -> list[list[str]]:
    """Names of parameters, layer by layer from the input to the head.

    A network that says nothing of its layers is one group a top-level child.
    """
    if isinstance(model, Backbone):
        return model.layer_groups()
    if hasattr(model, "group_matcher"):
        from timm.models import group_with_matcher

        groups = group_with_matcher(model.named_parameters(), model.group_matcher(coarse=False))
        return [groups[key] for key in sorted(groups)]
    names = [name for name, _ in model.named_parameters()]
    children = dict.fromkeys(name.split(".")[0] for name in names)
    return [[n for n in names if n.split(".")[0] == child] for child in children]


def explanation(model: nn.Module) -> Explanation | None:
    """The map to look at, or None where the network does not tell."""
    if isinstance(model, Backbone):
        return model.explanation()
    if hasattr(model, "blocks") and hasattr(model, "norm") and hasattr(model, "patch_embed"):
        return Explanation("norm", "BNC", int(getattr(model, "num_prefix_tokens", 0)))
    modules = dict(model.named_modules())
    for info in reversed(list(getattr(model, "feature_info", None) or [])):
        name = info.get("module") if isinstance(info, dict) else None
        if name in modules:
            return Explanation(name)
    return None
