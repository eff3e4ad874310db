"""Memory for large activations: what was freed is used again, not given back and fetched anew.

glibc serves every block over 32 MiB by a mapping of its own, which ends when the block is
freed. So each large activation of each step is fresh memory: the kernel clears every page of it
at the first touch, which costs as much time as the arithmetic of many a layer. Under this policy
large blocks come from the heap, and the heap keeps what is freed; a step then finds the pages of
the step before. benchmarks/memory.py measures what it brings.

    with memory.kept():     # training and evaluating do this
        ...
    memory.keep()           # for the process; loading a model to predict does this
    memory.restore()        # and back again

What it costs: between steps the process holds the memory of its largest step. `restore`, or the
end of the last `with`, gives all that is free back to the system.

In threads other than the main one glibc keeps blocks of up to 64 MiB, and maps larger ones anew
all the same. `MALLOC_ARENA_MAX=1` in the environment makes all threads alike; from inside the
process it could not be undone, so it is left to those who run large batches in threads.

Elsewhere (macOS, Windows, musl, another allocator such as jemalloc put before glibc's) nothing
happens, and nothing fails. Where a person has set glibc's allocator in the environment
(`MALLOC_MMAP_THRESHOLD_`, `GLIBC_TUNABLES`, ...), theirs stands.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

# malloc.h
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4

_KEEPING = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 << 20}

# Where glibc's own thresholds end once a large block was freed; mallopt stops them from moving.
_USUAL = {
    _MMAP_MAX: 65536,
    _MMAP_THRESHOLD: 32 << 20,
    _TRIM_THRESHOLD: 64 << 20,
    _TOP_PAD: 128 << 10,
}
_CHOSEN_BY_PERSON = ("MALLOC_MMAP_", "MALLOC_TRIM_", "MALLOC_TOP_PAD_")

_lock = threading.Lock()
_withs = 0
_for_good = False


def keep() -> bool:
    """Keep freed memory from now on, until `restore`.

    Returns: whether it has an effect here.
    """
    global _for_good
    with _lock:
        _for_good = True
        return _set(_KEEPING)


def restore() -> bool:
    """Undo `keep`, and give what is free back to the system; within a `kept`, at its end.

    Returns: whether there was something to undo.
    """
    global _for_good
    with _lock:
        was, _for_good = _for_good, False
        return was and not _withs and _give_back()


@contextmanager
def kept() -> Iterator[bool]:
    """Within, freed memory is kept; at the end of the outermost it is given back.

    Yields: whether it has an effect here.
    """
    global _withs
    with _lock:
        _withs += 1
        works = _set(_KEEPING)
    try:
        yield works
    finally:
        with _lock:
            _withs -= 1
            if not _withs and not _for_good:
                _give_back()


def is_kept() -> bool:
    """Whether freed memory is being kept."""
    return (_withs > 0 or _for_good) and _glibc() is not None


def _give_back() -> bool:
    done = _set(_USUAL)
    if done:
        _glibc().malloc_trim(0)  # pyright: ignore[reportOptionalMemberAccess]
    return done


def _set(options: dict[int, int]) -> bool:
    glibc = _glibc()
    return glibc is not None and all(glibc.mallopt(key, value) for key, value in options.items())


@cache
def _glibc() -> ctypes.CDLL | None:
    """glibc, if its allocator is the one that serves this process and nobody else has set it."""
    if not sys.platform.startswith("linux") or _person_chose():
        return None
    try:
        used, glibc = ctypes.CDLL(None), ctypes.CDLL("libc.so.6")
        serves = _address(used.malloc) == _address(glibc.malloc)
        return glibc if serves and glibc.mallopt and glibc.gnu_get_libc_version else None
    except (OSError, AttributeError):
        return None


def _person_chose() -> bool:
    return "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(
        name.startswith(_CHOSEN_BY_PERSON) for name in os.environ
    )


def _address(function: object) -> int | None:
    return ctypes.cast(function, ctypes.c_void_p).value  # pyright: ignore[reportArgumentType]
