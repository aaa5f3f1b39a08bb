"""Images out: PNG and NIfTI, byte for byte the same for the same input."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medray.types import Array

NIFTI_DTYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]


def write_png(path: Path, image: Array) -> None:
    """Write `image`, (rows, columns) uint8 or uint16 or (rows, columns, 3) uint8, without loss.

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
    # Level 1 writes about five times as fast as Pillow's 6, and files are some percent larger.
    Image.fromarray(np.ascontiguousarray(image)).save(path, "PNG", compress_level=1)


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
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"the name must end in .nii or .nii.gz, not {path.suffix or 'nothing'}")
    image = image.astype(image.dtype.newbyteorder("<"), copy=False)
    content = _header(image, affine) + bytes(4) + image.tobytes(order="F")
    if path.name.endswith(".gz"):
        from isal import igzip

        content = igzip.compress(content, compresslevel=1, mtime=0)
    path.write_bytes(content)


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
