"""The pixels of a DICOM data set as they were stored: one decoder per transfer syntax, sizes checked before it runs.

Sources: DICOM PS3.3 C.7.6.3 (image pixel module), PS3.5 chapter 8 (native and encapsulated pixels).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames, parse_basic_offsets
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import UID

from medray.imaging.dicom.elements import integer, text
from medray.imaging.limits import Limits
from medray.types import Array, InputError

JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
JPEG_12_BIT = "1.2.840.10008.1.2.4.51"
NATIVE = frozenset({"1.2.840.10008.1.2", *(f"1.2.840.10008.1.2.{end}" for end in ("1", "1.99", "2"))})
JPEG = frozenset(f"1.2.840.10008.1.2.4.{end}" for end in (50, 51, 57, 70, 80, 81))
JPEG_2000 = frozenset(f"1.2.840.10008.1.2.4.{end}" for end in (90, 91))
RLE = "1.2.840.10008.1.2.5"
PLUGINS = {
    **dict.fromkeys((f"1.2.840.10008.1.2.4.{end}" for end in (57, 70)), "gdcm"),
    **dict.fromkeys((f"1.2.840.10008.1.2.4.{end}" for end in (80, 81)), "pyjpegls"),
    **dict.fromkeys((*JPEG_2000, RLE, JPEG_12_BIT), "pylibjpeg"),
}
"""The one decoder of each compressed transfer syntax but JPEG baseline, which has a module of its own."""

END_BYTES = 16
"""How far from the end of a compressed frame its end marker may be: writers pad."""
COLOURS = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"})
ALLOCATED = {"PixelData": (1, 8, 16, 32), "FloatPixelData": (32,), "DoubleFloatPixelData": (64,)}
"""BitsAllocated of each element that can hold pixels."""
GREYS = frozenset({"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"})


@dataclass(frozen=True, slots=True)
class Layout:
    """The announced form of the pixels, in Python integers."""

    frames: int
    rows: int
    columns: int
    samples: int
    allocated: int
    """Bits of a sample in the file."""
    stored: int
    """Bits of it that mean something."""
    signed: bool
    photometric: str

    @property
    def pixels(self) -> int:
        """Of one frame."""
        return self.rows * self.columns

    @property
    def native_bytes(self) -> int:
        """Length of all frames without compression, without the byte that pads it to even."""
        subsampled = self.photometric == "YBR_FULL_422"
        samples = self.frames * self.pixels * (2 if subsampled else self.samples)
        return math.ceil(samples * self.allocated / 8)


def layout(data: Dataset) -> Layout:
    """The announced form, checked for what cannot be.

    Raises no_pixel_data, bad_header, unsupported_colour, unsupported_dtype.
    """
    if not any(keyword in data for keyword in ALLOCATED):
        raise InputError("no_pixel_data", "the file holds no pixels (a report, a plan or a set of contours)")
    rows, columns = integer(data, "Rows"), integer(data, "Columns")
    frames, samples = integer(data, "NumberOfFrames", 1), integer(data, "SamplesPerPixel", 1)
    photometric = text(data, "PhotometricInterpretation")
    if not photometric:
        raise InputError("bad_header", "PhotometricInterpretation is missing")
    if photometric not in COLOURS | GREYS:
        raise InputError("unsupported_colour", "PhotometricInterpretation is neither grey, palette, RGB nor YBR")
    if frames < 1 or samples != (3 if photometric in COLOURS else 1):
        raise InputError("bad_header", f"{frames} frames of {samples} samples do not fit PhotometricInterpretation")
    if samples == 3 and integer(data, "PlanarConfiguration") not in (0, 1):
        raise InputError("bad_header", "PlanarConfiguration is neither 0 nor 1")
    allocated, stored, signed = _bits(data)
    return Layout(frames, rows, columns, samples, allocated, stored, signed, photometric)


def check_size(form: Layout, limits: Limits) -> None:
    """Raise empty_image, too_many_pixels or too_large_decompressed for what `form` announces."""
    limits.check_grid((form.rows, form.columns), 1)
    if form.frames * form.pixels > limits.max_voxels:
        grid = f"{form.frames} x {form.rows} x {form.columns}"
        raise InputError("too_many_pixels", f"{grid} are more than the limit of {limits.max_voxels} pixels")
    # What a rescale (float32) or a palette (RGB of 16 bits) may make of a pixel, not only what is stored.
    grey = 6 if form.photometric == "PALETTE COLOR" else max(4, form.allocated // 8)
    limits.check_bytes(form.frames * form.pixels * (grey if form.samples == 1 else 3 * form.allocated // 8))


def _bits(data: Dataset) -> tuple[int, int, bool]:
    """Bits allocated, bits stored, and whether they are signed."""
    allocated, integers = integer(data, "BitsAllocated"), "PixelData" in data
    wanted = next(bits for keyword, bits in ALLOCATED.items() if keyword in data)
    if allocated not in wanted:
        raise InputError("unsupported_dtype", f"BitsAllocated is {allocated}, which must be one of {wanted}")
    if not integers:
        return allocated, allocated, True
    stored, sign = integer(data, "BitsStored"), integer(data, "PixelRepresentation")
    high = integer(data, "HighBit", stored - 1)
    if not 1 <= stored <= allocated or high != stored - 1 or sign not in (0, 1):
        raise InputError(
            "bad_header",
            f"BitsAllocated {allocated}, BitsStored {stored}, HighBit {high} and PixelRepresentation {sign} "
            "do not fit each other",
        )
    return allocated, stored, sign == 1


def stored_frames(data: Dataset, form: Layout) -> Iterator[Array]:
    """The frames one by one, (row, column) or (row, column, 3): stored values, native, masked to their bits; RGB.

    Raises truncated, trailing_data, corrupt, bad_header, unsupported_transfer_syntax.
    """
    syntax = str(data.file_meta.TransferSyntaxUID)
    if syntax in NATIVE:
        _check_native(data, form)
    elif syntax in (JPEG_BASELINE, *PLUGINS) and (syntax != JPEG_12_BIT or find_spec("libjpeg")):
        _check_encapsulated(data, form, syntax)
    else:
        hint = "install medray[gpl-jpeg] (GPL-3)" if syntax == JPEG_12_BIT else "export it uncompressed"
        raise InputError("unsupported_transfer_syntax", f"the pixels are coded as {_name(syntax)}", hint)
    palette, count = form.photometric == "PALETTE COLOR", 0
    try:
        for frame in _decoded(data, form, syntax):
            count += 1
            if count <= form.frames:
                frame = apply_color_lut(frame, data) if palette else frame
                yield frame.astype(frame.dtype.newbyteorder("="), copy=False)
    except BaseException as error:
        # What a decoder raises on damaged data is a dozen types and no promise; all of them mean the data. The one
        # of RLE is written in Rust, whose panic is no Exception, though memory is as safe as after one.
        panic = type(error).__name__ == "PanicException"
        if isinstance(error, (InputError, MemoryError)) or not (panic or isinstance(error, Exception)):
            raise
        raise InputError("corrupt", f"frame {count + 1} of the pixels cannot be decoded") from error
    if count != form.frames:
        raise InputError("corrupt", f"{count} frames are there, {form.frames} are announced")


def _decoded(data: Dataset, form: Layout, syntax: str) -> Iterator[Array]:
    """The frames as the syntax's decoder gives them."""
    if syntax == JPEG_BASELINE:
        from medray.imaging.dicom import jpeg as dicom_jpeg

        for stream in generate_frames(data.PixelData, number_of_frames=form.frames):
            yield dicom_jpeg.decode(stream, form.samples, form.photometric)
        return
    plugin = PLUGINS.get(syntax, "")
    for frame, _ in get_decoder(UID(syntax)).iter_array(data, decoding_plugin=plugin, allow_excess_frames=False):
        yield frame


