"""On which networks Foveate and its peers in compression work, and on which they fail.

python benchmarks/compressors_reach.py [NETWORK ...]
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from asked import asked
from compressors import (
    int8_by_foveate,
    int8_by_nncf,
    int8_by_torchao,
    named,
    pruned_by_foveate,
    pruned_by_torch_pruning,
)
from networks import NETWORKS, Network
from results import Sheet, facts_before
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.measure import count

SHARE, CALIBRATION, JUDGED = 0.25, 32, 32
PRUNERS = {"Foveate": pruned_by_foveate, "torch-pruning": pruned_by_torch_pruning}
QUANTISERS = {
    "Foveate": int8_by_foveate,
    "nncf": int8_by_nncf,
    "torchao": lambda model, images: int8_by_torchao(model, images, compiled=False),
}
SAYS = f"""\
Networks with random weights. *Pruned*: {SHARE:.0%} of all channels (heads, where these go whole)
are to go, one call, no tuning; a cell has the share of multiply-adds that is left where the
pruned network still computes, as counted by Foveate. Foveate proves every removal against the
uncut network; what cannot be proven stays, so that more may be left. What Foveate pruned is saved
as safetensors and JSON (see *Every edit on timm's networks*); Torch-Pruning's way of saving is a
pickle of the whole model. *INT8*: 8 bits for weights and activations, calibrated on {CALIBRATION}
images; a cell has the layers (convolutions, products) that compute in integers, and the mean
cosine of the logits with the float network's on {JUDGED} other images, less their mean. Foveate's
(`Simulate(every_output=False)`, `CorrectBias`, `Store`) and NNCF's programs run in OpenVINO and are
counted there; NNCF is told of transformers, and has its fix for sums of products that overflow on
where the processor has no VNNI (Foveate's weights have 7 bits there); torchao's graph
(`X86InductorQuantizer`, which by default leaves products of activations in float) is counted as it
is converted. Torch-Pruning is set up as its example for timm shows: heads are named, fused
attention is unrolled, vision transformers get a forward that takes its width off what comes in."""


@dataclass(frozen=True)
class Tried:
    """What became of one network in one library's hands."""

    network: str
    what: str
    library: str
    works: bool
    said: str
    seconds: float


def main() -> None:
    named = asked(__doc__, known=NETWORKS)
    found = recorded() if named else {}
    for what, libraries, judge in (("pruned", PRUNERS, pruned), ("INT8", QUANTISERS, quantised)):
        for name in named or NETWORKS:
            for library, do in libraries.items():
                one = tried(NETWORKS[name], what, library, do, judge)
                found[one.network, one.what, one.library] = one
                print(f"{name}, {what}, {library}: {one.said}, {one.seconds:.1f} s", flush=True)
                sheet(list(found.values())).write()


def recorded() -> dict[tuple[str, str, str], Tried]:
    """What was found before, and stays where it is not tried again."""
    found = [Tried(**fact) for fact in facts_before(__file__) or []]
    return {(one.network, one.what, one.library): one for one in found}


def tried(
    network: Network, what: str, library: str, do: Callable[..., Any], judge: Callable[..., str]
) -> Tried:
    """Let one library do one thing to one network."""
    began = time.perf_counter()
    try:
        said, works = judge(network, do), True
    except FoveateError as error:
        said, works = f"refuses: {error}", False
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        said, works = f"{type(error).__name__}: {first}", False
    return Tried(network.name, what, library, works, said, time.perf_counter() - began)


def pruned(network: Network, prune: Callable[[nn.Module, Tensor, float], nn.Module]) -> str:
    """What is left of a network's multiply-adds."""
    images = network.images(2)
    before = count(network.make(), images).macs
    model = prune(network.make(), images, SHARE)
    with torch.no_grad():
        if not model(images).isfinite().all():
            raise ValueError("its outputs are not finite")
    return f"{count(model, images).macs / before:.2f}x MACs"


def quantised(network: Network, quantise: Callable[[nn.Module, Tensor], Any]) -> str:
    """How much computes in integers, and how near it is."""
    images = network.images(CALIBRATION + JUDGED)
    judged = images[CALIBRATION:]
    program = quantise(network.make(), images[:CALIBRATION])
    with torch.no_grad():
        expected = network.make()(judged).numpy()
    given = np.concatenate([program.call(np.ascontiguousarray(x[None])) for x in judged.numpy()])
    if program.integer == 0:
        raise ValueError("nothing computes in integers, and nothing was said")
    return f"{program.integer} of {program.layers} layers, {cosine(given, expected):.3f}"


def cosine(given: np.ndarray, expected: np.ndarray) -> float:
    """Of logits (N, K) less their mean over images: the mean over images, so that none counts more
    for being large."""
    a, b = (logits - expected.mean(0) for logits in (given, expected))
    sizes = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / (sizes + 1e-12)).mean())


def sheet(found: list[Tried]) -> Sheet:
    """A line a network; what went wrong stands below."""
    libraries = {"Foveate": "Foveate"} | {p: named(p) for p in ("torch-pruning", "nncf", "torchao")}
    columns = list(dict.fromkeys((one.what, one.library) for one in found))
    by_network: dict[str, dict[tuple[str, str], Tried]] = {}
    for one in found:
        by_network.setdefault(one.network, {})[one.what, one.library] = one
    rows = []
    for name, cells in by_network.items():
        shown = [cells.get(column) for column in columns]
        rows.append([name, *(_cell(one) for one in shown)])
    total = ["**works on**"]
    for column in columns:
        ones = [cells[column] for cells in by_network.values() if column in cells]
        total.append(f"**{sum(one.works for one in ones)} of {len(ones)}**")
    rows.append(total)
    return Sheet(
        __file__,
        title="Compression of many networks, beside peers",
        command="python benchmarks/compressors_reach.py",
        says=SAYS,
        columns=["network", *(f"{what}: {libraries[library]}" for what, library in columns)],
        rows=rows,
        notes=[f"{x.network}, {x.what}, {x.library}: {x.said}" for x in found if not x.works],
        facts=[asdict(one) for one in found],
    )


def _cell(one: Tried | None) -> str:
    """What a table says of it."""
    if one is None:
        return "not tried"
    return one.said if one.works else "*fails*"


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    main()
