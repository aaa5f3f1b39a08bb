"""NIfTI-1 and NIfTI-2, plain or gzip: strict about sizes, checksums and where the voxels are in the world.

Sources: the header of NIfTI-1.1 (nifti.nimh.nih.gov/nifti-1) and of NIfTI-2.
"""

from __future__ import annotations

import math
from typing import IO, Any

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError

from medray.imaging.limits import Limits, check_values
from medray.imaging.volume import SPACING_HINT, as_image, check_affine, check_spacing, unpacked, voxel_bytes
from medray.types import Array, Case, InputError

MAX_EXTENSION_BYTES = 64 << 20
TO_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""Spatial part of xyzt_units: unknown (taken as mm), metre, mm, micron."""


def read(content: bytes, case_id: str, limits: Limits) -> Case:
    """The image (1, i, j, k) of a .nii or .nii.gz file, with its affine in mm.

    Integers are kept (native byte order); scaled and floating voxels become float32. Raises InputError:
    truncated, checksum, trailing_data, corrupt, unsupported_type, bad_header, empty_image, wrong_rank,
    unsupported_dtype, too_large_decompressed, too_many_voxels, bad_affine, missing_affine, ambiguous_affine,
    implausible_spacing, non_finite_voxels. Warns: affine_difference, scaling_ignored, constant_image, phi_in_header.
    """
    packed = content.startswith(b"\x1f\x8b")
    with unpacked(content, packed) as stream:
        header = read_header(stream)
        shape, stored = _grid(header, limits)
        affine, warnings = _affine(header, shape)
        start = _voxel_offset(header, None if packed else len(content))
        extensions = exactly(stream, start - header.sizeof_hdr)
        raw = voxel_bytes(stream, math.prod(shape) * stored.itemsize)
    image, scaling = _scaled(raw.view(stored).reshape(shape[::-1]), header)
    warnings += scaling + check_values(image) + _private(header, extensions)
    return Case(case_id=case_id, image=image, affine=affine, unit="mm", warnings=warnings)


def read_header(stream: IO[bytes]) -> Any:
    """nibabel's header of the NIfTI file that `stream` begins with; raises truncated, unsupported_type, bad_header."""
    head = stream.read(348)
    if head[344:348] == b"n+1\0":
        family, size = nibabel.Nifti1Header, 348
    elif head[4:12] == b"n+2\0\r\n\x1a\n":
        family, size = nibabel.Nifti2Header, 540
        head += exactly(stream, size - len(head))
    elif len(head) < 348 and 348 in (int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")):
        raise InputError("truncated", f"the header has {len(head)} of 348 bytes")
    else:
        raise InputError("unsupported_type", "the compressed content is not NIfTI", "give a PNG, JPEG or NIfTI file")
    order = "little" if int.from_bytes(head[:4], "little") == size else "big"
    if int.from_bytes(head[:4], order) != size:  # type: ignore[arg-type]
        raise InputError("bad_header", f"sizeof_hdr is not {size} in either byte order")
    return family(head, endianness=order, check=False)


def _grid(header: Any, limits: Limits) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """(i, j, k) and the dtype as stored, before anything is allocated for them."""
    dim = [int(length) for length in header["dim"]]
    if not 1 <= dim[0] <= 7:
        raise InputError("bad_header", f"dim[0] is {dim[0]}, which must be between 1 and 7")
    shape = tuple(dim[1 : dim[0] + 1])
    code = int(header["datatype"])
    try:
        stored = np.dtype(nibabel.nifti1.data_type_codes.dtype[code])
    except KeyError:
        raise InputError("bad_header", f"datatype code {code} does not exist") from None
    if stored.kind not in "iuf" or stored.itemsize > 8:
        raise InputError("unsupported_dtype", f"voxels of type {stored} are not real numbers of up to 64 bits")
    if int(header["bitpix"]) != 8 * stored.itemsize:
        raise InputError("bad_header", f"bitpix is {int(header['bitpix'])}, but {stored} has {8 * stored.itemsize}")
    limits.check_grid(shape, stored.itemsize)
    if len(shape) < 3 or math.prod(shape[3:]) != 1:
        raise InputError("wrong_rank", f"the file holds {len(shape)} axes {shape}, 3 are expected", "give one volume")
    return shape[:3], stored.newbyteorder(header.endianness)


def _voxel_offset(header: Any, file_bytes: int | None) -> int:
    offset, least = float(header["vox_offset"]), header.sizeof_hdr + 4
    most = header.sizeof_hdr + MAX_EXTENSION_BYTES if file_bytes is None else file_bytes
    if not math.isfinite(offset) or offset != int(offset) or not least <= offset <= max(most, least):
        raise InputError("bad_header", f"vox_offset is {offset:g}, which must be between {least} and {most}")
    return int(offset)


def exactly(stream: IO[bytes], size: int) -> bytes:
    """`size` bytes; raises truncated where there are fewer."""
    content = stream.read(size)
    if len(content) < size:
        raise InputError("truncated", "the file ends before its voxels begin")
    return content


def _affine(header: Any, shape: tuple[int, ...]) -> tuple[Array, tuple[str, ...]]:
    """The affine (4, 4) in mm; where sform and qform both speak they must agree to within a voxel."""
    codes = {name: int(header[f"{name}_code"]) for name in ("sform", "qform")}
    if min(codes.values()) < 0:
        raise InputError("bad_header", f"sform_code and qform_code are {[*codes.values()]}, which cannot be negative")
    named = [name for name, code in codes.items() if code > 0]
    if not named:
        raise InputError("missing_affine", "sform_code and qform_code are both 0", "write the orientation to the file")
    affines = [_one_affine(header, name) for name in named]
    unit = int(header["xyzt_units"]) & 7
    if unit not in TO_MM:
        raise InputError("bad_header", f"spatial unit {unit} of xyzt_units does not exist")
    affine = np.diag([TO_MM[unit]] * 3 + [1.0]) @ affines[0]
    check_spacing(affine)
    return affine, _difference(affines[0], affines[-1], shape)


def _one_affine(header: Any, name: str) -> Array:
    try:
        with np.errstate(all="ignore"):
            affine = header.get_sform() if name == "sform" else header.get_qform()
    except (HeaderDataError, ValueError):
        raise InputError(
            "bad_affine", "the qform has a voxel size or quaternion that cannot be", SPACING_HINT
        ) from None
    affine = np.asarray(affine, np.float64)
    check_affine(affine, name)
    return affine


def _difference(sform: Array, qform: Array, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Refuse two affines of opposite handedness or over a voxel apart; a registration's trace is only warned of."""
    corners = np.stack(np.meshgrid(*[(0, length - 1) for length in shape], [1], indexing="ij")).reshape(4, -1)
    moved = np.linalg.solve(sform, qform @ corners) - corners
    distance = float(np.abs(moved).max())
    same_hand = np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) > 0
    if not same_hand or distance > 1:
        fact = f"up to {distance:.2g} voxels apart" if same_hand else "of opposite handedness"
        raise InputError(
            "ambiguous_affine", f"sform and qform are {fact}", "keep the one that is right, clear the other"
        )
    return ("affine_difference",) if distance > 0.01 else ()


def _scaled(voxels: Array, header: Any) -> tuple[Array, tuple[str, ...]]:
    """(k, j, i) as stored to (1, i, j, k), scaled where scaling is asked for."""
    slope, offset = float(header["scl_slope"]), float(header["scl_inter"])
    usable = math.isfinite(slope) and math.isfinite(offset) and slope != 0
    image = as_image(voxels, slope, offset) if usable else as_image(voxels)
    # A slope of 0, or NaN in both, is how writers say that there is no scaling.
    silent = usable or (offset == 0 and slope == 0) or (math.isnan(slope) and math.isnan(offset))
    return image, () if silent else ("scaling_ignored",)


def _private(header: Any, extensions: bytes) -> tuple[str, ...]:
    """phi_in_header where the header holds free text (an extension) or what looks like a DICOM name."""
    written = bool(extensions[4:].strip(b"\0"))
    named = any(b"^" in bytes(header[field]) for field in ("descrip", "intent_name", "aux_file"))
    return ("phi_in_header",) if written or named else ()
