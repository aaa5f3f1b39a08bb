"""NRRD volumes in one file: raw or gzip voxels behind a text header that says where they are.

Source: the NRRD format definition, versions 1 to 5 (teem.sourceforge.net/nrrd/format.html). No other file is
ever opened, whatever the header names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import nrrd  # type: ignore[import-untyped]
import numpy as np

from medray.imaging.limits import Limits, check_values
from medray.imaging.volume import as_image, check_affine, check_spacing, unpacked, voxel_bytes
from medray.types import Array, Case, InputError

TYPES = {
    name: code
    for code, names in {
        "i1": "signed char, int8, int8_t",
        "u1": "uchar, unsigned char, uint8, uint8_t",
        "i2": "short, short int, signed short, signed short int, int16, int16_t",
        "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
        "i4": "int, signed int, int32, int32_t",
        "u4": "uint, unsigned int, uint32, uint32_t",
        "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t",
        "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
        "f4": "float",
        "f8": "double",
    }.items()
    for name in names.split(", ")
}
TO_RAS = {
    "right-anterior-superior": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "ras": (1, 1, 1),
    "las": (-1, 1, 1),
    "lps": (-1, -1, 1),
}
TO_MM = {"mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001, "": 1.0}
SPATIAL_KINDS = frozenset({"domain", "space", "none", "???"})
GEOMETRY_HINT = "save it with an anatomical space, space directions and a space origin"


def read(content: bytes, case_id: str, limits: Limits) -> Case:
    """The image (1, i, j, k) of a .nrrd file, i the axis that is fastest in the file, with its affine in mm.

    Integers are kept (native byte order); floating voxels become float32. Raises InputError: truncated, checksum,
    trailing_data, corrupt, missing_pair (voxels in another file), bad_header, empty_image, wrong_rank,
    unsupported_dtype, unsupported_encoding, too_large_decompressed, too_many_voxels, bad_affine, missing_affine,
    implausible_spacing, non_finite_voxels. Warns: scaling_ignored, constant_image, phi_in_header.
    """
    lines, start = _header_lines(content, limits)
    header = _fields(lines)
    shape, stored = _grid(header, lines, limits)
    affine = _affine(header)
    packed = _is_packed(header)
    if packed and not content.startswith(b"\x1f\x8b", start):
        code = "truncated" if len(content) < start + 2 else "corrupt"
        raise InputError(code, "the voxels do not start as gzip does, which the header announces")
    with unpacked(memoryview(content)[start:], packed) as stream:
        raw = voxel_bytes(stream, math.prod(shape) * stored.itemsize)
    image = as_image(raw.view(stored).reshape(shape[::-1]))
    warnings = check_values(image) + _warnings(header, lines)
    return Case(case_id=case_id, image=image, affine=affine, unit="mm", warnings=warnings)


def _header_lines(content: bytes, limits: Limits) -> tuple[list[bytes], int]:
    """The lines before the first blank one, and where the voxels begin."""
    lines: list[bytes] = []
    start = 0
    while True:
        end = content.find(b"\n", start, limits.max_text_bytes)
        if end < 0:
            if len(content) < limits.max_text_bytes:
                raise InputError("truncated", "the header does not end in a blank line")
            raise InputError("bad_header", f"the header is longer than {limits.max_text_bytes} bytes")
        line, start = content[start:end].rstrip(), end + 1
        if not line:
            return lines, start
        lines.append(line)


def _fields(lines: list[bytes]) -> Mapping[str, Any]:
    # pynrrd drops what is not ASCII, which would turn a damaged 1.5 into 15; comments and key:=value may hold any text.
    fields = [line for line in lines if not line.startswith(b"#") and b":=" not in line]
    if not all(re.fullmatch(rb"[\t -~]*", field) for field in fields):
        raise InputError("bad_header", "a field of the header holds a character that is not printable ASCII")
    try:
        with np.errstate(all="ignore"):
            header: Mapping[str, Any] = nrrd.read_header([field.decode() for field in fields])
    except Exception as error:
        # pynrrd promises no type of exception; it has seen the header alone, so all of them mean the header.
        raise InputError("bad_header", "a field of the header is repeated or cannot be understood") from error
    return header


def _grid(header: Mapping[str, Any], lines: list[bytes], limits: Limits) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """(i, j, k) and the dtype as stored, before anything is allocated for them."""
    if any(name.lower().replace(" ", "") == "datafile" for name in header):
        raise InputError("missing_pair", "a NRRD header whose voxels are in another file", "save it as one .nrrd file")
    if absent := [name for name in ("type", "dimension", "sizes", "encoding") if name not in header]:
        raise InputError("bad_header", f"the header has no field {', '.join(absent)}")
    # From the text: pynrrd reads sizes as floating numbers and cuts them off.
    sizes = next((line[6:].decode().split() for line in lines if line.startswith(b"sizes:")), [])
    if not sizes or not all(re.fullmatch(r"-?\d{1,30}", size) for size in sizes):
        raise InputError("bad_header", "the sizes are not whole numbers")
    shape, name = tuple(map(int, sizes)), header["type"].lower()
    if len(shape) != header["dimension"]:
        raise InputError("bad_header", f"dimension is {header['dimension']}, but there are {len(shape)} sizes")
    if name == "block":
        raise InputError("unsupported_dtype", "voxels of type block are not numbers")
    if name not in TYPES:
        raise InputError("bad_header", "the type of the voxels does not exist")
    stored = np.dtype(TYPES[name])
    order = {"little": "<", "big": ">"}.get(str(header.get("endian", "")).lower(), "|")
    if stored.itemsize > 1 and order == "|":
        raise InputError("bad_header", f"endian must be little or big for voxels of {stored.itemsize} bytes")
    limits.check_grid(shape, stored.itemsize)
    lists = [kind for kind in header.get("kinds", ()) if kind.lower() not in SPATIAL_KINDS]
    if len(shape) != 3 or lists:
        fact = f"the file holds {len(shape)} axes {shape}" + (", not all of them in space" if lists else "")
        raise InputError("wrong_rank", f"{fact}; 3 in space are expected", "give one volume with one value per voxel")
    return shape, stored.newbyteorder(order)  # type: ignore[arg-type]


def _is_packed(header: Mapping[str, Any]) -> bool:
    encoding = header["encoding"].lower()
    skips = [header.get(name, 0) for name in ("line skip", "lineskip", "byte skip", "byteskip")]
    if any(skips):
        raise InputError(
            "bad_header", f"{max(skips, key=abs)} lines or bytes are to be skipped before the voxels, not 0"
        )
    if encoding not in ("raw", "gzip", "gz"):
        raise InputError("unsupported_encoding", "the voxels are neither raw nor gzip", "save it as raw or gzip")
    return bool(encoding != "raw")


def _affine(header: Mapping[str, Any]) -> Array:
    """The affine (4, 4) voxel -> RAS+ in mm."""
    if "space" not in header or "space directions" not in header or "space origin" not in header:
        raise InputError("missing_affine", "the header does not say where the voxels are", GEOMETRY_HINT)
    signs = TO_RAS.get(header["space"].lower())
    if signs is None:
        raise InputError("missing_affine", "the space is not one of the patient: RAS, LAS or LPS", GEOMETRY_HINT)
    # One row per axis; NaN for an axis that the header calls 'none'.
    directions, origin = np.asarray(header["space directions"]), np.asarray(header["space origin"])
    if directions.shape != (3, 3) or origin.shape != (3,):
        raise InputError("bad_header", f"space directions are {directions.shape} and the origin {origin.shape}, not 3D")
    if np.isnan(directions).all(axis=1).any():
        raise InputError("wrong_rank", "an axis has no direction in space", "give one volume with one value per voxel")
    units = header.get("space units", [""])
    scale = {TO_MM.get(unit.strip()) for unit in units}
    if None in scale or len(scale) != 1:
        raise InputError("bad_header", "the space units are not one of mm, cm, m and um for all axes")
    affine = np.eye(4)
    with np.errstate(all="ignore"):
        affine[:3] = np.column_stack([directions.T, origin]) * np.array(signs)[:, None] * scale.pop() + 0.0
        check_affine(affine, "space")
    check_spacing(affine)
    return affine


def _warnings(header: Mapping[str, Any], lines: list[bytes]) -> tuple[str, ...]:
    """scaling_ignored where the voxels stand for other values; phi_in_header where there is free text or a name."""
    mapped = any(name in header for name in ("old min", "oldmin", "old max", "oldmax"))
    free = "content" in header or any(b":=" in line or b"^" in line for line in lines)
    return ("scaling_ignored",) * mapped + ("phi_in_header",) * free
