"""The truth for removed channels: the network as it was, which takes no notice of them.

Nothing is cut here. The original graph runs with its original weights, and what
counts as gone is set to zero before any operation sees it; operations that
count what they see (norms, means, softmax) see only the rest.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from foveate.surgery.channels.groups import Channels
from foveate.surgery.graphs import VIEWS, aten

COUNTING = ("layer_norm", "rms_norm", "group_norm", "mean", "var", "std", "amax", "amin", "softmax")
COUNTING += ("_softmax", "log_softmax", "native_layer_norm", "logsumexp")


class Masked(fx.Interpreter):
    """Runs a traced network without the channels that go.

    Args:
        channels: of the network.
        stays: for every label whether it stays.
    """

    def __init__(self, channels: Channels, stays: np.ndarray) -> None:
        super().__init__(channels.traced.program.graph_module)
        self.channels, self.stays = channels, stays
        program = channels.traced.program
        held = {**program.state_dict, **program.constants}
        specs = program.graph_signature.input_specs
        self._weights = [held.get(str(spec.target)) for spec in specs]

    @torch.no_grad()
    def outputs(self, images: Tensor) -> Any:
        """What the network computes of images (B, ...) of the traced shape."""
        return self.run(*(images if held is None else held for held in self._weights))

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_function":
            return super().run_node(n)
        name = str(n.target).removeprefix("aten.").split(".")[0]
        if name in COUNTING:
            return self._of_the_rest(n, name)
        args, kwargs = fx.map_arg((n.args, n.kwargs), self._zeroed)
        target: Any = aten.reshape.default if n.target in VIEWS else n.target
        return target(*args, **kwargs)

    def _zeroed(self, node: fx.Node) -> Any:
        """A node's value with zeros for what is gone."""
        value = self.env[node]
        if not isinstance(value, Tensor):
            return value
        mask = self.channels.mask(node, self.stays)
        return value if mask is None else torch.where(mask, value, torch.zeros_like(value))

    def _of_the_rest(self, n: fx.Node, name: str) -> Tensor:
        """An operation on what stays, closed up, and its result back in its places."""
        given, kwargs = fx.map_arg((n.args, n.kwargs), self._compact)
        args: list[Any] = list(given)  # pyright: ignore
        if name in ("layer_norm", "rms_norm"):
            args[1] = list(args[0].shape[-len(args[1]) :])
        if name == "group_norm":
            args[1] = self.channels.norm_groups(n, self.stays)
        out = n.target(*args, **kwargs)  # pyright: ignore
        mask = self.channels.mask(n, self.stays)
        if mask is None:
            return out
        whole = out.new_zeros(n.meta["val"].shape)
        whole[mask.expand_as(whole)] = out.flatten()
        return whole

    def _compact(self, node: fx.Node) -> Any:
        value = self.env[node]
        mask = self.channels.mask(node, self.stays)
        if mask is None:
            return value
        return value[mask.expand_as(value)].view(self.channels.size(node, self.stays))
