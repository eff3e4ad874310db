"""Ways to set a network of timm's, or of the authors', beside ours."""

import json
import math
import zlib

import numpy as np
import pytest
import timm
import torch
from torch import nn

from foveate.backbones import create_model, load_weights
from foveate.backbones.weights import rename


def disturb(model: nn.Module) -> nn.Module:
    """Make every weight and statistic count: none stays at zero or one."""
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif tensor.dtype.is_floating_point:
            tensor.add_(0.05 * torch.randn_like(tensor))
    return model


@pytest.fixture
def twins(tmp_path):
    """Builds timm's network with random weights, and ours with the same by way of a file."""

    def build(name: str, theirs: str | None = None):
        from safetensors.torch import save_file

        torch.manual_seed(0)
        reference = disturb(timm.create_model(theirs or name, num_classes=7)).eval()
        path = tmp_path / "weights.safetensors"
        save_file({k: v.contiguous() for k, v in reference.state_dict().items()}, path)
        ours = create_model(name, num_classes=7).eval()
        report = load_weights(ours, path)
        assert not report.skipped
        return reference, ours

    return build


@pytest.fixture
def agrees_with_timm(twins):
    """Compares outputs and maps with timm's, on images of a size."""

    def check(name: str, size: tuple[int, int]) -> None:
        reference, ours = twins(name)
        images = torch.randn(2, 3, *size)
        with torch.inference_mode():
            _, maps = reference.forward_intermediates(images)
            our_maps = ours.forward_intermediates(images, intermediates_only=True)
            torch.testing.assert_close(ours(images), reference(images), atol=1e-4, rtol=1e-4)
        for ours_at, theirs_at in zip(our_maps, maps, strict=True):
            torch.testing.assert_close(ours_at, theirs_at, atol=1e-3, rtol=1e-4)

    return check


@pytest.fixture
def has_timms_parameters():
    """Compares how many numbers each parameter has."""

    def check(name: str) -> None:
        with torch.device("meta"):
            ours, theirs = create_model(name), timm.create_model(name)
        shapes = [sorted(p.numel() for p in model.parameters()) for model in (ours, theirs)]
        assert shapes[0] == shapes[1]

    return check


def oracle_tensor(name: str, shape: list[int]) -> torch.Tensor:
    """The weights that the oracles were computed with, a rule of their names."""
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(
        tuple(shape), dtype=np.float32
    )
    if name.endswith("running_var"):
        values = 1 + 0.1 * np.abs(values)
    elif values.ndim >= 2:
        values = values / math.sqrt(int(np.prod(values.shape[1:])))
    elif name.endswith(("bias", "running_mean")):
        values = 0.1 * values
    else:
        values = 1 + 0.1 * values
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


class Oracle:
    """What the authors' code gave, and whether ours gives the same."""

    def __init__(self, file, folder):
        self.facts = json.loads(file.read_text())
        self.weights = folder / "official.pth"
        torch.save({n: oracle_tensor(n, s) for n, s in self.facts["tensors"]}, self.weights)
        values = np.random.default_rng(0).standard_normal(self.facts["input"], dtype=np.float32)
        self.images = torch.from_numpy(values)

    def load(self, model: nn.Module) -> nn.Module:
        """Official names and shapes go in through the family's key rules."""
        report = load_weights(model, self.weights)
        assert not report.skipped
        return model.eval()

    @torch.inference_mode()
    def agrees(self, model: nn.Module, taps: dict[str, str] | None = None) -> list[str]:
        """Compare every output, and what the modules give that the taps name.

        Args:
            taps: our module by the authors' name, for those that the key rules do not find.

        Returns: the authors' names of the taps that were compared.
        """
        found: dict[str, torch.Tensor] = {}
        modules = dict(model.named_modules())
        for theirs in self.facts["taps"]:
            ours = (taps or {}).get(theirs, rename(f"{theirs}.", model.key_rules).rstrip("."))
            if ours in modules:

                def keep(module, inputs, out, key=theirs):
                    found[key] = out.clone()

                modules[ours].register_forward_hook(keep)
        outputs = model(self.images)
        outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
        for ours, theirs in zip(outputs, self.facts["outputs"], strict=True):
            assert list(ours.shape) == theirs["shape"]
            values = np.array(theirs.get("values", theirs.get("first")), dtype=np.float32)
            _near(ours.flatten()[: len(values)].numpy(), values, np.abs(values).max())
        for key, out in found.items():
            fact = self.facts["taps"][key]
            assert out.numel() == math.prod(fact["shape"]), key
            size = max(fact["std"], abs(fact["mean"]), 1e-3)
            _near(out.mean().item(), fact["mean"], size)
            _near(out.std().item(), fact["std"], size, 1e-3)
            if list(out.shape) == fact["shape"]:
                _near(out.flatten()[:8].numpy(), np.array(fact["first"]), 4 * size)
        return sorted(found)


def _near(ours, theirs, size, tolerance=1e-4):
    assert np.abs(np.asarray(ours) - np.asarray(theirs)).max() <= tolerance * size


@pytest.fixture
def oracle(shared, tmp_path):
    """Opens an oracle by its file's name."""
    return lambda name: Oracle(shared / "oracles" / f"{name}.json", tmp_path)
