"""Inference of ten networks of timm: `foveate.deploy.Search` against the best of its peers.

    PHOTOS=FOLDER python benchmarks/inference.py [NAME ...] [BATCH ...]

Peers get timm's model as it comes, exported at the batch that is timed: ONNX Runtime and OpenVINO,
each in float and in INT8 (NNCF's default). Both sides get the same images to calibrate on, the
same threads and allocator, and are timed in turns in one process.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from asked import asked
from photographs import photographs
from results import Benchmark, Row, geometric_mean, interval, of_this_processor
from torch import nn
from torch.nn import functional as F

from foveate import data
from foveate.deploy import Search
from foveate.deploy.formats import save_openvino
from foveate.deploy.quiet import quiet
from foveate.deploy.soundness import is_sound
from foveate.measure import paired, side_by_side

NAMES = (
    "resnet50",
    "convnext_tiny",
    "inception_next_tiny",
    "deit_small_patch16_224",
    "fastvit_t8",
    "levit_192",
    "edgenext_small",
    "ghostnetv2_100",
    "repghostnet_100",
    "fasternet_t0",
)
BATCHES = (1, 32)
CALIBRATED, JUDGED = 64, 96
GUARD = 1.0
INT8 = "OpenVINO INT8"
EAGER = "timm, eager"
SAYS = f"""Ten networks of timm with random weights, as no trained ones are at hand; the statistics
of their batch norms are those of real photographs. Such networks have no accuracy to lose, so
programs are judged by agreement: the mean cosine of a program's logits and the float network's
on {JUDGED} photographs that nothing was calibrated on, less their mean. Ours may agree at most
{GUARD:g} point in 100 less than OpenVINO's INT8 of timm's network does; peers may do as they will.
Programs of the *hard* graph have hard-swish in place of GELU, which such networks hardly notice;
what it costs trained ones stands under *Hard-swish in place of GELU*.
Every figure is of a program in service: each is called once before the call that counts.
The milliseconds of ours are the peer's over the ratio, so that both are at one pace of the machine.
The peer of a row is whichever of ONNX Runtime and OpenVINO (defaults: latency, bfloat16 where the
processor has it), in float or in INT8, was fastest; an INT8 program that writes beyond its memory
in OpenVINO, found by running it in a process of its own, is no peer and no candidate."""

Call = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    whole = [str(batch) for batch in range(1, JUDGED + 1) if JUDGED % batch == 0]
    words = asked(__doc__, known=[*timm.list_models(), *whole])
    script, title = of_this_processor(__file__, "Inference")
    bench = Benchmark(
        script,
        title=title,
        command="PHOTOS=FOLDER python benchmarks/inference.py",
        says=SAYS,
        keep=bool(words),
    )
    batches = [int(word) for word in words if word.isdigit()] or BATCHES
    for name in [word for word in words if not word.isdigit()] or NAMES:
        anew = {f"{name}, batch {batch}" for batch in batches}  # maybe with another best peer
        bench.rows = [row for row in bench.rows if row.what not in anew]
        torch.manual_seed(0)
        net, side = network(name)
        pictures = pixels(side)
        calibration, judged = pictures[:CALIBRATED], pictures[CALIBRATED:]
        expected = np.concatenate([plainly(net, part) for part in np.split(judged, JUDGED // 8)])
        score = partial(agreement, expected)
        theirs_at = {batch: peers(net, judged[:batch], calibration) for batch in batches}
        lost_at = {}
        for batch, theirs in theirs_at.items():
            parts = np.split(judged, JUDGED // batch)
            int8 = theirs.get(INT8)
            given = np.concatenate([int8(part) for part in parts]) if int8 else expected
            lost_at[batch] = 100 - score(given)
        search = Search(
            net,
            judged,
            score=score,
            calibration=calibration,
            guard=min(min(lost_at.values()) + GUARD, 100),
            seconds=0.5,
            budget=400,
        )
        for batch, theirs in theirs_at.items():
            images, lost = judged[:batch], lost_at[batch]
            ours = search.fastest(batch)
            calls = {peer: partial(call, images) for peer, call in theirs.items()}
            times = side_by_side(calls, seconds=0.7, settled=True)
            best = min(times, key=lambda peer: times[peer].median)
            settled = partial(paired, settled=True)
            ratio = settled(partial(theirs[best], images), partial(ours, images), seconds=6)
            eager = settled(partial(plainly, net, images), partial(ours, images), seconds=4)
            taken = times[best].median / ratio.median
            for peer, found, mark in ((best, ratio, 1.0), (EAGER, eager, None)):
                bench.add(
                    Row(
                        what=f"{name}, batch {batch}",
                        peer=peer,
                        ratio=interval(found),
                        mark=mark,
                        ours=f"{1e3 * taken:.2f} ms, {ours.chosen.name}",
                        theirs=f"{1e3 * times[best].median:.2f} ms" if peer == best else "",
                        note=f"agreement {ours.chosen.score:.1f}, OpenVINO's INT8 "
                        + (f"{100 - lost:.1f}" if INT8 in theirs else "not safe to run"),
                    )
                )
    for batch in batches:
        add_means(bench, batch)


def add_means(bench: Benchmark, batch: int) -> None:
    """Geometric means over the networks that have been timed at a batch."""
    rows = [row for row in bench.rows if row.what.endswith(f", batch {batch}")]
    rows = [row for row in rows if not row.what.startswith("geometric")]
    for peer, mark in ((EAGER, 5.0), ("best of ONNX Runtime and OpenVINO", 1.2)):
        found = [row.ratio for row in rows if (row.peer == EAGER) == (peer == EAGER)]
        note = f"of {len(found)} networks out of {len(NAMES)}"
        mean = geometric_mean(found)
        what = f"geometric mean, batch {batch}"
        bench.add(Row(what=what, peer=peer, ratio=mean, mark=mark, note=note))


def network(name: str) -> tuple[nn.Module, int]:
    """timm's network with statistics of real photographs in its batch norms, and its size."""
    net = timm.create_model(name)
    published = timm.get_pretrained_cfg(name)
    side = published.input_size[-1] if published else 224
    for module in net.eval().modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None
            module.train()
    with torch.no_grad():
        net(torch.from_numpy(pixels(side)[:32]))
    return net.eval(), side


