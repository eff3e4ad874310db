"""The verdict: one sentence and four figures."""

from foveate.report.folder import Folder, dig, rows
from foveate.report.html import (
    Child,
    Html,
    interval,
    is_number,
    join,
    number,
    percent,
    scaled,
    short,
    tag,
)
from foveate.report.scores import wilson


def section(folder: Folder) -> Html:
    """What came out, at the top of the page."""
    over = [folder.get("source"), folder.get("started")]
    above = " · ".join(short(part, 80) for part in over if part)
    cards = [_accuracy(folder), _latency(folder), _size(folder), _time(folder)]
    return join(
        [
            tag("p", above, class_="over"),
            tag("h1", sentence(folder)),
            tag("dl", cards, class_="cards"),
        ]
    )


def sentence(folder: Folder) -> str:
    """How far the run has come, and how good what it made is."""
    model = short(folder.get("training", "model") or "The model", 50)
    exported = folder.get("test", "exported")
    if is_number(dig(exported, "top1")):
        form = short(dig(exported, "format") or "the exported format", 40)
        latency = folder.get("test", "latency_ms", "median")
        speed = f", in {number(latency)} ms each" if is_number(latency) else ""
        n = folder.get("test", "n")
        images = f"{n:,} held-out images" if is_number(n) else "the held-out images"
        return f"{model} as {form} gets {percent(exported['top1'])} of {images} right{speed}."
    if folder.get("deploy"):
        return f"{model} is trained and exported, and not tested yet."
    if is_number(folder.get("training", "val_top1")):
        top1 = percent(folder.get("training", "val_top1"))
        return f"{model} is trained to {top1} on validation, and not exported or tested yet."
    if folder.evaluations:
        last = folder.evaluations[-1]
        epoch, top1 = last.get("epoch"), percent(last.get("top1"))
        at = f"after {number(epoch)} epochs" if is_number(epoch) else "so far"
        return f"This run is not trained to its end: {top1} on validation {at}."
    if folder.train or folder.get("race"):
        return "This run has begun to train, and has no accuracy yet."
    return "This run has only begun: nothing is trained yet."


def baseline(folder: Folder) -> tuple[str, float] | None:
    """The largest class in training, and the share of the test split that it alone gets right."""
    train, test = (folder.get("data", "splits", name) for name in ("train", "test"))
    if not isinstance(train, dict) or not isinstance(test, dict):
        return None
    counts = [*train.values(), *test.values()]
    if not train or not all(map(is_number, counts)) or not sum(test.values()):
        return None
    label = max(train, key=lambda name: train[name])
    return label, test.get(label, 0) / sum(test.values())


def _accuracy(folder: Folder) -> Html:
    top1, n = folder.get("test", "exported", "top1"), folder.get("test", "n")
    notes: list[Child] = []
    if is_number(top1) and is_number(n):
        low, high = wilson(top1, n)
        notes.append(f"95% interval {percent(low)} to {percent(high)}")
    if simple := baseline(folder):
        notes.append(f"always saying “{short(simple[0], 24)}” gets {percent(simple[1])}")
    return _card("Test accuracy, exported", percent(top1), notes)


def _latency(folder: Folder) -> Html:
    latency = folder.get("test", "latency_ms")
    asked = folder.get("asked", "latency_ms")
    notes: list[Child] = []
    if is_number(dig(latency, "low")) and is_number(dig(latency, "high")):
        around = interval(latency).partition("(")[2].rstrip(")")
        notes.append(f"one image, median; 95% interval {around} ms")
    if is_number(asked):
        median = dig(latency, "median")
        met = is_number(median) and median <= asked
        kind = "good" if met else "bad" if is_number(median) else None
        verdict = "within" if met else "over" if is_number(median) else "at most"
        notes.append(tag("span", f"{verdict} the {asked:g} ms asked for", class_=kind))
    return _card("Latency", number(dig(latency, "median"), unit=" ms"), notes)


def _size(folder: Folder) -> Html:
    formats = rows(folder.get("deploy", "formats"))
    chosen = next((row for row in formats if dig(row, "chosen")), None)
    raced = rows(folder.get("race", "candidates"))
    winner = next((row for row in raced if dig(row, "chosen")), None)
    params, macs = dig(winner, "params"), dig(winner, "macs")
    notes: list[Child] = [
        f"{scaled(params)} parameters" if is_number(params) else None,
        f"{scaled(macs)} MACs an image" if is_number(macs) else None,
    ]
    return _card("Size", scaled(dig(chosen, "bytes"), unit="B"), notes)


def _time(folder: Folder) -> Html:
    asked, epochs = folder.get("asked", "minutes"), folder.get("asked", "epochs")
    minutes = folder.get("minutes")
    minutes = minutes if isinstance(minutes, dict) else {}
    total = minutes.get("total")
    if not is_number(total):
        total = sum(v for v in minutes.values() if is_number(v)) or None
    budget = None
    if is_number(asked):
        budget = f"{asked:g} asked for, to look, choose and train"
    elif is_number(epochs):
        budget = f"{epochs:g} epochs asked for"
    trained = dig(minutes, "training") or dig(minutes, "train")
    notes: list[Child] = [
        budget,
        f"{number(trained)} of them training" if is_number(trained) else None,
    ]
    return _card("Minutes used", number(total), notes)


def _card(name: str, value: str, notes: list[Child]) -> Html:
    said = [tag("p", note) for note in notes if note]
    return tag("div", tag("dt", name), tag("dd", value), said)
