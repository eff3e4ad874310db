"""What guidance found, for people: sentences that explain the choice, and the front as a table."""

from typing import Any

from rich.table import Table

from foveate.report.guidance import Row, lost, milliseconds, on_the_front, points, right
from foveate.report.html import number, percent, short

COSTS = {"Remove": "losing", "Simulate": "8 bits in", "Store": "4-bit weights in"}


def explain(facts: dict[str, Any]) -> list[str]:
    """Sentences: what was done and gained and lost, why that and not its neighbours, what binds.

    Args:
        facts: as `foveate.guidance.guide` gathers them.
    """
    best = next(row for row in facts["trials"] if row["chosen"])
    said = [_outcome(facts, best), *_done(facts, best), _cost(facts, best), _held_out(facts)]
    said += [_binding(facts, best) if facts["met"] else _missing(facts, best)]
    said += [_neighbours(facts, best), _sensitive(facts), *_caveats(facts)]
    return [sentence for sentence in said if sentence]


def front_table(facts: dict[str, Any]) -> Table:
    """The Pareto front, with the original and the chosen one."""
    head = ["composition", f"latency ({facts['runtime']})", "faster", "points lost"]
    shown = Table(*head, right(facts), "MACs", "size")
    original = facts["trials"][0]["figures"]
    for row in on_the_front(facts):
        figures = row["figures"]
        time = figures["latency_ms"]
        shown.add_row(
            ("→ " if row["chosen"] else "  ") + row["name"],
            f"{number(time['median'])} ms ({number(time['low'])} to {number(time['high'])})",
            f"{original['latency_ms']['median'] / time['median']:.2f}x",
            points(figures["lost"]),
            percent(figures["right"], 2),
            f"{figures['macs'] / 1e6:.1f} M",
            f"{figures['bytes'] / 1e6:.2f} MB",
            style="bold" if row["chosen"] else None,
        )
    return shown


# ---------------------------------------------------------------- the sentences


def _outcome(facts: dict[str, Any], best: Row) -> str:
    found = sum(row["figures"] is not None for row in facts["trials"])
    count = f"{found} compositions" if found > 1 else "1 composition"
    asked = _asked(facts)
    if not facts["met"]:
        return f"None of {count} {asked}; the nearest that keeps the guard is {_called(best)}."
    if not best["edits"]:
        return f"Of {count}, the model as it was serves best: no edit is needed."
    return f"Chosen of {count}, as it {asked}: {best['name']}."


def _called(row: Row) -> str:
    """A composition within a sentence."""
    return row["name"] if row["edits"] else "the model as it was"


def _asked(facts: dict[str, Any]) -> str:
    guard = f"loses at most {_points(facts['asked']['guard'], facts)}"
    limit = facts["asked"]["latency_ms"]
    if limit is None:
        return f"is fastest and {guard}" if facts["met"] else guard
    return f"takes at most {limit:.4g} ms and {guard}"


def _points(value: float, facts: dict[str, Any]) -> str:
    unit = "point" if value == 1 else "points"
    return f"{value:.4g} {unit} of {facts['asked']['by']}"


def _done(facts: dict[str, Any], best: Row) -> list[str]:
    said = []
    added = facts["lineage"][len(facts["lineage"]) - len(best["edits"]) :]
    steps = {step["edit"]: step for step in added}
    original = facts["trials"][0]["figures"]
    if "Remove" in best["edits"]:
        gone = steps["Remove"]["fields"]["gone"]
        most = sorted(gone, key=lambda name: -len(gone[name]))[:3]
        listed = ", ".join(f"{len(gone[name])} of {short(name, 40)}" for name in most)
        more = f" and {len(gone) - len(most)} more groups" if len(gone) > len(most) else ""
        share = 1 - best["figures"]["macs"] / original["macs"]
        said.append(
            f"{share:.0%} of the multiply-adds went with channels, where they cost least: "
            f"{listed}{more}; batch norms were set anew if that helped."
        )
    if best["fields"]["tuned"]:
        epochs = facts["asked"]["tune"]
        said.append(f"What was left was trained for {epochs:g} epochs to answer as the original.")
    if "Simulate" in best["edits"]:
        said.append(f"Layers compute in 8-bit integers{_but(best)}.")
        if best["fields"]["corrected"]:
            said.append("Biases take away again what that adds to the means of layers' outputs.")
    elif "Store" in best["edits"]:
        bits = 8 if best["fields"]["numbers"] == "weights8" else 4
        said.append(f"Weights are stored in {bits} bits{_but(best)}.")
    return said


def _but(best: Row) -> str:
    left = best["left_in_float"]
    if not left:
        return ", none left in float"
    listed = ", ".join(short(name, 40) for name in left[:3]) + (" and more" if left[3:] else "")
    return f", but for {len(left)} that rounding hurts most ({listed})"


def _cost(facts: dict[str, Any], best: Row) -> str:
    figures, original = best["figures"], facts["trials"][0]["figures"]
    time, before = figures["latency_ms"], original["latency_ms"]["median"]
    said = (
        f"An image takes {number(time['median'])} ms ({number(time['low'])} to "
        f"{number(time['high'])}) in {facts['runtime']}"
    )
    if not best["edits"]:
        return f"{said}."
    judged = facts["judged"]
    beyond = ""
    if figures["lost"]["high"] > facts["asked"]["guard"]:
        beyond = "; the interval reaches beyond the guard, so more images may say otherwise"
    return (
        f"{said}, {before / time['median']:.2f} times as fast as the {number(before)} ms of the "
        f"original, and {points(figures['lost'])} points of {facts['asked']['by']} were lost on "
        f"{judged['n']:,} images of the {judged['split']} split{beyond}."
    )


