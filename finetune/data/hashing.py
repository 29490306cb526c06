"""Counter-based randomness of our own, so that no result depends on numpy's version or on who draws first.

Everything starts from SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014),
whose finaliser mixes a 64-bit counter into a 64-bit hash. Normal deviates use the raw stream of Philox
(Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), which numpy keeps stable across versions.
"""

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from statistics import NormalDist
from typing import TypeVar

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
T = TypeVar("T")

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)
_INTEGERS = int(_GAMMA), int(_MIX_1), int(_MIX_2)
_WORD = (1 << 64) - 1


def splitmix64(x: npt.ArrayLike) -> U64:
    """The SplitMix64 finaliser of `x + gamma`, element by element. A bijection of the 64-bit integers."""
    with np.errstate(over="ignore"):  # single numbers would warn, arrays do not
        return _finalised(np.asarray(x, dtype=np.uint64))


def purpose_key(seed: int, purpose: str) -> int:
    """A 64-bit key for one kind of choice ("shuffle", "flip", …) in a run with this seed."""
    digest = hashlib.blake2b(f"{seed}:{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def hash_counters(key: int, *counters: npt.ArrayLike) -> U64:
    """Mix counters (broadcast against one another) into `key`: an independent-looking 64-bit hash for each element."""
    state: U64 = np.asarray(key, dtype=np.uint64)
    for counter in counters:
        state = splitmix64(state ^ splitmix64(counter))
    return state


def to_unit(bits: U64) -> npt.NDArray[np.float64]:
    """The upper 53 bits as a float64 in [0, 1)."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def shuffled_order(hashes: U64) -> npt.NDArray[np.int64]:
    """The permutation that sorts `hashes`; stable, so equal hashes cannot make it ambiguous."""
    return np.argsort(hashes, kind="stable").astype(np.int64)


class CounterRng:
    """The choices of one draw, in the order in which they are asked for.

    A SplitMix64 stream that starts at a hash of (seed, purpose, counters): two draws never share state, and the same
    draw gives the same choices in whichever process, worker or order it is prepared.
    """

    def __init__(self, key: int, *counters: int) -> None:
        # As `hash_counters`, in Python's integers, which are faster one at a time.
        self._state = key
        for counter in counters:
            self._state = _mixed(self._state ^ _mixed(counter))

    def fork(self, number: int) -> "CounterRng":
        """A stream of its own, as if `number` were one more counter: what it gives does not depend on how much others
        are asked for, as long as this one has not been."""
        return CounterRng(self._state, number)

    def bits(self, n: int) -> U64:
        """`n` 64-bit integers."""
        states = np.uint64(self._state) + np.arange(n, dtype=np.uint64) * _GAMMA
        self._state = self._state + n * _INTEGERS[0] & _WORD
        return _finalised(states)

    def at(self, place: int) -> float:
        """The float in [0, 1) at a place of the stream, which does not move; place 0 is what `uniform` would give."""
        return (_mixed(self._state + place * _INTEGERS[0] & _WORD) >> 11) * 2.0**-53

    def uniform(self) -> float:
        """A float in [0, 1)."""
        mixed = _mixed(self._state)
        self._state = self._state + _INTEGERS[0] & _WORD
        return (mixed >> 11) * 2.0**-53

    def uniforms(self, n: int) -> npt.NDArray[np.float64]:
        """`n` floats in [0, 1)."""
        return to_unit(self.bits(n))

    def uniforms_of(self, numbers: U64, count: int) -> npt.NDArray[np.float64]:
        """`count` floats in [0, 1) for each of some hashes, the same whatever the others are; the stream does not move.

        Args:
            numbers: uint64 [n], of which all bits are used.

        Returns:
            float64 [count, n].
        """
        return to_unit(_finalised((numbers ^ np.uint64(self._state)) + _strides(count)))

    def integer(self, n: int) -> int:
        """An integer in [0, n)."""
        return int(self.uniform() * n)

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in a random order."""
        return [items[i] for i in shuffled_order(self.bits(len(items))).tolist()]

    def normal(self, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Standard normal deviates, from the raw stream of a Philox keyed by the next two draws: each is the sum of two
        of the 65,536 quantiles of a normal of variance 1/2, so that no function of a processor's library is involved
        but in the table, where it is rounded away. They reach 6.1 standard deviations."""
        count = int(np.prod(shape))
        raw = np.random.Philox(key=self.bits(2)).random_raw(-(-count // 2))
        terms = np.take(_half_normal_quantiles(), raw.astype("<u8", copy=False).view("<u2"))
        deviates: npt.NDArray[np.float32] = terms[: len(terms) // 2] + terms[len(terms) // 2 :]
        return deviates[:count].reshape(shape)


def weighted(choice: float, weights: Sequence[float]) -> int:
    """An index of `weights`, each as probable as its share of their sum, which is above 0, if `choice` is uniform in
    [0, 1)."""
    sums = list(accumulate(weights))
    # Rounding may take the product up to the sum itself.
    return min(bisect_right(sums, choice * sums[-1]), bisect_left(sums, sums[-1]))


@cache
def _strides(count: int) -> U64:
    """How far apart the streams of a number lie: uint64 [count, 1]."""
    strides: U64 = np.arange(count, dtype=np.uint64)[:, None] * _GAMMA
    return strides


def _finalised(x: U64) -> U64:
    z = x + _GAMMA
    z = (z ^ (z >> _30)) * _MIX_1
    z = (z ^ (z >> _27)) * _MIX_2
    return z ^ (z >> _31)


def _mixed(x: int) -> int:
    """`splitmix64` of one integer."""
    gamma, mix_1, mix_2 = _INTEGERS
    z = x + gamma & _WORD
    z = (z ^ z >> 30) * mix_1 & _WORD
    z = (z ^ z >> 27) * mix_2 & _WORD
    return z ^ z >> 31


@cache
def _half_normal_quantiles() -> npt.NDArray[np.float32]:
    """The quantiles (i + ½)/65,536 of a normal distribution, scaled to a variance of 1/2 exactly."""
    normal = NormalDist()
    quantiles = np.array([normal.inv_cdf((i + 0.5) / 65536) for i in range(65536)])
    scaled: npt.NDArray[np.float32] = (quantiles / np.sqrt(2.0 * np.square(quantiles).mean())).astype(np.float32)
    return scaled
