"""PNG by Pillow and JPEG by libjpeg-turbo, behind checks of all that the decoders let pass or do silently."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from simplejpeg import decode_jpeg

from medray.imaging.limits import Limits, check_values
from medray.imaging.segments import HARMLESS_TAGS, ORIENTATION, PNG_MAGIC, exif_tags, jpeg_pixels, png_pixels
from medray.types import Array, Case, InputError


def read(content: bytes, case_id: str, limits: Limits) -> Case:
    """The image (C, row, column) of a PNG or JPEG, uint8 or uint16; unit 'px', affine the identity: DPI is no geometry.

    Grey, also where it is stored as equal red, green and blue or as a palette, gives C=1; colour gives C=3;
    1-bit gives 0 and 255; an opaque alpha channel is dropped; Exif orientation is applied. Raises InputError:
    truncated, checksum, corrupt, trailing_data, bad_header, empty_image, too_many_pixels, too_large_decompressed,
    multi_frame, wrong_channels (transparency), unsupported_colour, unsupported_dtype.
    Warns: constant_image, phi_in_header.
    """
    png = content.startswith(PNG_MAGIC)
    clean, exif = png_pixels(content, limits) if png else jpeg_pixels(content, limits)
    try:
        image = _png(clean, depth=content[24]) if png else _jpeg(clean)
    except (InputError, MemoryError):
        raise
    except Exception as error:
        # What a decoder raises on damaged data is a dozen types and no promise; all of them mean the data.
        early = "truncated" in str(error) or "remature end" in str(error)
        code, fact = ("truncated", "ends too early") if early else ("corrupt", "is damaged")
        raise InputError(code, f"the compressed image {fact}", "copy or export the file again") from error
    tags = exif_tags(exif)
    warnings = () if tags.keys() <= HARMLESS_TAGS else ("phi_in_header",)
    image = np.ascontiguousarray(_upright(image, tags.get(ORIENTATION, 1)))
    return Case(case_id=case_id, image=image, affine=np.eye(4), warnings=check_values(image) + warnings)


def _png(content: bytes, depth: int) -> Array:
    """(C, row, column), before orientation; `depth` is the stored number of bits per sample."""
    # The class, not Image.open: it has a pixel limit of its own, which warns below ours and is process-wide.
    with PngImageFile(BytesIO(content)) as picture:
        picture.load()
        key = picture.info.get("transparency")
        if picture.mode == "P":
            return _channels(np.array(picture.convert("RGB" if key is None else "RGBA")))
        _refuse_modes_but(picture, ("1", "L", "I;16", "LA", "RGB", "RGBA"))
        stored = np.array(picture.convert("L") if picture.mode == "1" else picture)
    if key is not None:
        # Pillow widens 2- and 4-bit grey to 0..255, but not the level that stands for transparent.
        key = np.asarray(key) * (255 // (2**depth - 1) if depth in (2, 4) else 1)
        _refuse_transparent((stored == key).reshape(*stored.shape[:2], -1).all(axis=-1))
    return _channels(stored)


def _jpeg(content: bytes) -> Array:
    """(C, row, column), before orientation.

    Pillow uses the same library and gives the same pixels, but keeps its warnings of damaged data to itself.
    """
    with JpegImageFile(BytesIO(content)) as picture:
        _refuse_modes_but(picture, ("L", "RGB"))
        colours = "GRAY" if picture.mode == "L" else "RGB"
    return _channels(decode_jpeg(content, colours, strict=True))


def _refuse_modes_but(picture: ImageFile, modes: tuple[str, ...]) -> None:
    if picture.mode not in modes:
        raise InputError("unsupported_colour", f"the image is stored as {picture.mode}", "save it as grey or RGB")


def _channels(stored: Array) -> Array:
    """(row, column[, channel]) to (C, row, column): opaque, and grey as one channel."""
    if stored.ndim == 2:
        return stored[None]
    if stored.shape[-1] in (2, 4):
        _refuse_transparent(stored[..., -1] != 255)
        stored = stored[..., :-1]
    red = stored[..., 0]
    if all(np.array_equal(red, stored[..., channel]) for channel in range(1, stored.shape[-1])):
        return red[None]
    return np.moveaxis(stored, -1, 0)


def _refuse_transparent(mask: Array) -> None:
    if mask.any():
        share = 100 * float(mask.mean())
        raise InputError(
            "wrong_channels", f"{share:.3g} % of the pixels are transparent", "save it without transparency"
        )


def _upright(image: Array, orientation: int) -> Array:
    """Undo the camera's rotation or mirror (Exif tag 0x0112, 1 to 8; other values mean nothing)."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(0, 2, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return image[:, ::rows, ::columns]
