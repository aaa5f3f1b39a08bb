"""Which images are the same, and which are nearly: hashes of pixels, then perceptual hashes, then a second look.

The perceptual hash is pHash (Zauner 2010, phash.org/docs/pubs/thesis_zauner.pdf): the signs of an image's low cosine
frequencies against their median. Medical images of one kind look alike, so it takes 16 x 16 frequencies where 8 x 8
are usual, and it only proposes pairs: the correlation of the thumbnails decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from medray.types import Array

FREQUENCIES = 16
BITS_APART = 32
"""Of 255. Brightness, noise, JPEG and half the resolution stay below (measured: 95 % within 20)."""
SAME_CORRELATION = 0.99
"""Of thumbnails of 32 x 32. In 2.9 million pairs of 64 x 64 images of six kinds (medical_mnist, many of them
neighbouring slices of one patient) 26 lie above; of 12,720 pairs of hippocampus volumes none."""
BLOCK_PAIRS = 1 << 23
MOST_PAIRS = 1_000_000


def equal(hashes: Mapping[int, str]) -> list[tuple[int, ...]]:
    """Groups of rows with the same hash, in order."""
    groups: dict[str, list[int]] = {}
    for row, value in hashes.items():
        groups.setdefault(value, []).append(row)
    return [tuple(rows) for rows in groups.values() if len(rows) > 1]


def alike(thumbnails: Array, owners: Array) -> list[tuple[int, int]]:
    """Pairs (i < j) of thumbnails (N, 64, 64) uint8 that show the same picture, give or take brightness and noise.

    Pairs with the same owner (N,), a number from 0 up, are let pass; below 0 nobody knows. At most MOST_PAIRS are
    returned. Not found: mirrored, turned or shifted copies. Time grows as N squared: some 90 s for 100,000.
    """
    codes, small = phash(thumbnails), _standardised(thumbnails)
    pairs: list[tuple[int, int]] = []
    for first, second in _near(codes):
        open_pairs = (owners[first] != owners[second]) | (owners[first] < 0)
        first, second = first[open_pairs], second[open_pairs]
        rows, row = np.unique(first, return_inverse=True)
        columns, column = np.unique(second, return_inverse=True)
        same = (small[rows] @ small[columns].T)[row, column] > SAME_CORRELATION
        pairs += zip(first[same].tolist(), second[same].tolist(), strict=True)
        if len(pairs) >= MOST_PAIRS:
            return pairs[:MOST_PAIRS]
    return pairs


def phash(thumbnails: Array) -> Array:
    """(N, 4) uint64: 255 bits of each thumbnail (N, 64, 64)."""
    edge = thumbnails.shape[-1]
    waves = np.cos(np.pi / edge * np.outer(np.arange(FREQUENCIES), np.arange(edge) + 0.5)).astype(np.float32)
    bits = np.zeros((len(thumbnails), FREQUENCIES**2), bool)
    for row, picture in enumerate(thumbnails):
        # Without the first, which is the mean: brightness is no content.
        strength = (waves @ picture.astype(np.float32) @ waves.T).ravel()[1:]
        bits[row, 1:] = strength > np.median(strength)
    return np.packbits(bits, axis=1).view(np.uint64)


def _standardised(thumbnails: Array) -> Array:
    """(N, 1024) float32 of mean 0 and length 1: their inner products are correlations. Constant ones stay 0."""
    count, edge = thumbnails.shape[0], thumbnails.shape[1] // 2
    small = thumbnails.reshape(count, edge, 2, edge, 2).mean(axis=(2, 4), dtype=np.float32).reshape(count, edge * edge)
    small -= small.mean(axis=1, keepdims=True)
    length = np.linalg.norm(small, axis=1, keepdims=True)
    return np.asarray(small / np.where(length > 0, length, 1))


def _near(codes: Array) -> Iterable[tuple[Array, Array]]:
    """Pairs of rows at most BITS_APART bits apart, in blocks."""
    count = len(codes)
    step = max(1, BLOCK_PAIRS // max(1, count))
    for start in range(0, count, step):
        block, rest = codes[start : start + step], codes[start:]
        apart = np.zeros((len(block), len(rest)), np.uint16)
        for word in range(codes.shape[1]):
            apart += np.bitwise_count(block[:, None, word] ^ rest[None, :, word])
        first, second = np.nonzero(apart <= BITS_APART)
        later = second > first
        yield first[later] + start, second[later] + start


def joined(pairs: Iterable[tuple[int, int]]) -> list[tuple[int, ...]]:
    """Groups of rows that pairs connect, each ascending."""
    above: dict[int, int] = {}

    def root(row: int) -> int:
        while above.setdefault(row, row) != row:
            above[row] = above[above[row]]
            row = above[row]
        return row

    for first, second in pairs:
        low, high = sorted((root(first), root(second)))
        above[high] = low
    groups: dict[int, list[int]] = {}
    for row in sorted(above):
        groups.setdefault(root(row), []).append(row)
    return [tuple(group) for group in groups.values()]
