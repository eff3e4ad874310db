"""The model card: what a stranger should know before using a model."""

from typing import Any

from foveate.measure import machine_line


def in_integers(row: dict[str, Any]) -> str:
    """Which of the layers that came quantised a format computes in integers, or ""."""
    found = row.get("quantised", {"integers": [], "floats": []})
    inside, outside = found["integers"], found["floats"]
    if not inside and not outside:
        return ""
    said = f"{len(inside)} of {len(inside) + len(outside)} quantised layers compute in integers"
    return f"{said}; not {', '.join(outside)}" if inside and outside else said


def model_card(facts: dict[str, Any]) -> str:
    """The text of the artifact's README.md, from what `model.json` says."""
    labels = facts["labels"]
    shown = ", ".join(labels[:30]) + (f" and {len(labels) - 30} more" if len(labels) > 30 else "")
    rows = "\n".join(
        f"| {row['name']}{' (chosen)' if row['chosen'] else ''} | {row['bytes'] / 1e6:.2f} "
        f"| {row['latency_ms']['median']:.2f} | {row['top1']:.2%} "
        f"| {row['parity']['agreement']:.2%} | {row['why'] or 'passed'} |"
        for row in facts["formats"]
    )
    told = [f"- {row['name']}: {line}" for row in facts["formats"] if (line := in_integers(row))]
    told += [f"- no {name}: {why}" for name, why in facts["absent"].items()]
    lines = "\n".join(["", *told, ""]) if told else ""
    size = facts["preprocess"]["size"]
    return f"""# {facts["architecture"]["name"]}

An image classifier with {len(labels)} classes: {shown}.

```python
import foveate

model = foveate.load("path/of/this/folder")
print(model.predict("image.jpg")[0].label)
```

Every exported program takes float32 RGB images in [0, 1] called `images`, of
shape (B, 3, {size}, {size}), and gives logits; the normalisation is inside. `check.npz`
holds inputs and the outputs to expect.

| format | MB | ms an image | top-1 | same label as trained | guard |
|---|---|---|---|---|---|
{rows}
{lines}
Accuracy on {facts["judged_on"]} images of the {facts["judged_split"]} split, none of which was
trained on. Latency of one image at a time: {machine_line(facts["machine"])}.

## Limits

It knows only the classes above and gives one of them to any image. Expect less
accuracy on images unlike those that it was trained on.
"""
