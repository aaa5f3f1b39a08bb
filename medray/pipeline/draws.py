"""Random numbers that depend on (seed, epoch, case) alone: without state, so no worker, batch or resume changes them.

Every number is a hash of its coordinates by the finaliser of SplitMix64 (Steele, Lea and Flood 2014,
10.1145/2660193.2660195), a counter-based generator in the sense of Salmon 2011 (10.1145/2063384.2063405).
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Keys = NDArray[np.uint64]
Rows = NDArray[np.int64]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


class Stream(IntEnum):
    """What the numbers are for; a number given to another use would change the runs that exist."""

    FLIP = 0
    ROTATE = 1
    SCALE = 2
    SHEAR = 3
    SHIFT = 4
    CROP = 5
    GAMMA = 6
    BRIGHTNESS = 7
    CONTRAST = 8
    NOISE = 9
    BLUR = 10
    CUTOUT = 11
    MIXUP = 12
    NOISE_FIELD = 13
    PATCH = 14


class Key(NamedTuple):
    """Where in a run the numbers are drawn."""

    seed: int
    epoch: int
    rows: Rows
    """(B,) the row of each case in the store."""


def keys(key: Key, stream: int) -> Keys:
    """(B,) 64-bit numbers, one per case: seeds for generators of its own."""
    state = 0
    for value in (key.seed, key.epoch, stream):
        state = int(_mix(np.asarray([state], np.uint64), np.asarray([value & _MASK], np.uint64))[0])
    index = np.asarray(key.rows, np.int64).astype(np.uint64)
    return _mix(np.full(index.shape, state, np.uint64), index)


def uniform(key: Key, stream: int, n: int) -> Floats:
    """(B, n) numbers in [0, 1), `n` per case, with the 53 bits that a double holds."""
    bits = _mix(keys(key, stream)[:, None], np.arange(n, dtype=np.uint64)[None, :])
    return np.asarray((bits >> np.uint64(11)) * 2.0**-53, np.float64)


def pick(key: Key, stream: int, p: float, n: int) -> tuple[Rows, Floats]:
    """The cases for which a coin of probability `p` falls, as positions (R,), and `n` numbers for each, (R, n)."""
    if p == 0 or len(key.rows) == 0:
        return np.empty(0, np.int64), np.empty((0, n))
    drawn = uniform(key, stream, n + 1)
    rows = np.flatnonzero(drawn[:, 0] < p).astype(np.int64)
    return rows, drawn[rows, 1:]


def _mix(state: Keys, value: Keys) -> Keys:
    """One SplitMix64 step from `state` by `value` + 1 increments; uint64 arrays wrap by definition."""
    bits = state + (value + np.uint64(1)) * np.uint64(_GOLDEN)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(bits ^ (bits >> np.uint64(31)), np.uint64)
