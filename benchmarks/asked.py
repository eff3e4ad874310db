"""What a person names after a benchmark's own name."""

import argparse
import difflib
from collections.abc import Collection, Sequence


def asked(
    about: str | None, needed: Sequence[str] = (), known: Collection[str] | None = None
) -> list[str]:
    """The words that this process was given: those that must be there, then any others.

    An option, a word too few or one that is not known ends the process with a sentence that
    says so, before anything is measured.

    Args:
        about: the script's docstring, which `--help` shows.
        needed: names of the words that must be there, such as WEIGHTS.
        known: what the others may be; without it, anything.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in needed:
        parser.add_argument(name)
    parser.add_argument("others", metavar="NAME", nargs="*", default=[])
    told = vars(parser.parse_args())
    others = told.pop("others")
    for word in others:
        if known is not None and word not in known:
            near = difflib.get_close_matches(word, known, n=4, cutoff=0.4) or sorted(known)[:10]
            hint = f": did you mean {', '.join(near)}?" if near else ""
            parser.error(f"nothing here is called {word!r}{hint}")
    return [*told.values(), *others]


def picked(lines: Sequence[str], words: Sequence[str]) -> list[str]:
    """The lines that hold any of the words; all without words. None at all ends the process."""
    found = [line for line in lines if not words or any(word in line for word in words)]
    if not found:
        rows = "\n  ".join(lines)
        raise SystemExit(f"no row has {' or '.join(words)} in its name; there are\n  {rows}")
    return found
