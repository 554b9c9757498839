"""Counter-based randomness: every draw is a pure function of (seed, purpose, epoch, sample_id, draw).

Nothing here has state, so a result never depends on the number of workers, partitions or restarts.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

Epoch = int | NDArray[np.int64]
"""One for all ids, or one for each."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finaliser of SplitMix64 (Steele et al., 2014): a bijection of 64-bit words with full avalanche."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def hash64(seed: int, purpose: str, epoch: Epoch, sample_ids: NDArray[np.int64], draw: int = 0) -> NDArray[np.uint64]:
    """64 random bits per id, uint64 of the shape of `sample_ids`; equal arguments give equal bits on any platform."""
    with np.errstate(over="ignore"):
        state = np.zeros(1, dtype=np.uint64)
        for word in (seed & 0xFFFFFFFFFFFFFFFF, zlib.crc32(purpose.encode()), epoch, draw):
            state = _mix(state + np.asarray(word, dtype=np.uint64) + _GOLDEN)
        return _mix(state + (np.asarray(sample_ids).astype(np.uint64) + np.uint64(1)) * _GOLDEN)


def uniform(seed: int, purpose: str, epoch: Epoch, sample_ids: NDArray[np.int64], draw: int = 0) -> NDArray[np.float64]:
    """Uniform float64 in the open interval (0, 1), one per id."""
    bits = hash64(seed, purpose, epoch, sample_ids, draw) >> np.uint64(12)
    return (bits.astype(np.float64) + 0.5) * 2.0**-52


def permutation(seed: int, purpose: str, epoch: int, sample_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The ids in random order: sorted by (hash, id), so the order of the argument does not matter."""
    ids = np.sort(np.asarray(sample_ids, dtype=np.int64))
    return ids[np.argsort(hash64(seed, purpose, epoch, ids), kind="stable")]
