"""Panels of a picture on one sheet, with letters, a legend of colours or a scale of heat: drawn with Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from medray.types import Array

Colour = tuple[int, int, int]
"""RGB from 0 to 255."""
GAP_PX, TEXT_PX, ROW_PX, MARGIN_PX = 6, 15, 24, 10
GREY: Colour = (200, 200, 200)


def picture_of(panel: Array, left: str = "", top: str = "") -> Any:
    """A panel (row, column, 3) from 0 to 255 as a picture, with the letters of what is on its left and on top."""
    from PIL import Image, ImageDraw

    picture = Image.fromarray(np.rint(panel).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    style: dict[str, Any] = {"font": _font(), "fill": GREY, "stroke_width": 1, "stroke_fill": (0, 0, 0)}
    draw.text((5, picture.height / 2), left, anchor="lm", **style)
    draw.text((picture.width / 2, 4), top, anchor="mt", **style)
    return picture


def arranged(panels: Sequence[Any]) -> Any:
    """The pictures in rows of a sheet about half as wide again as high, each in the middle of its place."""
    from PIL import Image

    columns = len(panels) if len(panels) <= 3 else math.ceil(math.sqrt(1.5 * len(panels)))
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    heights = [max(picture.height for picture in row) for row in rows]
    widths = [sum(picture.width for picture in row) + GAP_PX * (len(row) - 1) for row in rows]
    sheet = Image.new("RGB", (max(widths), sum(heights) + GAP_PX * (len(rows) - 1)))
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for picture in row:
            sheet.paste(picture, (left, top + (height - picture.height) // 2))
            left += picture.width + GAP_PX
        top += height + GAP_PX
    return sheet


def with_legend(sheet: Any, labels: Sequence[tuple[Colour, str]]) -> Array:
    """(row, column, 3) of the sheet with squares and labels below, in as many rows as they need."""
    from PIL import Image, ImageDraw

    font, places, left, row = _font(), [], MARGIN_PX, 0
    for colour, label in labels:
        width = ROW_PX + math.ceil(font.getlength(label)) + MARGIN_PX
        if left > MARGIN_PX and left + width > sheet.width:
            left, row = MARGIN_PX, row + 1
        places.append((colour, label, left, sheet.height + MARGIN_PX + row * ROW_PX))
        left += width + MARGIN_PX
    height = (row + 1) * ROW_PX + 2 * MARGIN_PX if labels else 0
    picture = Image.new("RGB", (sheet.width, sheet.height + height))
    picture.paste(sheet)
    draw = ImageDraw.Draw(picture)
    for colour, label, x, y in places:
        square = (x, y + (ROW_PX - 12) // 2, x + 12, y + (ROW_PX + 12) // 2)
        draw.rounded_rectangle(square, 3, fill=colour)
        draw.text((x + 20, y + ROW_PX / 2), label, font=font, fill=GREY, anchor="lm")
    return np.asarray(picture)


def with_scale(sheet: Any, colours: Array, top: float) -> Array:
    """The sheet with a bar of `colours` (N, 3), from 0 to `top`, below."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (sheet.width, sheet.height + ROW_PX + 2 * MARGIN_PX))
    picture.paste(sheet)
    draw, font = ImageDraw.Draw(picture), _font()
    y = sheet.height + MARGIN_PX + ROW_PX // 2
    width = min(180, sheet.width // 2)
    bar = Image.fromarray(np.rint(colours).astype(np.uint8)[None]).resize((width, 10), Image.Resampling.NEAREST)
    picture.paste(bar, (MARGIN_PX + 16, y - 5))
    draw.text((MARGIN_PX, y), "0", font=font, fill=GREY, anchor="lm")
    draw.text((MARGIN_PX + 24 + width, y), short(top), font=font, fill=GREY, anchor="lm")
    return np.asarray(picture)


def short(number: float) -> str:
    """Three digits that count."""
    return f"{number:.0f}" if number >= 100 else f"{number:#.3g}"


def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(TEXT_PX)
