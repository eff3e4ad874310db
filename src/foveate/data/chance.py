"""Random numbers as pure functions: the same (seed, epoch, index, stream) gives the same draw.

Each draw hashes its coordinates with the finaliser of splitmix64 (Steele, Lea
and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), so
order and augmentation do not depend on batch size, workers, processes or on
where a run was interrupted.
"""

import zlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniform(seed: int, epoch: int, indices: np.ndarray | int, stream: str | int) -> np.ndarray:
    """Float64 in [0, 1), one for each index (N,)."""
    return (_hash(seed, epoch, indices, stream) >> np.uint64(11)) * 2.0**-53


def integers(
    seed: int, epoch: int, indices: np.ndarray | int, stream: str | int, below: int
) -> np.ndarray:
    """Int64 in [0, below), one for each index (N,)."""
    return (uniform(seed, epoch, indices, stream) * below).astype(np.int64)


def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """An order of `n` things: int64 (n,)."""
    return np.argsort(_hash(seed, epoch, np.arange(n), "order"), kind="stable")


def beta(seed: int, epoch: int, index: int, stream: str, alpha: float) -> float:
    """One draw from Beta(alpha, alpha)."""
    key = int(_hash(seed, epoch, index, stream)[0])
    return float(np.random.Generator(np.random.Philox(key=key)).beta(alpha, alpha))


def _hash(seed: int, epoch: int, indices: np.ndarray | int, stream: str | int) -> np.ndarray:
    word = zlib.crc32(stream.encode()) if isinstance(stream, str) else stream
    state = np.full(1, seed % 2**64, np.uint64)
    for coordinate in (epoch, word):
        state = _mix(state ^ _mix(np.full(1, coordinate % 2**64, np.uint64)))
    return _mix(state ^ _mix(np.atleast_1d(np.asarray(indices)).astype(np.uint64)))


def _mix(x: np.ndarray) -> np.ndarray:
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
