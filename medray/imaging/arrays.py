"""NumPy array files: a .npy that is one image, and rows of the arrays in an .npz or .npy (MedMNIST).

Source of the layout: numpy.lib.format; of (N, row, column), (N, row, column, 3) and (N, i, j, k): MedMNIST v2
(Yang 2023, 10.1038/s41597-022-01721-8). Nothing is ever unpickled.
"""

from __future__ import annotations

import zipfile
import zlib
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from medray.imaging.limits import Limits, check_values
from medray.types import Array, ArrayRef, Case, InputError

KEPT_ARRAYS = 3
"""The training, validation and test images of one file."""


def read(content: bytes, case_id: str, limits: Limits) -> Case:
    """One image from the bytes of a .npy: (row, column), (row, column, 1 or 3) or (i, j, k); unit 'px'.

    Raises truncated, trailing_data, bad_header, unsafe_data, unsupported_dtype, empty_image, wrong_rank,
    too_large_decompressed, too_many_pixels, too_many_voxels, non_finite_voxels. Warns: constant_image.
    """
    return _case(_read_npy(BytesIO(content), len(content), limits), case_id, limits)


def read_row(ref: ArrayRef, limits: Limits) -> Case:
    """Row `ref.index` of an array, as one image; case_id is '<file>-<member>-<index>'.

    The last arrays are kept in memory, so that reading N rows inflates them once; a file that changed is
    read anew. Raises what `read` raises, and not_found, too_large, corrupt, missing_member, index_out_of_range.
    """
    path = Path(ref.path)
    about = limits.check_path(path)
    array = _load(path, about.st_mtime_ns, about.st_size, ref.member, limits)
    if array.ndim < 3:
        raise InputError("wrong_rank", f"the array has shape {array.shape}; images start at (N, row, column)")
    if not 0 <= ref.index < len(array):
        raise InputError("index_out_of_range", f"index {ref.index} of an array of {len(array)} images")
    return _case(array[ref.index], f"{path.stem}-{ref.member}-{ref.index:06d}", limits)


@lru_cache(maxsize=KEPT_ARRAYS)
def _load(path: Path, _mtime_ns: int, size: int, member: str, limits: Limits) -> Array:
    try:
        with path.open("rb") as file:
            if member:
                return _read_member(file, member, limits)
            return _read_npy(file, size, limits)
    except OSError as error:
        raise InputError("not_readable", f"the file cannot be read ({error.strerror})") from None


def _read_member(file: IO[bytes], member: str, limits: Limits) -> Array:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if f"{member}.npy" not in names:
                known = ", ".join(sorted(Path(name).stem for name in names)[:20])
                raise InputError("missing_member", f"the file has no array '{member}'", f"it has {known}")
            about = archive.getinfo(f"{member}.npy")
            with archive.open(about) as stream:
                return _read_npy(stream, about.file_size, limits)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        code = "checksum" if "CRC" in str(error) else "corrupt"
        raise InputError(code, "the archive is damaged, encrypted or packed by an unknown method") from None
    except EOFError:
        raise InputError("truncated", "the archive ends inside the array") from None


def _read_npy(stream: IO[bytes], size: int, limits: Limits) -> Array:
    """The array of a .npy stream of `size` bytes; its header is checked before its memory is taken."""
    try:
        version = npy.read_magic(stream)
        parse = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = parse(stream)
    except Exception as error:
        # The header is Python text that numpy parses: damaged, it raises whatever Python's tokenizer and parser do.
        raise InputError("bad_header", "the .npy header is damaged or not of version 1 or 2") from error
    _check_dtype(dtype)
    # The file is one array: the limit on bytes holds for it, those on the grid for each image in it.
    count = 1
    for length in shape:
        count *= int(length)
    if count <= 0 or min(shape, default=1) < 0:
        raise InputError("empty_image", f"the array has shape {shape}, which holds no voxel")
    announced, there = count * dtype.itemsize, size - stream.tell()
    limits.check_bytes(announced)
    if there != announced:
        code = "truncated" if there < announced else "trailing_data"
        raise InputError(code, f"the header announces {announced} bytes of voxels, {there} are there")
    content = stream.read(announced + 1)
    if len(content) != announced:
        raise InputError("truncated", f"{len(content)} of {announced} bytes of voxels are there")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _check_dtype(dtype: np.dtype[Any]) -> None:
    if dtype.hasobject:
        raise InputError("unsafe_data", "the array holds Python objects, which are never loaded", "save numbers only")
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise InputError("unsupported_dtype", f"voxels of type {dtype} are not real numbers of up to 64 bits")


def _case(image: Array, case_id: str, limits: Limits) -> Case:
    """A last axis of 1 or 3 behind two others is channels; any other three axes are a volume."""
    if image.ndim == 2:
        image = image[None]
    elif image.ndim == 3:
        image = np.moveaxis(image, -1, 0) if image.shape[-1] in (1, 3) else image[None]
    else:
        raise InputError("wrong_rank", f"an image of shape {image.shape}", "give (row, column[, 3]) or (i, j, k)")
    limits.check_grid(image.shape[1:], image.dtype.itemsize)
    kind: np.dtype[Any] = image.dtype.newbyteorder("=")
    if kind.kind in "bf":
        kind = np.dtype(np.uint8 if kind.kind == "b" else np.float32)
    with np.errstate(over="ignore"):
        own = image.astype(kind, order="C")
    return Case(case_id=case_id, image=own, affine=np.eye(4), warnings=check_values(own))
