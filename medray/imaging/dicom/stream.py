"""The outer structure of a DICOM file: its parts are found and measured before a parser sees any of them.

Sources: DICOM PS3.5 chapter 7 (data elements, sequences), annex A.4 (encapsulated pixels) and A.5 (deflated),
PS3.10 chapter 7 (preamble and file meta information).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from medray.imaging.limits import Limits
from medray.types import InputError

META_START = 132
"""After the preamble (128 bytes) and 'DICM'."""
MAX_DEPTH = 32
"""Sequences within sequences; structured reports, the deepest of images' relatives, stay below 20."""
DEFLATED_SLACK_BYTES = 2 << 20
"""What a deflated file may hold besides its pixels: deflate packs 1000 to 1, so the file's size is no limit."""

UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
"""Float, double and integer pixel data."""
TRANSFER_SYNTAX = 0x00020010

IMPLICIT = "1.2.840.10008.1.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"

LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""Value representations with 12 bytes before their value; all others have 8."""
SHORT = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())

FOREIGN_STARTS = (
    *(b"MZ", b"\x7fELF", b"#!", b"PK", b"%PDF", b"{\\rtf", b"GIF8", b"BM", b"Rar!", b"7z\xbc\xaf", b"dex\n", b"@echo"),
    *(b"\xca\xfe\xba\xbe", b"\xfe\xed\xfa", b"\xce\xfa\xed\xfe", b"\xcf\xfa\xed\xfe"),
    *(b"\xd0\xcf\x11\xe0", b"\x1f\x8b", b"\x89PNG", b"\xff\xd8\xff", b"<", b"\xef\xbb\xbf<"),
)
"""Programs, scripts, archives, pages and pictures. TIFF is left: a file that is both is legal (PS3.10 7.1)."""


@dataclass(frozen=True, slots=True)
class Pixels:
    """Where in the data set the pixels are."""

    tag: int
    vr: str
    element: int
    """First byte of the element's header."""
    start: int
    end: int
    """The value; in encapsulated pixels its items without the delimiter."""
    encapsulated: bool


@dataclass(frozen=True, slots=True)
class Parts:
    """A DICOM file taken apart: what comes before the pixels is still to be parsed."""

    transfer_syntax: str
    implicit: bool
    little: bool
    meta: bytes
    header: bytes
    """The elements before the pixels."""
    pixels: bytes | None
    """The value of the pixel element; None where there is none, or it was not asked for."""
    place: Pixels | None


def split(content: bytes, limits: Limits, header_only: bool = False) -> Parts:
    """The parts of a DICOM file; with `header_only`, of a first part of one that reaches up to the pixels.

    Raises unsupported_type, suspicious_preamble, truncated, corrupt, bad_header, too_large_decompressed.
    """
    if content[META_START - 4 : META_START] != b"DICM":
        raise InputError("unsupported_type", "the content is not a DICOM file (PS3.10)", "export it with a header")
    if content[: META_START - 4].lstrip().startswith(FOREIGN_STARTS):
        raise InputError(
            "suspicious_preamble",
            "the 128 bytes before the DICOM header start as a program, a script or another format does",
            "export the file again, with an empty preamble",
        )
    body_at, syntax = _read_meta(content)
    body, start = content, body_at
    if syntax == DEFLATED:
        body, start = _inflate(content[body_at:], limits, header_only), 0
    little = syntax != BIG_ENDIAN
    # Some writers announce the one and write the other; the first element tells.
    implicit = syntax == IMPLICIT and body[start + 4 : start + 6] not in LONG | SHORT
    place = find_pixels(body, start, implicit, little, header_only)
    header = body[start : None if place is None else place.element]
    pixels = None if place is None or header_only else body[place.start : place.end]
    return Parts(syntax, implicit, little, content[META_START:body_at], header, pixels, place)


def _read_meta(content: bytes) -> tuple[int, str]:
    """Where the data set starts, and its transfer syntax; the meta information is explicit little-endian."""
    at, syntax = META_START, b""
    while content[at : at + 2] == b"\2\0":
        tag, _, value, length = _head(content, at, False, "<")
        if length == UNDEFINED or value + length > len(content):
            raise InputError("truncated", "the file ends inside its meta information")
        if tag == TRANSFER_SYNTAX:
            syntax = content[value : value + length]
        at = value + length
    if not syntax.strip(b"\0 "):
        raise InputError("bad_header", "the file does not name its transfer syntax", "export it again as DICOM Part 10")
    return at, syntax.strip(b"\0 ").decode("ascii", "replace")


