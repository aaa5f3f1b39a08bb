"""Images out: PNG and NIfTI, byte for byte the same for the same input; a file is there whole or not at all."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np

from medray.types import Array

NIFTI_DTYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]


def write_png(path: Path, image: Array) -> None:
    """Write `image` as `png_bytes` says."""
    content = png_bytes(image)
    with replacing(path) as file:
        file.write(content)


def png_bytes(image: Array) -> bytes:
    """`image`, (rows, columns) uint8 or uint16 or (rows, columns, 3) uint8, as a PNG without loss.

    Raises ValueError for another shape or dtype: nothing is rescaled or clipped to fit.
    """
    from PIL import Image

    image = np.asarray(image)
    grey = image.ndim == 2 and image.dtype in (np.uint8, np.uint16)
    colour = image.ndim == 3 and image.shape[-1] == 3 and image.dtype == np.uint8
    if not (grey or colour) or image.size == 0:
        raise ValueError(
            f"a PNG holds (rows, columns) uint8 or uint16 or (rows, columns, 3) uint8, not {image.shape} {image.dtype}"
        )
    file = BytesIO()
    # Level 1 writes about five times as fast as Pillow's 6, and files are some percent larger.
    Image.fromarray(np.ascontiguousarray(image)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def write_nifti(path: Path, image: Array, affine: Array) -> None:
    """Write `image` (i, j, k) with its `affine` (4, 4) voxel -> RAS+ world in mm to a .nii or .nii.gz file.

    bool is kept as uint8 and float16 as float32; other dtypes as they are. sform and qform both hold the
    affine, but a sheared affine, which a qform cannot say, is in the sform alone. The time stamp in
    the gzip header is 0. Raises ValueError for another suffix, rank, dtype or a singular affine.
    """
    image, affine = np.asarray(image), np.asarray(affine, np.float64)
    if image.dtype == np.bool_ or image.dtype == np.float16:
        image = image.astype(np.uint8 if image.dtype == np.bool_ else np.float32)
    if image.ndim != 3 or image.size == 0 or image.dtype.str[1:] not in NIFTI_DTYPES:
        raise ValueError(f"a NIfTI image is a real (i, j, k) array that is not empty, not {image.shape} {image.dtype}")
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0:
        raise ValueError("affine must be a finite, invertible (4, 4) matrix")
    write_nifti_file(path, _header(image, affine), image[None], image.dtype.newbyteorder("<"))


def write_nifti_file(path: Path, header: bytes, volumes: Array, dtype: np.dtype[Any]) -> None:
    """Write a `header`, no extensions, and `volumes` (N, i, j, k) as `dtype` to a .nii or .nii.gz file.

    Raises ValueError for another suffix.
    """
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"the name must end in .nii or .nii.gz, not {path.suffix or 'nothing'}")
    start = len(header) + 4
    content = np.zeros(start + volumes.size * dtype.itemsize, np.uint8)
    content[: len(header)] = np.frombuffer(header, np.uint8)
    stored = content[start:].view(dtype).reshape(len(volumes), *volumes.shape[:0:-1])
    for target, volume in zip(stored, volumes, strict=True):
        put_transposed(target, volume)
    packed: Any = content
    if path.name.endswith(".gz"):
        from isal import igzip

        packed = igzip.compress(content, compresslevel=1, mtime=0)
    with replacing(path) as file:
        file.write(packed)


def put_transposed(target: Array, volume: Array) -> None:
    """Copy `volume` (i, j, k) to `target` (k, j, i), plane by plane: so both sides stay in the cache."""
    for j in range(volume.shape[1]):
        target[:, j] = volume[:, j].T


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file beside `path` that takes its place when the block ends, and is removed where the block raises.

    Who looks at `path` sees what was there before or the whole of the new, whenever the process ends.
    """
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _header(image: Array, affine: Array) -> bytes:
    import nibabel

    header = nibabel.Nifti1Header(endianness="<")
    header.set_data_dtype(image.dtype)
    header.set_data_shape(image.shape)
    header.set_xyzt_units("mm")
    header.set_slope_inter(1.0, 0.0)
    header["vox_offset"] = 352
    header.set_qform(affine, code="scanner", strip_shears=True)
    if not np.allclose(header.get_qform(), affine, atol=1e-3):
        header.set_qform(None, code=0)
        header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    header.set_sform(affine, code="scanner")
    return bytes(header.binaryblock)
