"""Page faults tell what was kept: fresh memory costs one a page, kept memory none."""

import json
import os
import subprocess
import sys

import pytest

from foveate import memory

GLIBC = sys.platform.startswith("linux") and "glibc" in os.confstr("CS_GNU_LIBC_VERSION")
needs_glibc = pytest.mark.skipif(not GLIBC, reason="only glibc's allocator can be told")

PREPARED = """
import ctypes, json, resource
from foveate import memory

BLOCK = 96 << 20
PAGES = BLOCK // resource.getpagesize()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p

def taken():
    block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(BLOCK)))
    libc.memset(block, 1, ctypes.c_size_t(BLOCK))
    return block

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        libc.free(taken())
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 4 / PAGES

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) / PAGES
"""


def fresh_process(code: str, **environment: str):
    """What `code` prints as JSON, in a process whose allocator nobody has touched."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MALLOC_") and name not in ("GLIBC_TUNABLES", "LD_PRELOAD")
    }
    done = subprocess.run(
        [sys.executable, "-c", PREPARED + code],
        env={**inherited, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.fixture
def nothing_asked(monkeypatch):
    """The module as it is at first, glibc looked for anew, and left so."""
    for name in list(os.environ):
        if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES":
            monkeypatch.delenv(name)
    memory._glibc.cache_clear()
    yield
    memory.restore()
    memory._glibc.cache_clear()


@needs_glibc
def test_kept_memory_is_not_fetched_anew_and_is_given_back():
    before, within, after, grown, left = fresh_process("""
found = [faults()]
with memory.kept() as works:
    assert works
    faults()
    found.append(faults())
    start = resident()
    for block in [taken() for _ in range(4)]:
        libc.free(block)
    grown = resident() - start
left = resident() - start
print(json.dumps([*found, faults(), grown, left]))
""")
    assert before > 0.9, "each block of 96 MiB should be fresh by default"
    assert within < 0.1, "kept blocks should not fault again"
    assert after > 0.9, "glibc should do again what it did"
    assert grown > 2.5, "three blocks more should have stayed"
    assert left < 0.5, "and should have been given back"


@needs_glibc
def test_for_good_and_back():
    found = fresh_process("""
memory.keep()
with memory.kept():
    faults()
found = [faults()]
memory.restore()
print(json.dumps([*found, faults()]))
""")
    assert found[0] < 0.1
    assert found[1] > 0.9


@needs_glibc
@pytest.mark.parametrize(
    "environment",
    [{"MALLOC_MMAP_THRESHOLD_": "1000000"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=1000"}],
)
def test_what_a_person_chose_stands(environment):
    assert fresh_process(
        "with memory.kept() as works: print(json.dumps([works, faults() > 0.9]))", **environment
    ) == [False, True]


@needs_glibc
def test_withs_nest(nothing_asked):
    with memory.kept() as outer:
        with memory.kept():
            pass
        assert memory.is_kept()
        assert not memory.restore()
    assert outer
    assert not memory.is_kept()


@needs_glibc
def test_an_error_inside_ends_it_too(nothing_asked):
    with pytest.raises(ZeroDivisionError), memory.kept():
        _ = 1 / 0
    assert not memory.is_kept()


def test_nothing_happens_where_glibc_does_not_serve(nothing_asked, monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    with memory.kept() as works:
        assert not works
    assert not memory.keep()
    assert not memory.is_kept()
    assert not memory.restore()


def test_another_allocator_is_left_alone(nothing_asked, monkeypatch):
    addresses = iter((1, 2))
    monkeypatch.setattr(memory, "_address", lambda function: next(addresses))
    monkeypatch.setattr(memory.sys, "platform", "linux")
    assert not memory.keep()


def test_another_libc_is_no_error(nothing_asked, monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(memory.ctypes, "CDLL", missing)
    monkeypatch.setattr(memory.sys, "platform", "linux")
    with memory.kept() as works:
        assert not works


def test_it_costs_nothing_to_import():
    code = "import sys, foveate.memory; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