def _held_out(facts: dict[str, Any]) -> str:
    found = facts["held_out"]
    if not found:
        return ""
    return f"On {found['images']:,} test images, which decided nothing, it lost {points(found)}."


def _binding(facts: dict[str, Any], best: Row) -> str:
    asked, rows = facts["asked"], facts["trials"]
    limit, guard = asked["latency_ms"], asked["guard"]
    if limit is None:
        faster = [row for row in rows if milliseconds(row) < milliseconds(best)]
        if not faster:
            return "Nothing binds: it is the fastest that was found, whatever is lost."
        next_one = min(faster, key=lost)
        return (
            f"The guard binds: the least that anything faster loses is {lost(next_one):.2f} points "
            f"({_called(next_one)}, {number(milliseconds(next_one))} ms)."
        )
    better = [row for row in rows if lost(row) < lost(best) and milliseconds(row) > limit]
    spare = f"of the guard's {guard:g}, {guard - lost(best):.2f} points are left"
    if not better:
        return f"Neither binds: nothing that was measured loses less, and {spare}."
    next_one = min(better, key=milliseconds)
    return (
        f"The latency binds: what loses less takes {number(milliseconds(next_one))} ms or more "
        f"({_called(next_one)}, {lost(next_one):.2f} points); {spare}."
    )


def _missing(facts: dict[str, Any], best: Row) -> str:
    limit = facts["asked"]["latency_ms"]
    over = f"It is {milliseconds(best) / limit - 1:.0%} over the {limit:.4g} ms. "
    able = [row for row in facts["trials"] if milliseconds(row) <= limit]
    if able:
        least = min(able, key=lambda row: (lost(row), milliseconds(row)))
        return (
            f"{over}Of what is fast enough, {_called(least)} loses least: {lost(least):.2f} points "
            f"at {number(milliseconds(least))} ms. Both bind."
        )
    fastest = min(facts["trials"], key=milliseconds)
    return (
        f"{over}The fastest of all, {_called(fastest)}, takes {number(milliseconds(fastest))} ms "
        f"and loses {lost(fastest):.2f} points, so the latency binds, whatever the guard."
    )


def _neighbours(facts: dict[str, Any], best: Row) -> str:
    rows = [row for row in facts["trials"] if row["neighbour"] and row["figures"]]
    if not rows:
        return ""
    rows.sort(key=lambda row: abs(milliseconds(row) - milliseconds(best)))
    said = "; ".join(f"{_called(row)} {_against(row, best, facts)}" for row in rows)
    more = facts["unmeasured_neighbours"]
    rest = f" ({more} more were not measured.)" if more else ""
    return f"One step away: {said}.{rest}"


def _against(row: Row, best: Row, facts: dict[str, Any]) -> str:
    """Why a neighbour was not chosen."""
    asked = facts["asked"]
    time, loss = milliseconds(row), lost(row)
    figures = f"{number(time)} ms, {loss:.2f} points"
    slow = asked["latency_ms"] is not None and time > asked["latency_ms"]
    reasons = ["is too slow"] * slow + ["loses too much"] * (loss > asked["guard"])
    if reasons:
        return f"{' and '.join(reasons)} ({figures})"
    if time >= milliseconds(best) and loss >= lost(best):
        return f"is no faster and loses no less ({figures})"
    if loss > lost(best):
        return f"loses more ({figures})"
    return f"is slower ({figures})"


def _sensitive(facts: dict[str, Any]) -> str:
    said = []
    for edit, words in COSTS.items():
        rows = [row for row in facts["sensitivities"] if row["edit"] == edit and row["lost"]]
        if rows:
            worst = max(rows, key=lambda row: row["divergence"])
            how = f"{worst['how']} in " if edit == "Remove" else ""
            loss = worst["lost"]["points"]
            said.append(f"{words} {how}{short(worst['part'], 40)} ({loss:.2f} points)")
    return f"What costs most alone: {'; '.join(said)}." if said else ""


def _caveats(facts: dict[str, Any]) -> list[str]:
    said = [f"{row['edit']} was left out: {row['why']}." for row in facts["refused"]]
    failed = [row for row in facts["trials"] if row["why"]]
    if failed:
        listed = ", ".join(row["name"] for row in failed[:3]) + (" and more" if failed[3:] else "")
        said.append(f"Not made or run: {listed}; the first because {failed[0]['why']}.")
    if facts["no_openvino"]:
        said.append(f"Judged and timed in PyTorch, eager: {facts['no_openvino']}.")
    noisy = [row for row in facts["trials"] if row["figures"] and row["figures"]["noisy"]]
    if noisy:
        said.append(
            f"The machine was too busy to time {len(noisy)} of them well: do it again when it "
            "rests."
        )
    if facts["cut_short"]:
        said.append(f"The search was ended by {facts['cut_short']}: more may find better.")
    return said
