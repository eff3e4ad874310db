"""What was found in the data: counts, sizes, files set aside, duplicates, samples."""

import numpy as np

from foveate.report.folder import Folder, dig, listed, rows
from foveate.report.html import Child, Html, folded, is_number, join, missing, short, table, tag
from foveate.report.pictures import picture

OPEN_ROWS = 20
MOST_ROWS = 500


def section(folder: Folder) -> Html:
    """The data as the run found it."""
    found = folder.get("data")
    if not isinstance(found, dict):
        return missing("The data have not been looked at yet.")
    return join(
        [_summary(found), _counts(found), _samples(folder), _quarantine(found), _doubles(found)]
    )


def _summary(found: dict) -> Html:
    splits = _splits(found)
    sums = [f"{sum(counts.values()):,} {name}" for name, counts in splits.items()]
    sizes = [
        f"{word} {size[0]} × {size[1]}"
        for name, word in (("min", "smallest"), ("median", "median"), ("max", "largest"))
        if len(size := listed(dig(found, "sizes", name))) == 2
    ]
    classes = f"{len(listed(found.get('labels')))} classes; images: {', '.join(sums) or 'none'}."
    pixels = f" Pixels, width × height: {', '.join(sizes)}." if sizes else ""
    return tag("p", classes + pixels)


def _splits(found: dict) -> dict[str, dict[str, float]]:
    splits = found.get("splits")
    if not isinstance(splits, dict):
        return {}
    return {
        name: {k: v for k, v in counts.items() if is_number(v)}
        for name, counts in splits.items()
        if isinstance(counts, dict)
    }


def _counts(found: dict) -> Html:
    splits = _splits(found)
    labels = [str(label) for label in listed(found.get("labels"))]
    if not labels or not splits:
        return missing("The counts of the classes are not there.")
    largest = max((sum(c.get(label, 0) for c in splits.values()) for label in labels), default=1)

    def row(label: str) -> list[Child]:
        counts = [counts.get(label, 0) for counts in splits.values()]
        total = sum(counts)
        meter = tag(
            "span", tag("i", style=f"width:{100 * total / max(1, largest):.0f}%"), class_="meter"
        )
        return [short(label), *(f"{count:,}" for count in counts), join([meter, f"{total:,}"])]

    head: list[Child] = ["class", *splits, "all"]
    return join(
        [tag("h3", "Images per class and split"), _long(head, [row(x) for x in labels], "Counts")]
    )


def _samples(folder: Folder) -> Html | None:
    images, targets = folder.arrays.get("samples"), folder.arrays.get("sample_targets")
    if images is None or targets is None or images.ndim != 4 or len(images) != len(targets):
        return None
    labels = folder.labels
    strips = []
    for target in dict.fromkeys(int(t) for t in targets):
        name = short(labels[target], 30) if 0 <= target < len(labels) else str(target)
        shown = images[np.flatnonzero(targets == target)[:4]]
        pictures = [picture(image, f"a sample of {name}") for image in shown]
        strips.append(tag("div", tag("h4", name), tag("div", pictures)))
    if not strips:
        return None
    return join([tag("h3", "Samples from the test split"), tag("div", strips, class_="strips")])


def _quarantine(found: dict) -> Html:
    items = rows(dig(found, "quarantine", "items"))
    count = dig(found, "quarantine", "count")
    count = count if is_number(count) else len(items)
    heading = tag("h3", "Files set aside")
    if not count:
        return join([heading, tag("p", "Every file could be read.")])
    said = f"{count:,} {'file' if count == 1 else 'files'} could not be used and took no part."
    lines = [[tag("code", short(r.get("path"), 120)), short(r.get("reason"), 160)] for r in items]
    return join([heading, tag("p", said), _long(["file", "reason"], lines, "Files set aside", 2)])


def _doubles(found: dict) -> Html:
    items = rows(dig(found, "duplicates", "items"))
    count = dig(found, "duplicates", "count")
    count = count if is_number(count) else len(items)
    heading = tag("h3", "Duplicates across splits")
    if not count:
        return join([heading, tag("p", "No image is in two splits.")])
    said = (
        f"{count:,} {'image is' if count == 1 else 'images are'} the same, byte for byte or pixel "
        "for pixel, as one in another split: accuracy on them says little."
    )
    lines = [
        [
            tag("code", short(r.get("first"), 90)),
            short(r.get("first_split"), 12),
            tag("code", short(r.get("second"), 90)),
            short(r.get("second_split"), 12),
        ]
        for r in items
    ]
    head: list[Child] = ["image", "in", "same as", "in"]
    return join([heading, tag("p", said), _long(head, lines, "Duplicates", 4)])


def _long(head: list[Child], lines: list[list[Child]], label: str, text: int = 1) -> Html:
    """A table whose first 20 rows are open, the others folded, up to 500."""
    if len(lines) <= OPEN_ROWS + 5:
        return table(head, lines, label=label, text=text)
    rest, over = lines[OPEN_ROWS:MOST_ROWS], len(lines) - MOST_ROWS
    more = tag("p", f"{over:,} more are in run.json.", class_="note") if over > 0 else None
    hidden = table(head, rest, label=f"{label}, continued", text=text)
    return join(
        [
            table(head, lines[:OPEN_ROWS], label=label, text=text),
            folded(f"{len(lines) - OPEN_ROWS:,} more", hidden, more),
        ]
    )
