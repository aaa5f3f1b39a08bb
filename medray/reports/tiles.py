"""Small pictures for a contact sheet: planes side by side with outlines in the colours of the classes, as PNG."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medray.reports.canvas import COLOURS

OUTLINES = tuple(COLOURS[index] for index in (4, 5, 3, 2, 1, 0))
"""Colours of classes 1, 2, ... from the seventh on again; the bright ones first, since images are dark."""
GAP_PX = 3
GREYS = 256 - len(OUTLINES)

Bytes = NDArray[np.uint8]


def colour_of(label: int) -> str:
    """The colour (#RRGGBB) of outlines of the class `label`, counted from 1."""
    return OUTLINES[(label - 1) % len(OUTLINES)]


def tile(planes: Sequence[Bytes], outlines: Sequence[Bytes]) -> bytes:
    """One PNG of grey (h, w) or RGB (h, w, 3) planes side by side on black.

    `outlines` (h, w) hold the class, counted from 1, of the pixels that are drawn over each plane, 0 elsewhere.
    """
    colour = any(plane.ndim == 3 for plane in planes)
    painted = [_paint(plane, outline, colour) for plane, outline in zip(planes, outlines, strict=True)]
    height = max(len(picture) for picture in painted)
    width = sum(picture.shape[1] for picture in painted) + GAP_PX * (len(painted) - 1)
    sheet = np.zeros((height, width, *painted[0].shape[2:]), np.uint8)
    left = 0
    for picture in painted:
        top = (height - len(picture)) // 2
        sheet[top : top + len(picture), left : left + picture.shape[1]] = picture
        left += picture.shape[1] + GAP_PX
    return _png(sheet)


def _paint(plane: Bytes, outline: Bytes, colour: bool) -> Bytes:
    """Places in the palette, or RGB."""
    drawn = outline > 0
    place = (outline[drawn].astype(np.int64) - 1) % len(OUTLINES)
    if not colour:
        picture = (plane.astype(np.uint16) * (GREYS - 1) // 255).astype(np.uint8)
        picture[drawn] = GREYS + place
        return picture
    picture = np.array(plane if plane.ndim == 3 else np.repeat(plane[..., None], 3, axis=2))
    picture[drawn] = _rgb()[place]
    return picture


def _rgb() -> Bytes:
    """(6, 3) the colours of outlines."""
    return np.array([list(bytes.fromhex(colour[1:])) for colour in OUTLINES], np.uint8)


def _png(sheet: Bytes) -> bytes:
    """PNG (w3.org/TR/png-3) of (h, w) places in the palette, or of (h, w, 3) RGB; 8 bits, no filter."""
    kind = 3 if sheet.ndim == 2 else 2
    header = struct.pack(">IIBBBBB", sheet.shape[1], len(sheet), 8, kind, 0, 0, 0)
    greys = np.linspace(0, 255, GREYS).round().astype(np.uint8)
    palette = np.concatenate([np.repeat(greys[:, None], 3, axis=1), _rgb()]).tobytes()
    rows = b"".join(b"\0" + row.tobytes() for row in sheet)
    chunks = [(b"IHDR", header), (b"PLTE", palette), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
        if name != b"PLTE" or kind == 3
    )
