"""The chunks of a PNG and the segments of a JPEG: checked here, and cut down to what a decoder needs.

What the decoder never sees (text, profiles, Exif, further frames) it cannot inflate, follow or be misled by.
Sources: PNG third edition (w3.org/TR/png-3), JPEG (ITU-T T.81), Exif 2.32 (CIPA DC-008).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from medray.imaging.limits import Limits
from medray.types import InputError

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
PIXEL_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""SOF0 to SOF15: the JPEG segments that hold the size (T.81 table B.1)."""
SCAN_MARKER = 0xDA
APP_MARKERS = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})
"""Application data and comments (0xFE); JFIF (0xE0) and Adobe (0xEE) say how colour is coded and stay."""
ORIENTATION = 0x0112
HARMLESS_TAGS = frozenset({*range(0x0100, 0x0108), ORIENTATION, 0x0115, 0x011A, 0x011B, 0x011C, 0x0128, 0x0213})
"""Exif tags of the grid and its encoding; any other may say who, where or when."""


def png_pixels(content: bytes, limits: Limits) -> tuple[bytes, bytes]:
    """The PNG with its pixel chunks alone, and its Exif block (or nothing).

    Raises truncated, checksum, trailing_data, bad_header, empty_image, too_many_pixels, too_large_decompressed,
    multi_frame, corrupt, unsupported_dtype.
    """
    exif, kind, kept = b"", b"", [PNG_MAGIC]
    for kind, chunk in _png_chunks(content):
        data = chunk[8:-4] if kind != b"IDAT" else b""
        if kind in PIXEL_CHUNKS:
            kept.append(chunk)
        if kind == b"IHDR":
            _check_png_header(data, limits)
        elif kind == b"acTL":
            raise InputError("multi_frame", "the PNG is an animation", "export the frame that is meant")
        elif kind == b"eXIf":
            exif = data
        elif kind in (b"zTXt", b"iCCP", b"iTXt"):
            _check_inflated(kind, data, limits.max_text_bytes)
    if kind != b"IEND":
        raise InputError("truncated", "the PNG ends before its IEND chunk")
    return b"".join(kept), exif


def jpeg_pixels(content: bytes, limits: Limits) -> tuple[bytes, bytes]:
    """The JPEG without application data but JFIF and Adobe, and its Exif block (or nothing).

    Raises truncated, corrupt, empty_image, too_many_pixels, too_large_decompressed, multi_frame,
    unsupported_dtype, unsupported_colour.
    """
    exif, kept, frames = b"", [content[:2]], 0
    for marker, segment in _jpeg_segments(content):
        data = segment[4:]
        if marker not in APP_MARKERS:
            kept.append(segment)
        if marker in FRAME_MARKERS:
            frames += 1
            _check_frame(data, limits)
        elif marker == 0xE1 and data.startswith(b"Exif\0\0"):
            exif = data[6:]
        elif marker == 0xE2 and data.startswith(b"MPF\0"):
            raise InputError("multi_frame", "the JPEG holds several pictures", "export the one that is meant")
    if frames != 1:
        raise InputError("corrupt", f"the JPEG has {frames} frame headers before its scan, not 1")
    return b"".join(kept), exif


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    at, kind = len(PNG_MAGIC), b""
    while at < len(content):
        if kind == b"IEND":
            raise InputError("trailing_data", f"{len(content) - at} bytes follow the end of the PNG")
        if at + 12 > len(content):
            raise InputError("truncated", "the PNG ends inside a chunk")
        length, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        end = at + 8 + length
        if end + 4 > len(content):
            raise InputError("truncated", f"a PNG chunk announces {length} bytes, {len(content) - at - 8} are left")
        if at == len(PNG_MAGIC) and kind != b"IHDR":
            raise InputError("bad_header", "the first PNG chunk is not IHDR")
        if zlib.crc32(memoryview(content)[at + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            raise InputError("checksum", "the checksum of a PNG chunk does not fit its data")
        yield kind, content[at : end + 4]
        at = end + 4


def _check_png_header(data: bytes, limits: Limits) -> None:
    if len(data) != 13:
        raise InputError("bad_header", f"IHDR has {len(data)} bytes, not 13")
    columns, rows, depth, colour = struct.unpack_from(">IIBB", data)
    limits.check_grid((rows, columns), 1 if depth <= 8 else 2)
    if depth == 16 and colour != 0:
        # Pillow would cut these to 8 bits without a word.
        raise InputError("unsupported_dtype", "16 bits per channel are read from grey PNG alone", "save it as grey")


def _check_inflated(kind: bytes, data: bytes, limit: int) -> None:
    """Raise where a compressed text or profile chunk inflates beyond `limit` bytes."""
    _, _, rest = data.partition(b"\0")
    if kind == b"iTXt":
        if rest[:1] != b"\1":
            return
        # flag, method, language tag, 0, translated keyword, 0, text
        rest = b"\0" + rest[2:].split(b"\0", 2)[-1]
    try:
        inflated = zlib.decompressobj().decompress(rest[1:], limit + 1)
    except zlib.error:
        raise InputError("corrupt", "a compressed text or profile chunk is damaged") from None
    if len(inflated) > limit:
        raise InputError("too_large_decompressed", f"a text or profile chunk inflates beyond {limit} bytes")


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and whole segment up to the scan; the last is the scan with all that follows."""
    at = 2
    while at + 4 <= len(content):
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        if content[at] != 0xFF or marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD9:
            raise InputError("corrupt", "a JPEG segment does not start with its marker")
        if marker == 0xFF:
            at += 1
            continue
        if marker == SCAN_MARKER:
            yield marker, content[at:]
            return
        end = at + 2 + length
        if length < 2 or end > len(content):
            break
        yield marker, content[at:end]
        at = end
    raise InputError("truncated", "the JPEG ends before its scan begins")


def _check_frame(data: bytes, limits: Limits) -> None:
    if len(data) < 6:
        raise InputError("corrupt", f"the JPEG frame header has {len(data)} bytes")
    depth, rows, columns, channels = struct.unpack_from(">BHHB", data)
    limits.check_grid((rows, columns), channels)
    if depth != 8:
        raise InputError("unsupported_dtype", f"the JPEG has {depth} bits per channel, 8 are read")
    if channels not in (1, 3):
        raise InputError("unsupported_colour", f"the JPEG has {channels} channels (CMYK?)", "save it as grey or RGB")


def exif_tags(block: bytes) -> dict[int, int]:
    """Tag -> value (as a SHORT) of the first directory; a block that cannot be read has no tags.

    Pillow's own reader follows every offset in the block and warns instead of failing.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None or len(block) < 10:
        return {}
    at = struct.unpack_from(order + "I", block, 4)[0]
    if at + 2 > len(block):
        return {}
    count = min(struct.unpack_from(order + "H", block, at)[0], (len(block) - at - 2) // 12)
    entries = (struct.unpack_from(order + "HHIH", block, at + 2 + 12 * entry) for entry in range(count))
    return {tag: value for tag, kind, _, value in entries if kind == 3 or tag != ORIENTATION}
