"""What one-file volumes (NIfTI, NRRD) share: voxels behind a header, and where they are; both read strictly.

Source of the compression: gzip (RFC 1952).
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import IO, Any

import numpy as np
from isal import igzip, isal_zlib

from medray.types import Array, InputError

SPACING_MM = (0.01, 50.0)
"""Voxel edges outside of this are mistakes of the unit, not images of a person."""
SPACING_HINT = "set the spatial unit and the affine of the file to what was measured"
SLACK_BYTES = 64 << 10


@contextmanager
def unpacked(content: bytes | memoryview, packed: bool) -> Iterator[IO[bytes]]:
    """A stream of `content`, inflated where it is `packed` by gzip.

    What the stream finds damaged within the block raises truncated, checksum, trailing_data or corrupt.
    """
    try:
        yield igzip.IGzipFile(fileobj=BytesIO(content), mode="rb") if packed else BytesIO(content)
    except EOFError:
        raise InputError("truncated", "the compressed stream ends before its trailer") from None
    except gzip.BadGzipFile as error:
        # The first member was seen to start as gzip does, so what is no gzip can only be behind it.
        if "Not a gzipped file" in str(error):
            raise InputError("trailing_data", "bytes that are not gzip follow the compressed image") from None
        raise InputError("checksum", "the checksum or length in the gzip trailer does not fit the data") from None
    except isal_zlib.IsalError:  # type: ignore[misc]  # its stub says instance where it is the class
        raise InputError("corrupt", "the compressed stream is damaged") from None


def voxel_bytes(stream: IO[bytes], count: int) -> Array:
    """The next `count` bytes (uint8), which must be the last of the stream.

    They are inflated straight into the result: there is no second copy, and no byte beyond what was announced.
    Raises truncated, trailing_data, too_large_decompressed.
    """
    raw, done = np.empty(count, np.uint8), 0
    target = raw.data
    while done < count:
        got = stream.readinto(target[done:])  # type: ignore[attr-defined]
        if not got:
            raise InputError("truncated", f"{done} of {count} bytes of voxels are there")
        done += got
    # Reading past the last voxel is also what makes the gzip trailer be checked.
    extra = len(stream.read(SLACK_BYTES))
    if extra == SLACK_BYTES:
        raise InputError("too_large_decompressed", "the file goes on after the voxels that its header announces")
    if extra:
        raise InputError("trailing_data", f"{extra} bytes follow the last voxel")
    return raw


def as_image(voxels: Array, slope: float = 1.0, offset: float = 0.0) -> Array:
    """Voxels (k, j, i) as stored to an image (1, i, j, k): C-contiguous, native, times `slope` plus `offset`.

    Unscaled integers keep their type; all else is computed in float64 and kept as float32.
    """
    scaled = (slope, offset) != (1.0, 0.0)
    kind: np.dtype[Any] = np.dtype(np.float32)
    if voxels.dtype.kind in "iu" and not scaled:
        kind = voxels.dtype.newbyteorder("=")
    source = voxels.transpose(2, 1, 0)
    image = np.empty((1, *source.shape), kind)
    # Plane by plane both sides of the transposition stay in the cache, and float64 never takes more than a plane.
    with np.errstate(over="ignore", invalid="ignore"):
        for j in range(source.shape[1]):
            plane = source[:, j, :]
            image[0, :, j, :] = plane.astype(np.float64) * slope + offset if scaled else plane
    return image


def check_affine(affine: Array, name: str) -> None:
    """Raise bad_affine where the affine (4, 4), which the file calls `name`, cannot be that of a volume."""
    linear = affine[:3, :3]
    edges = np.linalg.norm(linear, axis=0)
    # Edges that are not orthogonal are a sheared image; edges in one plane are no volume.
    if not np.isfinite(affine).all() or edges.min() == 0 or abs(np.linalg.det(linear / edges)) < 1e-3:
        raise InputError(
            "bad_affine", f"the {name} holds a value that is not finite or is not invertible", SPACING_HINT
        )


def check_spacing(affine: Array) -> None:
    """Raise implausible_spacing where a voxel edge of the affine (4, 4), in mm, is none of an image of a person."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() < SPACING_MM[0] or spacing.max() > SPACING_MM[1]:
        edges = " x ".join(f"{edge:g}" for edge in spacing)
        limit = f"{SPACING_MM[0]:g} to {SPACING_MM[1]:g} mm"
        raise InputError("implausible_spacing", f"voxels of {edges} mm, {limit} are plausible", SPACING_HINT)
