"""Published weights, found on the hub or in a file, and fitted by name."""

import pickle
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from foveate.backbones.base import Backbone
from foveate.errors import FoveateError

_CONTAINERS = ("model_ema", "state_dict_ema", "model", "state_dict", "module")


@dataclass
class Loaded:
    """What fitted and what did not.

    Attributes:
        loaded: names that were filled.
        skipped: the classifier's names, where the number of classes differs.
    """

    loaded: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def fetch(name: str, hub_id: str | None) -> Path:
    """Download published weights, or find them where they were downloaded to before.

    Raises: FoveateError if there are none, or the hub cannot be reached.
    """
    if not hub_id:
        raise FoveateError(f"{name} has no published weights: train it without --pretrained")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(hub_id, "model.safetensors"))
    except Exception as error:  # the hub's client raises many kinds for one thing: no file
        raise FoveateError(
            f"cannot fetch the weights of {name} from {hub_id} ({type(error).__name__}): go "
            "online, or give a file of weights"
        ) from error


def load_weights(model: nn.Module, path: str | Path) -> Loaded:
    """Fill a network from a checkpoint.

    Names are taken as they are, or through the family's key rules for the
    authors' names or timm's, where that fits better. A classifier for another
    number of classes is left as it is.

    Args:
        model: filled in place.
        path: .safetensors, or .pth that holds tensors alone.

    Raises: FoveateError that lists what did not fit; nothing is changed then.
    """
    state = read_state(Path(path))
    own = model.state_dict()
    candidates = [state]
    if isinstance(model, Backbone):
        for rules in filter(None, (model.key_rules, model.timm_key_rules)):
            renamed = {rename(k, rules): v for k, v in state.items()}
            renamed.pop("", None)
            candidates.append(renamed)
    fitted = max(candidates, key=lambda names: len(own.keys() & names.keys()))
    report, filled, faults = Loaded(), {}, []
    filled_places = {own[name].data_ptr() for name in fitted if name in own} - {0}
    named = (getattr(model, "default_cfg", None) or {}).get("classifier") or "head.fc"
    classifiers = tuple(f"{name}." for name in ((named,) if isinstance(named, str) else named))
    for name, tensor in own.items():
        if name not in fitted:
            shared = tensor.data_ptr() in filled_places
            if not shared and not name.endswith("num_batches_tracked"):
                faults.append(f"{name} is missing")
            continue
        given = fitted[name]
        if name.startswith(classifiers) and _squeeze(given) != _squeeze(tensor):
            report.skipped.append(name)
        elif given.numel() == tensor.numel() and _squeeze(given) == _squeeze(tensor):
            filled[name] = given.reshape(tensor.shape)
        else:
            faults.append(f"{name} is {tuple(given.shape)}, not {tuple(tensor.shape)}")
    faults += [f"{name} is unknown" for name in fitted if name not in own]
    if faults:
        more = f" and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise FoveateError(
            f"{path} does not fit {type(model).__name__}: {'; '.join(faults[:8])}{more}; "
            "give the weights of this very architecture"
        )
    model.load_state_dict(filled, strict=False)
    report.loaded = list(filled)
    return report


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name; nothing in it is executed.

    Raises: FoveateError if it cannot be read or holds more than tensors.
    """
    if not path.exists():
        raise FoveateError(f"there are no weights at {path}: give a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise FoveateError(
            f"{path} holds more than tensors, and loading it could run code: convert it to "
            ".safetensors where you trust it"
        ) from error
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise FoveateError(f"{path} is damaged or no file of weights: fetch it anew") from error
    return _unwrap(content, path)


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    for name in _CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict):
        raise FoveateError(f"{path} holds no named tensors: give a file of weights")
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        raise FoveateError(f"{path} holds no named tensors: give a file of weights")
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    """Our name of a parameter that the authors call `name`."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _squeeze(tensor: Tensor) -> list[int]:
    """The shape without its ones: a 1x1 convolution is a matrix."""
    return [n for n in tensor.shape if n != 1]