def _name(syntax: str) -> str:
    known = UID(syntax)
    return known.name if known.is_transfer_syntax else "an unknown or private syntax"


def _check_native(data: Dataset, form: Layout) -> None:
    value, wanted = _pixel_bytes(data), form.native_bytes
    extra = len(value) - wanted
    if extra < 0:
        raise InputError("truncated", f"{len(value)} of {wanted} bytes of pixels are there")
    # One byte makes the length even. Some writers fill up a block with zeros; lost rows would be pixels.
    if extra > 1 and (any(value[wanted:]) or extra > wanted // form.frames // form.rows):
        raise InputError("trailing_data", f"{extra} bytes follow the {wanted} bytes of pixels that are announced")


def is_padded(data: Dataset) -> bool:
    """Whether more than the byte that makes their length even follows the pixels, where they are not compressed."""
    if str(data.file_meta.TransferSyntaxUID) not in NATIVE or "PixelData" not in data:
        return False
    return len(_pixel_bytes(data)) > layout(data).native_bytes + 1


def _pixel_bytes(data: Dataset) -> bytes:
    return bytes(next(data[keyword].value for keyword in ALLOCATED if keyword in data))


def _check_encapsulated(data: Dataset, form: Layout, syntax: str) -> None:
    """Raise where the number of frames, or the size that one of them announces, is not the header's."""
    if "PixelData" not in data or not data["PixelData"].is_undefined_length:
        raise InputError("corrupt", "the pixels are not in the items that their transfer syntax asks for")
    try:
        offsets = parse_basic_offsets(data.PixelData)
        frames = list(generate_frames(data.PixelData, number_of_frames=form.frames))
    except Exception as error:
        raise InputError("truncated", "the compressed pixels hold fewer frames than announced") from error
    if len(frames) != form.frames or (offsets and len(offsets) != form.frames):
        code = "truncated" if len(frames) < form.frames else "corrupt"
        raise InputError(code, f"{len(frames)} compressed frames are there, {form.frames} are announced")
    for number, frame in enumerate(frames, 1):
        # Decoders of JPEG 2000 and JPEG fill up what is missing without a word.
        if syntax != RLE and b"\xff\xd9" not in frame[-END_BYTES:]:
            raise InputError("truncated", f"compressed frame {number} has no end marker", "export the file again")
        found = _rle_size(frame, form) if syntax == RLE else announced_size(frame, syntax in JPEG_2000)
        wanted = (form.rows, form.columns, form.samples)
        if found[:3] != wanted or found[3] > form.allocated:
            text = " x ".join(map(str, found))
            raise InputError(
                "corrupt",
                f"frame {number} is {text} (rows, columns, samples, bits), "
                f"the header says {' x '.join(map(str, wanted))} of {form.allocated} bits",
            )


def announced_size(frame: bytes, jpeg_2000: bool) -> tuple[int, int, int, int]:
    """Rows, columns, samples and bits per sample as a JPEG, JPEG-LS or JPEG 2000 code stream announces them.

    Sources: ITU-T T.81 B.2.2 and T.87 C.2.2 (frame header), ITU-T T.800 A.5.1 (SIZ).
    """
    try:
        if jpeg_2000:
            at = frame.index(b"\xff\x4f\xff\x51", 0, 512) + 8
            x1, y1, x0, y0 = struct.unpack_from(">4I", frame, at)
            samples, depth = struct.unpack_from(">HB", frame, at + 32)
            return y1 - y0, x1 - x0, samples, (depth & 0x7F) + 1
        at = 2
        while True:
            mark, marker, length = struct.unpack_from(">BBH", frame, at)
            if mark != 0xFF or marker == 0xDA:
                break
            if marker == 0xFF:
                at += 1
            elif marker in (0xF7, *range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC)):
                depth, rows, columns, samples = struct.unpack_from(">BHHB", frame, at + 4)
                return rows, columns, samples, depth
            else:
                at += 2 + length
    except (struct.error, ValueError):
        pass
    raise InputError("corrupt", "a compressed frame does not announce its size")


def _rle_size(frame: bytes, form: Layout) -> tuple[int, int, int, int]:
    """As `announced_size`; RLE (PS3.5 annex G) announces planes of bytes alone."""
    planes, wanted = int.from_bytes(frame[:4], "little"), form.samples * form.allocated // 8
    if len(frame) < 64 or planes != wanted:
        raise InputError("corrupt", f"an RLE frame has {planes} planes of bytes, {wanted} are needed")
    return form.rows, form.columns, form.samples, form.allocated
