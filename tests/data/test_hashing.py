"""Counter-based randomness."""

from statistics import NormalDist

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.hashing import CounterRng, hash_counters, purpose_key, shuffled_order, splitmix64, to_unit


def test_splitmix64_gives_the_published_sequence() -> None:
    # The reference implementation's first outputs for seed 1234567 (Vigna, splitmix64.c).
    gamma = 0x9E3779B97F4A7C15
    states = [(1234567 + i * gamma) % 2**64 for i in range(3)]
    assert splitmix64(np.array(states, dtype=np.uint64)).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@given(st.integers(0, 2**63), st.lists(st.integers(0, 2**32), min_size=1, max_size=3))
def test_streams_depend_on_key_and_counters_alone(key: int, counters: list[int]) -> None:
    first, second = CounterRng(key, *counters), CounterRng(key, *counters)
    in_one_go = first.bits(5)
    assert in_one_go.tolist() == [int(second.bits(1)[0]) for _ in range(5)]
    singly = CounterRng(key, *counters)
    assert [singly.uniform() for _ in range(5)] == to_unit(in_one_go).tolist()
    assert in_one_go[0] == splitmix64(hash_counters(key, *counters))
    other = CounterRng(key, *counters[:-1], counters[-1] + 1)
    assert other.bits(5).tolist() != in_one_go.tolist()


def test_purposes_and_seeds_do_not_share_keys() -> None:
    keys = {purpose_key(seed, purpose) for seed in range(50) for purpose in ("noise", "flip", "crop")}
    assert len(keys) == 150


def test_hashes_of_consecutive_counters_look_uniform() -> None:
    hashes = hash_counters(purpose_key(0, "test"), 3, np.arange(100_000))
    assert len(np.unique(hashes)) == 100_000
    counts = np.bincount((hashes >> np.uint64(58)).astype(int), minlength=64)
    expected = 100_000 / 64
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 120  # 63 degrees of freedom: exceeded once in 20,000


def test_normal_deviates_have_the_moments_and_tails_of_a_normal() -> None:
    x = CounterRng(purpose_key(0, "test"), 1).normal((400, 501)).astype(np.float64)
    assert x.shape == (400, 501)
    n = x.size
    assert abs(x.mean()) < 5 / n**0.5
    assert abs(x.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs((x**4).mean() - 3) < 5 * (96 / n) ** 0.5
    assert abs((np.abs(x) > 1.959964).mean() - 0.05) < 5 * (0.05 * 0.95 / n) ** 0.5
    for deviations in (1.0, 3.0, 4.0):
        share = 2 * NormalDist().cdf(-deviations)
        assert abs((np.abs(x) > deviations).mean() - share) < 5 * (share / n) ** 0.5
    assert abs(np.corrcoef(x.ravel()[:-1], x.ravel()[1:])[0, 1]) < 5 / n**0.5


def test_shuffles_reach_every_order_equally_often() -> None:
    counts: dict[tuple[int, ...], int] = {}
    for i in range(6000):
        order = tuple(CounterRng(purpose_key(0, "test"), i).shuffled([0, 1, 2]))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert all(abs(count - 1000) < 5 * (1000 * 5 / 6) ** 0.5 for count in counts.values())


def test_equal_hashes_keep_their_order() -> None:
    assert shuffled_order(np.array([7, 3, 7, 3], dtype=np.uint64)).tolist() == [1, 3, 0, 2]
