"""Bytes or paths to a Case: one strict road. What a file is, its first bytes say, never its name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from medray.imaging.limits import DEFAULT_LIMITS, Limits
from medray.types import ArrayRef, Case, InputError, SeriesRef, Source

SNIFF_BYTES = 352
"""The magic words of all formats lie in the first 352 bytes (NIfTI-1 has its own at 344)."""

SUFFIXES = {
    "png": (".png",),
    "jpeg": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "nifti": (".nii",),
    "gzip": (".nii.gz",),
    "npy": (".npy",),
    "nrrd": (".nrrd",),
    "dicom": (),
    "archive": (".zip", ".tar"),
}
"""The endings of each kind; DICOM files have any name, and often none but a number."""

FOREIGN = (
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"BM", "BMP"),
    (b"ObjectType", "MetaImage"),
    (b"\x89HDF", "HDF5 (or MINC 2)"),
    (b"CDF", "NetCDF (or MINC 1)"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"%PDF", "PDF"),
    (b"<svg", "SVG"),
)


def read(source: Source | str, limits: Limits = DEFAULT_LIMITS) -> Case:
    """Read one image: a PNG, JPEG, NIfTI-1/2 (.nii, .nii.gz), NRRD, DICOM or .npy file, an archive (.zip, .tar) of one
    DICOM series, the bytes of any of these, a folder or the named files of one DICOM series, or a row of an array file.

    Returns image (C, *S) as stored where that is lossless: 2D is (row, column) in unit 'px' with the identity
    affine (DICOM: in mm where it tells its spacing), 3D is (i, j, k) with its affine to RAS+ world in mm (npy: in
    'px'). case_id is the name without suffixes, 'upload' for bytes, '<file>-<member>-<index>' for a row.

    Raises InputError, and nothing else, for all that can be wrong with the content.
    """
    if isinstance(source, ArrayRef):
        from medray.imaging import arrays

        return arrays.read_row(source, limits)
    if isinstance(source, SeriesRef):
        from medray.imaging.dicom import series

        return series.read(source.files, limits, source.time)
    if isinstance(source, bytes):
        limits.check_file(len(source))
        return _decode(source, sniff(source[:SNIFF_BYTES]), "upload", limits)
    path = Path(source)
    if path.is_dir():
        from medray.imaging.dicom import series

        return series.read_folder(path, limits)
    limits.check_path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError("not_readable", f"the file cannot be read ({error.strerror})") from None
    kind = sniff(content[:SNIFF_BYTES])
    if kind == "archive" and path.name.lower().endswith(".npz"):
        raise InputError("unsupported_type", "a .npz file holds several arrays", "name one of its rows")
    case = _decode(content, kind, case_id_of(path), limits)
    if _misnamed(path.name.lower(), kind):
        case = replace(case, warnings=(*case.warnings, "extension_mismatch"))
    return case


def case_id_of(path: Path) -> str:
    """The file's name without its suffixes: 'scan_01' of 'scan_01.nii.gz'; the last number of a UID is no suffix."""
    name = path.name[: -len(".gz")] if path.name.lower().endswith(".nii.gz") else path.name
    return name if Path(name).suffix[1:].isdecimal() else Path(name).stem


def _misnamed(name: str, kind: str) -> bool:
    if SUFFIXES[kind]:
        return not name.endswith(SUFFIXES[kind])
    return name.endswith(tuple(ending for endings in SUFFIXES.values() for ending in endings))


def sniff(head: bytes) -> str:
    """The kind of file that starts with `head` (a key of SUFFIXES).

    Raises unsupported_type for any other, and missing_pair for the header half of a NIfTI pair.
    """
    # First: whatever a file pretends to be before it, this word says what a DICOM reader would make of it.
    if head[128:132] == b"DICM":
        return "dicom"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    if head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0":
        return "nifti"
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head.startswith(b"NRRD"):
        return "nrrd"
    if head[344:348] == b"ni1\0" or head[4:8] == b"ni2\0":
        raise InputError("missing_pair", "a NIfTI header whose voxels are in another file", "save it as one .nii file")
    if head.startswith((b"PK\3\4", b"PK\5\6")) or head[257:262] == b"ustar":
        return "archive"
    start = head.lstrip()
    found = next((name for magic, name in FOREIGN if start.startswith(magic)), "of no known type")
    raise InputError("unsupported_type", f"the content is {found}", "give a DICOM, NIfTI, NRRD, PNG, JPEG or .npy file")


def _decode(content: bytes, kind: str, case_id: str, limits: Limits) -> Case:
    # Imported where needed: a process that reads PNG never pays for nibabel, nor the other way round.
    if kind in ("png", "jpeg"):
        from medray.imaging import raster

        return raster.read(content, case_id, limits)
    if kind == "npy":
        from medray.imaging import arrays

        return arrays.read(content, case_id, limits)
    if kind == "nrrd":
        from medray.imaging import nrrd

        return nrrd.read(content, case_id, limits)
    if kind == "dicom":
        from medray.imaging.dicom import series

        return replace(series.read((content,), limits), case_id=case_id)
    if kind == "archive":
        from medray.imaging import archive

        return archive.read(content, case_id, limits, lambda inner: read(inner, limits))
    from medray.imaging import nifti

    return nifti.read(content, case_id, limits)
