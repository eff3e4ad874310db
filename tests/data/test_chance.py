"""Counter-based random numbers are uniform, independent, and functions of their coordinates."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.data import chance

MANY = np.arange(200_000)
words = st.integers(0, 2**63 - 1)


def splitmix64(x: int) -> int:
    """The slow readable twin, in Python's own integers."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


@given(seed=st.integers(-(2**63), 2**64 - 1), epoch=words, index=words, stream=words)
def test_a_draw_is_the_top_53_bits_of_the_hash(seed, epoch, index, stream):
    state = seed % 2**64
    for coordinate in (epoch, stream, index):
        state = splitmix64(state ^ splitmix64(coordinate))
    assert chance.uniform(seed, epoch, index, stream)[0] == (state >> 11) * 2.0**-53


def test_splitmix64_gives_the_published_sequence():
    """The first outputs of the reference generator (Vigna, prng.di.unimi.it) from seed 1234567."""
    seed, golden = 1234567, 0x9E3779B97F4A7C15
    states = np.array([(seed + k * golden) % 2**64 for k in range(3)], np.uint64)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert chance._mix(states).tolist() == expected


@given(order=st.permutations(range(20)), cut=st.integers(0, 20))
def test_draws_do_not_depend_on_company_or_order(order, cut):
    together = chance.uniform(1, 2, np.arange(20), "flip")
    first, second = np.array(order[:cut], int), np.array(order[cut:], int)
    parts = [chance.uniform(1, 2, part, "flip") for part in (first, second)]
    assert np.array_equal(np.concatenate(parts), together[order])


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
@pytest.mark.parametrize("epoch", [0, 1, 1000])
def test_uniform_fills_its_bins_evenly(seed, epoch):
    draws = chance.uniform(seed, epoch, MANY, "flip")
    counts = np.bincount((draws * 100).astype(int), minlength=100)
    chi_squared = ((counts - 2000) ** 2 / 2000).sum()
    assert draws.min() >= 0
    assert draws.max() < 1
    assert 45 < chi_squared < 175  # 99 degrees of freedom: beyond is rarer than 1 in 100,000


@pytest.mark.parametrize(
    "other",
    [
        dict(seed=1, epoch=0, indices=MANY, stream="a"),
        dict(seed=0, epoch=1, indices=MANY, stream="a"),
        dict(seed=0, epoch=0, indices=MANY, stream="b"),
        dict(seed=0, epoch=0, indices=MANY + 1, stream="a"),
        dict(seed=0, epoch=0, indices=MANY ^ 1, stream="a"),
    ],
    ids=["seed", "epoch", "stream", "next index", "neighbour"],
)
def test_draws_at_other_coordinates_are_uncorrelated(other):
    draws = chance.uniform(0, 0, MANY, "a")
    correlation = np.corrcoef(draws, chance.uniform(**other))[0, 1]
    assert abs(correlation) < 5 / np.sqrt(len(MANY))


def test_swapping_seed_and_epoch_gives_other_draws():
    assert not np.any(chance.uniform(3, 5, MANY, "a") == chance.uniform(5, 3, MANY, "a"))


@given(below=st.integers(1, 2**40), seed=words)
def test_integers_are_in_range(below, seed):
    draws = chance.integers(seed, 0, np.arange(50), "op", below)
    assert draws.dtype == np.int64
    assert draws.min() >= 0
    assert draws.max() < below


def test_integers_are_equally_likely():
    counts = np.bincount(chance.integers(0, 0, MANY, "op", 14), minlength=14)
    assert np.abs(counts - len(MANY) / 14).max() < 5 * np.sqrt(len(MANY) / 14)


@given(n=st.integers(0, 300), seed=words, epoch=words)
def test_a_permutation_holds_everything_once(n, seed, epoch):
    assert sorted(chance.permutation(seed, epoch, n)) == list(range(n))


def test_every_permutation_of_four_is_equally_likely():
    orders = [tuple(chance.permutation(0, epoch, 4)) for epoch in range(4800)]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert np.abs(counts - 200).max() < 5 * np.sqrt(200)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_beta_has_its_moments(alpha):
    draws = np.array([chance.beta(0, epoch, 7, "mix-share", alpha) for epoch in range(4000)])
    deviation = np.sqrt(1 / (4 * (2 * alpha + 1)))
    assert abs(draws.mean() - 0.5) < 4 * deviation / np.sqrt(len(draws))
    assert draws.std() == pytest.approx(deviation, rel=0.06)
    assert chance.beta(0, 3, 7, "mix-share", alpha) == draws[3]
