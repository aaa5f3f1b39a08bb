"""Masks and probabilities out, on exactly the grid of the file that they belong to, and the volumes of what they mark.

A result for a NIfTI file has that file's own header where it says where the voxels are: bit for bit, both transforms
and their codes. Results for other files (NRRD, DICOM) are written by `writer.write_nifti` with the affine of the case.
Sources: the header of NIfTI-1.1 (nifti.nimh.nih.gov/nifti-1) and of NIfTI-2.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from medray.imaging.labels import value_counts
from medray.imaging.volume import unpacked
from medray.imaging.writer import write_nifti_file, write_png
from medray.types import Array, InputError

HEAD_BYTES = 64 << 10
"""What is read of a source: packed or plain, the header of 348 or 540 bytes is in it."""
PLACE = ("xyzt_units", "qform_code", "sform_code", "pixdim", *(f"quatern_{axis}" for axis in "bcd"))
PLACE = (*PLACE, *(f"qoffset_{axis}" for axis in "xyz"), *(f"srow_{axis}" for axis in "xyz"))
"""The fields that say where the voxels are. No other is taken over: names and descriptions may hold a patient's data,
and timing, scaling and display range are the image's, not the mask's."""
LABEL, ESTIMATE = 1002, 1001
"""Intent codes: viewers (NiiVue, FSLeyes, MRIcroGL) show the first in colours of classes and never interpolate it."""


def write_mask_like(target: Path, mask: Array, source: Path | bytes) -> None:
    """Write `mask` (i, j, k) of class values, or overlapping regions (R, i, j, k) bool, on the grid of a NIfTI file.

    `source` is that file, plain or gzip, NIfTI-1 or -2, little- or big-endian; (i, j, k) is its stored order, in
    which medray reads it. The result (.nii or .nii.gz) is of its kind and byte order: affine, shape, pixdim, units,
    sform, qform and their codes are the same bits. Voxels are uint8, uint16 where a value needs it; scl_slope 1 and
    scl_inter 0 say that they are unscaled (to nibabel, ITK, FSL and SPM alike). Regions become a fourth axis.

    Raises ValueError for a mask of another shape or of no class values, or another suffix; InputError as
    `nifti.read_header` does, and what a damaged gzip raises.
    """
    _write_like(target, narrow(mask), source, LABEL)


def write_probabilities_like(target: Path, probabilities: Array, source: Path | bytes) -> None:
    """Write `probabilities` (K, i, j, k) as float32 (i, j, k, K) on the grid of a NIfTI file; see `write_mask_like`."""
    if probabilities.ndim != 4 or probabilities.dtype.kind != "f":
        raise ValueError(f"probabilities are (K, i, j, k) real, not {probabilities.shape} {probabilities.dtype}")
    _write_like(target, probabilities.astype(np.float32, copy=False), source, ESTIMATE)


def write_mask_png(target: Path, mask: Array) -> None:
    """Write `mask` (row, column) of class values as a grey PNG whose pixels are these values, 8 or 16 bits.

    It is for programs: `overlay.overlay` is what a person can see. Raises ValueError for what is no mask.
    """
    write_png(target, narrow(mask))


def narrow(mask: Array) -> Array:
    """`mask` as uint8, or as uint16 where a value needs it. Raises ValueError for what are no class values."""
    mask = np.asarray(mask)
    if mask.dtype == np.bool_:
        return mask.view(np.uint8)
    low, high = (int(mask.min()), int(mask.max())) if mask.size and mask.dtype.kind in "iu" else (-1, -1)
    if low < 0 or high > np.iinfo(np.uint16).max:
        raise ValueError(f"a mask holds whole numbers from 0 to 65535, not {mask.dtype} from {low} to {high}")
    return mask.astype(np.min_scalar_type(high), copy=False)


def voxels_of(parts: Array) -> dict[int, int]:
    """Value -> number of voxels of what is there, background aside, in ascending order.

    `parts` is (1, *S) of class values, or (R, *S) bool of regions, which are the values 1 to R.
    """
    if parts.dtype == np.bool_:
        counts = {region: int(np.count_nonzero(inside)) for region, inside in enumerate(parts, start=1)}
        return {region: count for region, count in counts.items() if count}
    # Most of a mask is background, which need not be counted.
    inside = narrow(parts)[parts != 0]
    return value_counts(inside) if inside.size else {}


def _write_like(target: Path, voxels: Array, source: Path | bytes, intent: int) -> None:
    """Write (i, j, k) or (N, i, j, k) with the place that the header of `source` says."""
    header = _source_header(source)
    shape = tuple(int(length) for length in header["dim"][1:4])
    if voxels.ndim not in (3, 4) or voxels.shape[-3:] != shape:
        raise ValueError(f"the source is {' x '.join(map(str, shape))}, what is to lie on it {voxels.shape}")
    new = type(header)(endianness=header.endianness)
    for field in PLACE:
        new[field] = header[field]
    axes = shape if voxels.ndim == 3 else (*shape, len(voxels))
    new["dim"] = [len(axes), *axes, *[1] * (7 - len(axes))]
    if len(axes) == 4:
        new["pixdim"][4] = 1
    dtype = voxels.dtype.newbyteorder(header.endianness)
    new.set_data_dtype(dtype)
    new["scl_slope"], new["scl_inter"] = 1, 0
    new["vox_offset"] = len(new.binaryblock) + 4
    new["intent_code"] = intent
    volumes = voxels[None] if voxels.ndim == 3 else voxels
    write_nifti_file(target, bytes(new.binaryblock), volumes, dtype)


def _source_header(source: Path | bytes) -> Any:
    """nibabel's header of a NIfTI file, of which no more is read and unpacked than it takes."""
    from medray.imaging import nifti

    if isinstance(source, bytes):
        head = source[:HEAD_BYTES]
    else:
        try:
            with source.open("rb") as file:
                head = file.read(HEAD_BYTES)
        except OSError as error:
            raise InputError("not_readable", f"the file cannot be read ({error.strerror})") from None
    with unpacked(head, head.startswith(b"\x1f\x8b")) as stream:
        return nifti.read_header(BytesIO(stream.read(540)))