def agreement(expected: np.ndarray, logits: np.ndarray) -> float:
    """100 times the mean cosine of logits (N, K), less the mean of those expected."""
    a, b = (rows - expected.mean(0) for rows in (expected, logits))
    return 100 * float(((a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))).mean())


def peers(net: nn.Module, images: np.ndarray, photos: np.ndarray) -> dict[str, Call]:
    """Peers for batches like `images`, INT8 calibrated on `photos`."""
    import nncf
    import onnxruntime
    import openvino

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    core = openvino.Core()

    def onnx_runtime(model: Path) -> Call:
        session = onnxruntime.InferenceSession(model.read_bytes(), options)
        entry = session.get_inputs()[0].name
        return lambda given: np.asarray(session.run(None, {entry: given})[0])

    def open_vino(model: openvino.Model) -> Call:
        program = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY"})
        request = program.create_infer_request()
        return lambda given: np.array(request.infer([given], share_inputs=True)[0])

    batch = len(images)
    parts = [photos[i : i + batch] for i in range(0, len(photos), batch)]
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder, "plain.onnx")
        plain = exported(net, images, path)
        quantised = nncf.quantize(plain.clone(), nncf.Dataset(parts), subset_size=len(parts))
        found = {
            "ONNX Runtime": onnx_runtime(path),
            "ONNX Runtime INT8": onnx_runtime(quantised_onnx(path, parts)),
            "OpenVINO": open_vino(plain),
        }
        saved = path.with_name("int8.xml")
        save_openvino(quantised, saved)
        if is_sound(saved, images.shape[1:], (batch,)):
            found[INT8] = open_vino(quantised)
        return found


def quantised_onnx(path: Path, parts: list[np.ndarray]) -> Path:
    """The INT8 program that ONNX Runtime's own tool makes, calibrated on some batches."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = [{"x": part} for part in parts[: max(1, 16 // len(parts[0]))]]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self.rest.pop() if self.rest else None

    ready, out = path.with_name("ready.onnx"), path.with_name("int8.onnx")
    quant_pre_process(path, ready, skip_symbolic_shape=True)
    quantize_static(
        ready,
        out,
        Batches(),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return out


def exported(net: nn.Module, images: np.ndarray, path: Path) -> Any:
    """timm's network as it comes, for batches of this size: as ONNX at `path`, and for OpenVINO."""
    import openvino

    with quiet():
        given = (torch.from_numpy(images),)
        torch.onnx.export(net, given, path, dynamo=True, external_data=False, verbose=False)
        return openvino.convert_model(path)


@torch.inference_mode()
def plainly(net: nn.Module, images: np.ndarray) -> np.ndarray:
    return net(torch.from_numpy(images)).numpy()


def pixels(side: int) -> np.ndarray:
    """Real photographs, float32 (N, 3, side, side), normalised."""
    return inputs([data.decode(file) for file in photographs(CALIBRATED + JUDGED)], side)


def inputs(pictures: list[np.ndarray], side: int) -> np.ndarray:
    """Pictures (H, W, 3) as a network takes them: float32 (N, 3, side, side), normalised."""
    rows = []
    for picture in pictures:
        image = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
        rows.append(F.interpolate(image, (side, side), mode="bilinear", antialias=True))
    mean, deviation = (
        torch.tensor(values).view(1, 3, 1, 1)
        for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    return ((torch.cat(rows) - mean) / deviation).numpy()


if __name__ == "__main__":
    main()
