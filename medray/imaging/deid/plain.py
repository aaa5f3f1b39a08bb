"""De-identification of NIfTI, PNG and JPEG: what a decoder needs stays, byte for byte, and all else goes."""

from __future__ import annotations

import math
import re
import struct
import warnings
import zlib
from functools import partial
from io import BytesIO
from typing import Any

from medray.imaging.deid.canaries import MIN_IN_PIXELS, Canaries
from medray.imaging.deid.types import Cleaned
from medray.imaging.limits import Limits
from medray.imaging.segments import (
    FRAME_MARKERS,
    ORIENTATION,
    PNG_MAGIC,
    SCAN_MARKER,
    exif_tags,
    jpeg_pixels,
    png_pixels,
)
from medray.types import InputError

NIFTI_TEXT = ("data_type", "db_name", "descrip", "aux_file", "intent_name", "unused_str")
"""Fields that people and programs write words into (data_type and db_name are unused relics of Analyze)."""
GZIP = b"\x1f\x8b"
MAX_OFFSET = 64 << 20
PRINTABLE = re.compile(rb"[\x20-\x7e]{4,}")
HUFFMAN_LETTERS = "#3r 456789:cdefghijstuvwxyzcdefghijstuvwxyz%&'()*56789:cdefghijstuvwxyzcdefghijstuvwxyz"
"""Text that every JPEG's tables hold (T.81 annex K.3.3), thumbnails' too."""
JFIF_MARKER, ADOBE_MARKER, END_MARKER = 0xE0, 0xEE, 0xD9
CODING_MARKERS = FRAME_MARKERS | {0xC4, 0xCC, 0xDB, 0xDC, 0xDD}
"""Frame headers, tables of Huffman, arithmetic and quantisation, the number of lines, the restart interval."""
STUFFED = frozenset({0x00, 0xFF, *range(0xD0, 0xD8)})


def deidentify_nifti(content: bytes, limits: Limits) -> Cleaned:
    """A NIfTI file with empty text fields, without extensions, and with its voxels as they were.

    A .nii.gz is packed anew, with no file name and no time in its header. Any rank is taken. Raises InputError:
    unsupported_type, truncated, checksum, corrupt, bad_header, trailing_data, too_large_decompressed.
    """
    from isal import igzip

    header, middle, voxels = _nifti_parts(content, limits)
    canaries = Canaries()
    for name in _text_fields(header):
        canaries.add("LO", "", bytes(header[name]).rstrip(b"\0"))
        header[name] = b""
    canaries.add("LO", "", b" ".join(PRINTABLE.findall(middle)))
    header["vox_offset"] = header.sizeof_hdr + 4
    written = bytes(header.binaryblock) + bytes(4) + voxels
    packed = content.startswith(GZIP)
    if packed:
        written = igzip.compress(written, compresslevel=1, mtime=0)
    return Cleaned(written, ".nii.gz" if packed else ".nii", partial(_verify_nifti, canaries, voxels, limits))


def _nifti_parts(content: bytes, limits: Limits) -> tuple[Any, bytes, bytes]:
    """Header, what lies between it and the voxels (extensions), and the voxels as they are stored."""
    import gzip

    from isal import igzip, isal_zlib

    from medray.imaging.nifti import exactly, read_header

    stream = igzip.IGzipFile(fileobj=BytesIO(content), mode="rb") if content.startswith(GZIP) else BytesIO(content)
    try:
        header = read_header(stream)
        dim = [int(length) for length in header["dim"]]
        offset = float(header["vox_offset"])
        if not 1 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 0 or not header.sizeof_hdr + 4 <= offset < MAX_OFFSET:
            raise InputError("bad_header", "the header announces a size or a place of the voxels that cannot be")
        size = math.prod(dim[1 : dim[0] + 1]) * int(header["bitpix"]) // 8
        limits.check_bytes(size)
        middle = exactly(stream, int(offset) - header.sizeof_hdr)
        voxels = exactly(stream, size)
        if stream.read(1):
            raise InputError("trailing_data", "bytes follow the last voxel")
    except EOFError:
        raise InputError("truncated", "the compressed stream ends before its trailer") from None
    except gzip.BadGzipFile:
        raise InputError("checksum", "the gzip trailer does not fit the data, or other bytes follow it") from None
    except isal_zlib.IsalError:  # type: ignore[misc]  # its stub says instance where it is the class
        raise InputError("corrupt", "the compressed stream is damaged") from None
    return header, middle, voxels


def _text_fields(header: Any) -> list[str]:
    known = set(header.keys())
    return [name for name in NIFTI_TEXT if name in known]


def _verify_nifti(canaries: Canaries, voxels: bytes, limits: Limits, content: bytes) -> str:
    header, middle, written = _nifti_parts(content, limits)
    if written != voxels:
        return "the voxels are not those of the source"
    if content.startswith(GZIP) and content[3:8] != bytes(5):
        return "the gzip header holds a name or a time"
    text = any(bytes(header[name]).strip(b"\0") for name in _text_fields(header))
    said = canaries.leaks("LO", bytes(header.binaryblock)) or middle != bytes(4)
    return "the header still holds text" if text or said else ""