def _inflate(packed: bytes, limits: Limits, header_only: bool) -> bytes:
    """The inflated data set: as much as its pixels announce and a little more, never as much as comes."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        body = stream.decompress(packed, DEFLATED_SLACK_BYTES)
        if header_only or stream.eof:
            return body
        place = find_pixels(body, 0, False, True, header_only=True)
        most = DEFLATED_SLACK_BYTES + (place.end if place else 0)
        limits.check_bytes(most)
        body += stream.decompress(stream.unconsumed_tail, most + 1 - len(body))
        ended = bool(stream.eof)
    except zlib.error:
        raise InputError("corrupt", "the deflated data set is damaged") from None
    if len(body) > most:
        raise InputError(
            "too_large_decompressed",
            f"the deflated data set holds over {DEFLATED_SLACK_BYTES} bytes besides its pixels",
            "store it in an uncompressed transfer syntax",
        )
    if not ended:
        raise InputError("truncated", "the deflated data set ends too early")
    return body


def find_pixels(body: bytes, start: int, implicit: bool, little: bool, header_only: bool) -> Pixels | None:
    """The pixel element of the data set from `start` on, whose every element is measured on the way.

    Without `header_only` the elements after the pixels are measured too. Sequences are followed without
    recursion, and only where their length is not announced.
    Raises truncated, and corrupt where items and delimiters do not pair or are nested over MAX_DEPTH deep.
    """
    order, size, at = "<" if little else ">", len(body), start
    closers: list[int] = []
    found: Pixels | None = None
    open_pixels = False
    while at < size:
        if size - at < 8:
            if not any(body[at:]):
                break
            raise InputError("truncated", "the file ends inside the header of an element")
        tag, vr, value, length = _head(body, at, implicit, order)
        if tag in (ITEM_END, SEQUENCE_END):
            if not closers or closers.pop() != tag:
                raise InputError("corrupt", "a delimiter closes what was not opened")
            if open_pixels and found is not None and not closers:
                found, open_pixels = Pixels(found.tag, found.vr, found.element, found.start, at, True), False
            at = value
            continue
        if tag in PIXELS and not closers:
            if found is not None:
                raise InputError("corrupt", "the data set has pixels twice")
            open_pixels = length == UNDEFINED
            found = Pixels(tag, vr, at, value, value if open_pixels else value + length, open_pixels)
            if header_only:
                return found
        if length != UNDEFINED:
            at = value + length
        elif len(closers) == MAX_DEPTH * 2 or (tag == ITEM and (open_pixels or not closers)):
            raise InputError("corrupt", f"sequences are nested over {MAX_DEPTH} deep, or an item lies outside of one")
        else:
            closers.append(ITEM_END if tag == ITEM else SEQUENCE_END)
            at = value
    if at > size or closers:
        missing = f"{at - size} bytes are missing" if at > size else "a sequence is not closed"
        raise InputError("truncated", f"the file ends too early: {missing}", "copy or export the file again")
    return found


def _head(body: bytes, at: int, implicit: bool, order: str) -> tuple[int, str, int, int]:
    """Tag, value representation ('' where implicit), where the value starts, and its length."""
    try:
        group, element = struct.unpack_from(order + "HH", body, at)
        vr = b"" if implicit or group == 0xFFFE else body[at + 4 : at + 6]
        if vr in LONG:
            return (
                group << 16 | element,
                vr.decode("latin-1"),
                at + 12,
                struct.unpack_from(order + "I", body, at + 8)[0],
            )
        if vr in SHORT or (vr and b"AA" <= vr <= b"ZZ"):
            return group << 16 | element, vr.decode("latin-1"), at + 8, struct.unpack_from(order + "H", body, at + 6)[0]
        # No letters: an implicit element among explicit ones, which some writers leave behind.
        return group << 16 | element, "", at + 8, struct.unpack_from(order + "I", body, at + 4)[0]
    except struct.error:
        raise InputError("truncated", "the file ends inside the header of an element") from None
