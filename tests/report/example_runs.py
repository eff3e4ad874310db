"""Runs as `foveate fit` leaves them: a whole one of ten classes, and one that has only begun."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

LABELS = ["aeroplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def spread(median: float) -> dict[str, float]:
    return {"median": median, "low": median * 0.96, "high": median * 1.07}


def race() -> dict:
    raced = [
        ("convnext_nano_32", 2_210_000, 61_000_000, 1.9, [0.412, 0.631, 0.742]),
        ("inceptionnext_pico_32", 760_000, 38_100_000, 0.82, [0.431, 0.655, 0.771]),
        ("convnext_pico_32", 980_000, 29_000_000, 0.74, [0.385, 0.598]),
        ("inceptionnext_femto_32", 410_000, 17_000_000, 0.51, [0.372, 0.561]),
        ("convnext_femto_32", 520_000, 15_500_000, 0.48, [0.341]),
        ("timm/resnet10t", 4_900_000, 92_000_000, 1.4, [0.362]),
    ]
    rows = [
        {
            "name": name,
            "params": params,
            "macs": macs,
            "latency_ms": spread(latency),
            "kept": True,
            "why": "",
            "rungs": [{"minutes": 0.2 * 2**i, "top1": t} for i, t in enumerate(rungs)],
            "top1": rungs[-1],
            "chosen": name == "inceptionnext_pico_32",
        }
        for name, params, macs, latency, rungs in raced
    ]
    slow = [
        ("convnext_tiny", 27_800_000, 4_450_000_000, 31.0),
        ("timm/vit_tiny", 5_500_000, 1_254_000_000, 12.4),
    ]
    rows += [
        {
            "name": name,
            "params": params,
            "macs": macs,
            "latency_ms": spread(latency),
            "kept": False,
            "why": "slower than 5 ms",
            "rungs": [],
            "top1": None,
            "chosen": False,
        }
        for name, params, macs, latency in slow
    ]
    return {"size": 32, "candidates": rows}


def deploy() -> dict:
    figures = [
        ("torch float32", 3_060_000, 2.41, 0.861, 0.0, 1.0, 1.0, True, ""),
        ("ONNX float32", 3_090_000, 0.93, 0.861, 2.1e-5, 1.0, 1.0, True, ""),
        ("OpenVINO float32", 3_110_000, 0.55, 0.861, 3.4e-5, 1.0, 1.0, True, ""),
        ("OpenVINO int8", 910_000, 0.31, 0.857, 0.83, 0.99812, 0.984, True, ""),
        ("ONNX int8", 905_000, 0.88, 0.812, 4.2, 0.9311, 0.901, False, "loses 4.9 points"),
    ]  # fmt: skip
    return {
        "guard": 1.0,
        "formats": [
            {
                "name": name,
                "bytes": size,
                "latency_ms": spread(latency),
                "top1": top1,
                "parity": {"max_error": error, "cosine": cosine, "agreement": agreement},
                "passed": passed,
                "why": why,
                "chosen": name == "OpenVINO int8",
            }
            for name, size, latency, top1, error, cosine, agreement, passed, why in figures
        ],
        "absent": {"openvino-bf16": "not tried: this processor does not compute in bfloat16"},
    }


def facts(labels: list[str]) -> dict:
    counts = {"train": 420, "val": 50, "test": 60}
    bad = [
        "truncated after 512 bytes",
        "empty file",
        "not an image (text)",
        "179 megapixels: over the limit",
    ]
    return {
        "foveate": "0.1.0",
        "command": "foveate fit photos/cifar --out runs/cifar --minutes 10 --latency 5ms",
        "started": "2026-11-21T04:12:09+00:00",
        "source": "photos/cifar",
        "seed": 0,
        "asked": {
            "source": "photos/cifar",
            "minutes": 10.0,
            "epochs": None,
            "latency_ms": 5.0,
            "model": "auto",
            "guard": 1.0,
        },
        "machine": {
            "processor": "Intel(R) Xeon(R) Platinum 8481C",
            "cores": 2,
            "threads": 2,
            "memory_gb": 15.6,
            "versions": {"python": "3.11.2", "torch": "2.15.0", "openvino": "2026.4.0"},
            "date": "2026-11-21",
        },
        "data": {
            "labels": list(labels),
            "splits": {
                s: {x: n - 7 * i % 23 for i, x in enumerate(labels)} for s, n in counts.items()
            },
            "sizes": {"min": [24, 20], "median": [32, 32], "max": [640, 427]},
            "quarantine": {
                "count": 27,
                "items": [
                    {
                        "path": f"photos/cifar/train/{labels[i % len(labels)]}/{i:05d}.jpg",
                        "reason": bad[i % 4],
                    }
                    for i in range(27)
                ],
            },
            "duplicates": {
                "count": 2,
                "items": [
                    {
                        "first": "train/cat/00012.png",
                        "first_split": "train",
                        "second": "test/dog/00931.png",
                        "second_split": "test",
                    },
                    {
                        "first": "train/ship/00007.png",
                        "first_split": "train",
                        "second": "val/ship/00007 (1).png",
                        "second_split": "val",
                    },
                ],
            },
        },
        "race": race(),
        "recipe": {
            "optimizer": "sgd",
            "learning_rate": 0.2,
            "weight_decay": 5e-4,
            "batch_size": 256,
            "epochs": None,
            "minutes": 8.2,
            "warmup": 0.15,
            "label_smoothing": 0.1,
            "augment": {"crop": 4, "flip": True, "mixup": 0.0},
        },
        "training": {
            "model": "inceptionnext_pico_32",
            "epochs": 14.2,
            "steps": 2775,
            "minutes": 8.19,
            "images_per_second": 1442.0,
            "waited": 0.012,
            "share_of_roof": 0.41,
            "best_epoch": 14.0,
            "val_top1": 0.866,
        },
        "deploy": deploy(),
        "test": {
            "n": 600,
            "trained": {"top1": 0.861, "loss": 0.44},
            "exported": {"top1": 0.857, "loss": 0.45, "format": "OpenVINO int8"},
            "latency_ms": spread(0.31),
        },
        "minutes": {
            "data": 0.04,
            "race": 1.5,
            "training": 8.19,
            "deploy": 0.8,
            "test": 0.1,
            "total": 10.63,
        },
    }


def metrics() -> list[dict]:
    chance, lines = np.random.default_rng(0), []
    for step in range(0, 2775, 25):
        epoch = step / 195
        loss = 2.3 * np.exp(-epoch / 6) + 0.35 + 0.08 * chance.standard_normal()
        rate = 0.2 * min(1, epoch / 2) * (0.5 + 0.5 * np.cos(np.pi * epoch / 14.2))
        at = {"step": step, "epoch": epoch, "seconds": step / 5}
        speed = {"learning_rate": rate, "images_per_second": 1440}
        lines.append({"kind": "train", **at, "loss": loss, "top1": 1 - loss / 3, **speed})
        if step % 200 == 175:
            top1 = 0.87 - 0.5 * np.exp(-epoch / 4)
            lines.append({"kind": "eval", **at, "loss": loss + 0.1, "top1": top1})
    return lines


def arrays(classes: int = 10, n: int = 600, side: int = 32) -> dict[str, np.ndarray]:
    chance = np.random.default_rng(1)
    targets = np.arange(n) % classes
    logits = (1.4 * chance.standard_normal((n, classes))).astype(np.float32)
    logits[np.arange(n), targets] += 2.9
    logits[np.arange(n), np.where(targets == 3, 5 % classes, targets)] += 1.2
    wrong = np.flatnonzero(logits.argmax(1) != targets)[:16]
    row, column = np.mgrid[0:side, 0:side] / side
    spots = chance.random((len(wrong), 2, 1, 1))
    return {
        "logits": logits,
        "targets": targets.astype(np.int64),
        "samples": pictures(4 * classes, side),
        "sample_targets": np.repeat(np.arange(classes), 4),
        "worst_index": wrong,
        "worst_images": pictures(len(wrong), side),
        "worst_saliency": np.exp(
            -((row - spots[:, 0]) ** 2 + (column - spots[:, 1]) ** 2) * 12
        ).astype(np.float32),
        "worst_names": np.array([f"test/{i:05d}.png" for i in wrong]),
    }


def pictures(n: int, side: int) -> np.ndarray:
    """Smooth coloured blots."""
    chance = np.random.default_rng(n)
    coarse = chance.integers(0, 255, (n, 4, 4, 3))
    image = coarse.repeat(side // 4, axis=1).repeat(side // 4, axis=2).astype(float)
    for _ in range(3):
        image = (image + np.roll(image, 1, 1) + np.roll(image, 1, 2) + np.roll(image, -1, 1)) / 4
    return image.astype(np.uint8)


def leave(
    path: Path, facts: dict, metrics: Sequence[dict] = (), arrays: dict | None = None
) -> Path:
    """Write a run's folder."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "run.json").write_text(json.dumps(facts))
    if metrics:
        (path / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metrics))
    if arrays:
        np.savez_compressed(path / "analysis.npz", **arrays)
    return path
