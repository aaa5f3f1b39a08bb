"""What a reader takes: sizes it will allocate for and values it will hand on. Checked before memory is taken."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medray.types import Array, InputError


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one input may take; beyond it the input is refused before memory is taken for it."""

    max_file_bytes: int = 2 << 30
    """As stored (compressed)."""
    max_decompressed_bytes: int = 4 << 30
    """As announced by the header, and as inflated."""
    max_pixels: int = 100_000_000
    """Rows times columns of a 2D image."""
    max_voxels: int = 1 << 30
    """Voxels of a 3D image (1024 per edge)."""
    max_text_bytes: int = 1 << 20
    """One inflated text or profile chunk of a PNG."""

    def check_path(self, path: Path) -> os.stat_result:
        """What the file system says of `path`.

        Raises not_found, not_readable, unsupported_type, empty_file or too_large.
        """
        try:
            about = path.stat()
        except (FileNotFoundError, NotADirectoryError, ValueError):
            raise InputError("not_found", "there is no such file") from None
        except OSError as error:
            raise InputError("not_readable", f"the file cannot be read ({error.strerror})") from None
        # A folder fails to open; a pipe or a device opens, and could be read for ever.
        if not stat.S_ISREG(about.st_mode):
            raise InputError("unsupported_type", "the path names a folder or a device, not a file")
        self.check_file(about.st_size)
        return about

    def check_file(self, size: int) -> None:
        """Raise empty_file or too_large for `size` stored bytes."""
        if size == 0:
            raise InputError("empty_file", "the file has 0 bytes", "upload or copy the file again")
        if size > self.max_file_bytes:
            raise InputError("too_large", f"the file has {size} bytes, the limit is {self.max_file_bytes}")

    def check_grid(self, shape: Sequence[int], bytes_per_voxel: int) -> None:
        """Raise bad_header, empty_image, too_large_decompressed, too_many_pixels or too_many_voxels for `shape` (*S).

        `shape` must hold Python ints: a product of fixed-width integers can overflow to a harmless number.
        """
        grid = " x ".join(map(str, shape))
        if min(shape) < 0:
            raise InputError("bad_header", f"the header announces a negative size, {grid}")
        if min(shape) == 0:
            raise InputError("empty_image", f"the header announces {grid}, which holds no voxel")
        voxels, flat = math.prod(shape), len(shape) == 2
        most = self.max_pixels if flat else self.max_voxels
        if flat and voxels > most:
            raise InputError("too_many_pixels", f"{grid} is {voxels} pixels, the limit is {most}")
        self.check_bytes(voxels * bytes_per_voxel)
        if voxels > most:
            raise InputError("too_many_voxels", f"{grid} is {voxels} voxels, the limit is {most}")

    def check_bytes(self, size: int) -> None:
        """Raise too_large_decompressed for `size` announced or inflated bytes."""
        if size > self.max_decompressed_bytes:
            raise InputError(
                "too_large_decompressed", f"{size} bytes when unpacked, the limit is {self.max_decompressed_bytes}"
            )


DEFAULT_LIMITS = Limits()
TOLERANCE_VOXELS = 1e-3
"""How far a corner of a label's grid may be from the image's."""
WRAPPED = (0x4000, 0xC000)
"""The middle half of what 16 bits hold, which signed values of an image do not reach when they are read as unsigned."""


def check_values(image: Array) -> tuple[str, ...]:
    """The warnings that the values of `image` deserve: constant_image, implausible_intensity (see `_is_wrapped`).

    Raises non_finite_voxels where any is NaN or infinite.
    """
    with np.errstate(invalid="ignore"):
        low, high = image.min(), image.max()
    # One NaN or infinity anywhere shows in the minimum or the maximum: no mask of the whole image is needed.
    if image.dtype.kind == "f" and not (np.isfinite(low) and np.isfinite(high)):
        count = image.size - int(np.count_nonzero(np.isfinite(image)))
        raise InputError(
            "non_finite_voxels",
            f"{count} of {image.size} voxels are NaN or infinite in float32",
            "replace them by a number that means background before the file is used",
        )
    if low == high:
        return ("constant_image",)
    wrapped = image.dtype == np.uint16 and low < WRAPPED[0] and high >= WRAPPED[1] and _is_wrapped(image)
    return ("implausible_intensity",) if wrapped else ()


def _is_wrapped(image: Array) -> bool:
    """Whether uint16 values were negative: some near the top, none in the middle half, and not a mask's one value."""
    top = image >= WRAPPED[1]
    return not ((image >= WRAPPED[0]) & ~top).any() and bool((image[top] != np.iinfo(image.dtype).max).any())