def deidentify_raster(content: bytes, limits: Limits) -> Cleaned:
    """A PNG or JPEG with nothing but its pixels and, where it says how to turn them, the orientation.

    Compressed pixels are not touched. Raises InputError as segments.png_pixels and segments.jpeg_pixels do,
    and corrupt where it cannot be decoded.
    """
    png = content.startswith(PNG_MAGIC)
    clean, exif = png_pixels(content, limits) if png else jpeg_pixels(content, limits)
    written = clean if png else _bare_jpeg(clean)
    turned = exif_tags(exif).get(ORIENTATION, 1)
    if 2 <= turned <= 8:
        written = _with_orientation(written, turned, png)
    pixels, _ = _decoded(clean, png)
    _, text = _decoded(content, png)
    canaries = Canaries()
    canaries.values.update(run for run in text if run not in HUFFMAN_LETTERS)
    return Cleaned(written, ".png" if png else ".jpg", partial(_verify_raster, canaries, pixels, limits))


def _bare_jpeg(clean: bytes) -> bytes:
    """What codes the image and its colours alone: no thumbnail, no text, nothing after the end of the image."""
    kept, at = [clean[:2]], 2
    while at + 2 <= len(clean):
        marker = clean[at + 1]
        if marker == END_MARKER:
            return b"".join([*kept, clean[at : at + 2]])
        if marker == 0xFF:
            at += 1
            continue
        end = at + 2 + int.from_bytes(clean[at + 2 : at + 4], "big")
        if marker == JFIF_MARKER and clean[at + 4 : at + 9] == b"JFIF\0":
            # Version, density; then a thumbnail of 0 x 0.
            kept.append(b"\xff\xe0\0\x10" + clean[at + 4 : at + 16] + bytes(2))
        elif marker == SCAN_MARKER:
            end = _scan_end(clean, end)
            kept.append(clean[at:end])
        elif marker == ADOBE_MARKER and clean[at + 4 : at + 9] == b"Adobe" and end - at >= 16:
            # Its twelfth byte is how colour is coded; version 100, and flags for the encoder alone.
            kept.append(b"\xff\xee\0\x0eAdobe\0\x64" + bytes(4) + clean[at + 15 : at + 16])
        elif marker in CODING_MARKERS:
            kept.append(clean[at:end])
        at = end
    raise InputError("truncated", "the JPEG has no end marker", "copy or export the file again")


def _scan_end(content: bytes, at: int) -> int:
    """Where the next segment begins: 0xFF, then no stuffed zero, restart or fill byte (T.81 B.1.1.2)."""
    while (at := content.find(b"\xff", at)) >= 0 and at + 1 < len(content):
        if content[at + 1] not in STUFFED:
            return at
        at += 1 if content[at + 1] == 0xFF else 2
    raise InputError("truncated", "the JPEG ends inside its scan", "copy or export the file again")


def _with_orientation(written: bytes, turned: int, png: bool) -> bytes:
    """The image with an Exif block that says the orientation and nothing else."""
    exif = struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, ORIENTATION, 3, 1, turned, 0, 0)
    if png:
        chunk = b"eXIf" + exif
        start = len(PNG_MAGIC) + 25
        added = len(exif).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    else:
        start = 2 + (18 if written[3] == JFIF_MARKER else 0)
        added = b"\xff\xe1" + (len(exif) + 8).to_bytes(2, "big") + b"Exif\0\0" + exif
    return written[:start] + added + written[start:]


def _decoded(content: bytes, png: bool) -> tuple[bytes, set[str]]:
    """The pixels, and the words that Pillow finds beside them: another reader than the one that cut them off."""
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with (PngImageFile if png else JpegImageFile)(BytesIO(content)) as picture:
                picture.load()
                beside = [str(value) for value in picture.info.values() if isinstance(value, str)]
                packed = [value for value in picture.info.values() if isinstance(value, bytes)]
                pixels = picture.tobytes()
        except Exception as error:
            raise InputError("corrupt", "the compressed image is damaged", "export the file again") from error
    runs = [run.decode("ascii") for value in packed for run in PRINTABLE.findall(value)]
    return pixels, {run.strip().lower() for run in (*beside, *runs) if len(run.strip()) >= MIN_IN_PIXELS}


def _verify_raster(canaries: Canaries, pixels: bytes, limits: Limits, content: bytes) -> str:
    png = content.startswith(PNG_MAGIC)
    _, exif = png_pixels(content, limits) if png else jpeg_pixels(content, limits)
    written, text = _decoded(content, png)
    if written != pixels:
        return "the pixels are not those of the source"
    if exif_tags(exif).keys() - {ORIENTATION} or text:
        return "text is left beside the pixels"
    return "what was removed is still in the file" if canaries.in_bytes(content) else ""
