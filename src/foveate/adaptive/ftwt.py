"""Fire Together Wire Together: each image is given the filters that it would make fire.

A small head in front of every convolution looks at the convolution's input and
says which filters will respond; only those are computed. It learns from what
the convolution does respond, apart from the task's loss.

Source: ftwt (arXiv 2110.08232, section 3). The authors' code states no
licence. It stops one filter short of the ratio where this takes the filter
that reaches it, so that no layer is left with none.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.ops.merge import fuse_conv_bn_eval
from foveate.surgery.chains import Chain, chains, lift_norm, link_of
from foveate.surgery.edit import Covered, Edit, Images, Plan
from foveate.surgery.layers import obstacle

PACE = 10.0
"""How much faster than the rest of the network the heads learn."""


@implements("ftwt")
@dataclass(frozen=True, kw_only=True)
class FireTogether(Edit):
    """Give every convolution a head that chooses its filters, image by image.

    Args:
        ratio: share of the response mass of a layer's filters that the chosen
            ones must reach; 1 spares only filters that do not respond at all.
        skip: names of convolutions to leave as they are.
        seed: of the heads' weights.

    Raises: FoveateError if ratio is no share above 0.
    """

    ratio: float = 0.9
    skip: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise FoveateError(f"ratio is {self.ratio}: give more than 0, at most 1")

    looks_at = "shapes"
    refuses: ClassVar[dict[str, str]] = {
        "chosen filters": "its convolutions have heads already",
        "integers": "heads learn from responses in floating point",
        "mixtures": "fold them into plain layers first",
        "constants": "give the heads first, and capture the graph then",
    }

    def decide(self, model: nn.Module, data: Images) -> tuple[Plan, list[Covered]]:
        found = chains(model, next(self.batches(data)))
        coverage = []
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                why = obstacle(name, module, self.skip) or _reason(module, found.get(name))
                done = why or "computes the filters that its head chooses"
                coverage.append(Covered(name, type(module).__name__, not why, done))
        return {
            "layers": [link_of(found[line.name]) for line in coverage if line.changed]
        }, coverage

    def rebuild(self, model: nn.Module, plan: Plan) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            for link in plan["layers"]:
                conv: Any = model.get_submodule(link["name"])
                top = None if link["top"] is None else float(link["top"])
                layer = MaskedConv(conv, lift_norm(model, link["norm"]), top, self.ratio)
                model.set_submodule(link["name"], layer.train(conv.training))
        return model


class MaskPredictor(nn.Module):
    """Says which filters will respond: mean of each channel, softmax, linear.

    What the linear layer takes and gives is scaled, its initial weights by the
    opposite: so it learns `PACE` times as fast as its neighbours from the same
    steps of an optimiser such as AdamW. The authors give it ten times their
    learning rate.

    Args:
        dim, filters: channels of the input, and outputs.

    Shapes: (B, dim, H, W) to logits (B, filters).
    """

    def __init__(self, dim: int, filters: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, filters)
        for parameter in self.fc.parameters():
            parameter.data /= PACE

    def forward(self, x: Tensor) -> Tensor:
        return PACE * self.fc(x.mean((2, 3)).softmax(1) * x.shape[1])


@implements("ftwt")
class MaskedConv(nn.Module):
    """A convolution with its batch norm and ReLU, computed for the filters that a head chooses.

    In evaluation mode the chosen filters are gathered, and with them those
    channels of the input that are not zero, which earlier masks make many;
    images of the same choice go together. In training mode everything is
    computed and masked, which is the same, and `loss` says how well the head
    foretold the responses.

    Args:
        conv: plain or depthwise.
        norm: the batch norm behind it, or None.
        top: where the ReLU behind that cuts off, or None if there is none.
        ratio: of the response mass.

    Attributes:
        learning: whether the head learns.
        by_target: mask with what the head ought to say; nothing is saved then.
        loss: binary cross-entropy of the head in the last training step, summed
            over the filters, or None.
        mask, alive: filters and input channels that were used last, bool (B, C).

    Shapes: as the convolution's.
    """

    weights_as = "chosen filters"

    def __init__(self, conv: nn.Conv2d, norm: Any, top: float | None, ratio: float) -> None:
        super().__init__()
        self.conv, self.norm, self.top, self.ratio = conv, norm, top, ratio
        self.head = MaskPredictor(conv.in_channels, conv.out_channels)
        self.learning, self.by_target = True, False
        self.loss: Tensor | None = None
        self.mask = self.alive = torch.zeros(0, dtype=torch.bool)
        self._positions = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self._learn(x)
        y = self.masked(x) if self.by_target else self.gathered(x)
        self._positions = y.shape[2] * y.shape[3]
        return y

    def gathered(self, x: Tensor) -> Tensor:
        """Only what was chosen."""
        self.mask, self.alive = self.head(x) > 0, _responses(x) > 0
        if len(x) == 1:
            choices, group = self.mask, torch.zeros(1, dtype=torch.long)
        else:
            choices, group = self.mask.unique(dim=0, return_inverse=True)
        parts = []
        for i, choice in enumerate(choices):
            rows = (group == i).nonzero().flatten()
            some = x if len(rows) == len(x) else x[rows]
            parts.append((rows, *self._chosen(some, choice, self.alive[rows].any(0))))
        _, filters, y = parts[0]
        if len(parts) == 1 and len(filters) == self.conv.out_channels:
            return y
        out = y.new_zeros(len(x), self.conv.out_channels, *y.shape[2:])
        for rows, filters, y in parts:
            out[rows[:, None], filters] = y
        return out

    def masked(self, x: Tensor) -> Tensor:
        """The same, computing everything; with `by_target`, of the filters that do respond."""
        y = self._dense(x)
        self.alive = _responses(x) > 0
        self.mask = mass_mask(_responses(y), self.ratio) if self.by_target else self.head(x) > 0
        return y * self.mask[:, :, None, None]

    def macs(self) -> Tensor:
        """Multiply-adds for each image of the last batch in evaluation mode, with the head's."""
        taken = 1 if _is_depthwise(self.conv) else self.alive.sum(1).clamp(min=1)
        kernel = self.conv.weight[0, 0].numel()
        head = self.conv.in_channels * self.conv.out_channels
        return self.mask.sum(1).clamp(min=1) * taken * kernel * self._positions + head

    def merge_branches(self) -> None:
        """Fold the norm into the convolution."""
        if self.norm is not None:
            self.conv, self.norm = fuse_conv_bn_eval(self.conv, self.norm), None

    # ---------------------------------------------------------------- how it is done

    def _learn(self, x: Tensor) -> Tensor:
        y, logits = self._dense(x), self.head(x.detach())
        self.loss = None
        if self.learning:
            target = mass_mask(_responses(y.detach()), self.ratio).float()
            loss = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="sum")
            self.loss = loss / len(x)
        return y * (logits > 0)[:, :, None, None]

    def _dense(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y = y if self.norm is None else _normed(self.norm, y)
        return y if self.top is None else y.clamp(0, self.top)

    def _chosen(self, x: Tensor, choice: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
        """The chosen filters' numbers and responses, from the input channels that are alive."""
        conv, filters = self.conv, _indices(choice)
        weight, groups = conv.weight.index_select(0, filters), 1
        if _is_depthwise(conv):
            x, groups = x.index_select(1, filters), len(filters)
        elif not alive.all():
            channels = _indices(alive)
            x, weight = x.index_select(1, channels), weight.index_select(1, channels)
        bias = None if conv.bias is None else conv.bias[filters]
        y = F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, groups)  # pyright: ignore
        if self.norm is not None:
            y = _normed(self.norm, y, filters)
        if self.top is not None:
            y = y.clamp(0, self.top)
        return filters, y if choice.any() else 0 * y


def mass_mask(responses: Tensor, ratio: float) -> Tensor:
    """The fewest filters of each image whose responses sum to a share of all of its responses.

    Args:
        responses: 0 or more, (B, C).
        ratio: the share; at 1, those that respond at all.

    Returns: bool (B, C), True for the fewest of the largest that reach it.
    """
    shares = responses / responses.sum(1, keepdim=True).clamp(min=1e-12)
    ordered, order = torch.sort(shares, dim=1, descending=True, stable=True)
    before = ordered.cumsum(1) - ordered
    wanted = before < ratio - 1e-5
    return torch.zeros_like(wanted).scatter(1, order, wanted)


@torch.no_grad()
def expected_macs(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """What the masked convolutions would cost if their heads were right: a guess before training.

    Args:
        model: as `FireTogether` edited it; its mode is restored.
        images: a batch of its inputs.

    Returns: multiply-adds for each image, and if nothing were masked, (B,) each.
    """
    was_training = model.training
    model.eval()
    layers = masked_convs(model)
    for layer in layers:
        layer.by_target = True
    model(images)
    for layer in layers:
        layer.by_target = False
    model.train(was_training)
    expected = torch.stack([layer.macs() for layer in layers]).sum(0)
    return expected, torch.stack([_dense_macs(layer) for layer in layers]).sum().expand_as(expected)


def masked_convs(model: nn.Module) -> list[MaskedConv]:
    """The convolutions of a model that have a head."""
    return [module for module in model.modules() if isinstance(module, MaskedConv)]


def _dense_macs(layer: MaskedConv) -> Tensor:
    return torch.tensor(layer.conv.weight.numel() * layer._positions)


def _reason(conv: nn.Conv2d, chain: Chain | None) -> str:
    """Why a plain convolution cannot have a head, or ""."""
    if chain is None or chain.calls > 1:
        return f"left because the model calls it {chain.calls if chain else 0} times, not once"
    if chain.shape[-2:] == (1, 1):
        return "left because its output is no map"
    if conv.groups != 1 and not _is_depthwise(conv):
        return "left because it has groups"
    return ""


def _indices(chosen: Tensor) -> Tensor:
    """Where it is True, or 0 where it never is."""
    found = chosen.nonzero().flatten()
    return found if len(found) else found.new_zeros(1)


def _responses(y: Tensor) -> Tensor:
    """The largest of each map's absolute values: (B, C)."""
    return y.abs().amax((2, 3))


def _normed(norm: Any, y: Tensor, filters: Tensor | None = None) -> Tensor:
    """Batch norm alone, without an activation that the norm may hold; of some channels only."""
    if filters is None and not hasattr(norm, "act"):
        return norm(y)
    parts = norm.running_mean, norm.running_var, norm.weight, norm.bias
    if filters is not None:
        parts = (None if part is None else part[filters] for part in parts)
    mean, variance, scale, shift = parts
    return F.batch_norm(
        y, mean, variance, scale, shift, norm.training, norm.momentum or 0.0, norm.eps
    )


def _is_depthwise(conv: nn.Conv2d) -> bool:
    return conv.groups == conv.in_channels == conv.out_channels and conv.groups > 1
