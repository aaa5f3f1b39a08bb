"""JPEG baseline inside DICOM: 8-bit frames by libjpeg-turbo, which says what is damaged and does not abort over it.

Sources: DICOM PS3.5 8.2.1; ITU-T T.81 annex B (markers), T.871 (JFIF), T.872 (Adobe's APP14).
"""

from __future__ import annotations

import numpy as np
from simplejpeg import decode_jpeg

from medray.types import Array

START = b"\xff\xd8"
MARKERS = ((0xE0, b"JFIF\0"), (0xEE, b"Adobe"))
"""Application segments that tell the colour space of a stream."""
RGB, YBR = (b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform]) for transform in (0, 1))


def decode(frame: bytes, samples: int, photometric: str) -> Array:
    """One frame, (row, column) or (row, column, 3) in RGB, uint8.

    The stream's own marker says whether its colours are RGB or YBR; where it has none, `photometric` does.
    Raises ValueError for data that are damaged.
    """
    if samples == 1:
        return np.asarray(decode_jpeg(frame, "GRAY", strict=True)[..., 0])
    if not _tells_colours(frame):
        frame = START + (RGB if photometric == "RGB" else YBR) + frame[len(START) :]
    return np.asarray(decode_jpeg(frame, "RGB", strict=True))


def _tells_colours(frame: bytes) -> bool:
    """Whether an application segment before the first table or frame names the colour space."""
    at = len(START)
    while frame[at : at + 1] == b"\xff" and 0xE0 <= frame[at + 1] <= 0xEF:
        if any(frame[at + 1] == marker and frame[at + 4 :].startswith(name) for marker, name in MARKERS):
            return True
        at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return False
