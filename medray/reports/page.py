"""The report of a check as one HTML page: no script, nothing from elsewhere, whatever the names of files are."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment

MAX_BYTES = 5_000_000
SHOWN_CASES = 100
MAX_TEXT = 300
"""Longer ids and remarks are cut: the table beside the page has them whole."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One finding."""

    severity: str
    """error or warning."""
    code: str
    detail: str
    mend: str
    cases: tuple[tuple[str, str], ...] = ()
    """(case id, remark); the first 100 are shown."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG with words below."""

    png: bytes
    caption: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Sheet:
    """Pictures under one heading."""

    title: str
    pictures: tuple[Picture, ...]
    legend: tuple[tuple[str, str], ...] = ()
    """(name, #RRGGBB) of what is drawn over the pictures."""

    @property
    def width_px(self) -> int:
        """Width of the widest picture, as its PNG header says."""
        return max((int.from_bytes(picture.png[16:20], "big") for picture in self.pictures), default=0)


@dataclass(frozen=True, slots=True)
class Page:
    """What the report says, from top to bottom."""

    title: str
    verdict: str
    ready: bool
    next: str
    """The command to go on with."""
    facts: tuple[tuple[str, str], ...]
    entries: tuple[Entry, ...]
    figures: tuple[Picture, ...]
    sheets: tuple[Sheet, ...]
    notes: tuple[str, ...] = ()


def environment() -> Environment:
    """What fills the templates of this room: every text is escaped, a name that is not there is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # autoescape for every name: by default jinja2 escapes none, and its helper for that goes by the suffix.
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["data_uri"] = lambda png: f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
    made.filters["cut"] = lambda text: text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
    return made


def render(page: Page) -> str:
    """The page as HTML of at most about 5 MB: pictures beyond that are left out, and it says so."""
    template = environment().get_template("check.html.j2")
    bare = template.render(page=replace(page, sheets=()), left_out=0, shown=SHOWN_CASES)
    sheets, left_out = _fitting(page.sheets, MAX_BYTES - len(bare.encode("utf-8", "replace")))
    return template.render(page=replace(page, sheets=sheets), left_out=left_out, shown=SHOWN_CASES)


def _fitting(sheets: Sequence[Sheet], room: int) -> tuple[tuple[Sheet, ...], int]:
    """The sheets with as many of their pictures as fit into `room` bytes of HTML, and how many do not."""
    kept, left_out = [], 0
    for sheet in sheets:
        pictures = []
        for picture in sheet.pictures:
            # Four letters for three bytes, and some hundred of markup and words.
            size = len(picture.png) * 4 // 3 + 4 * min(MAX_TEXT, len(picture.caption) + len(picture.note)) + 500
            if size > room:
                left_out += 1
                continue
            room -= size
            pictures.append(picture)
        if pictures:
            kept.append(replace(sheet, pictures=tuple(pictures)))
    return tuple(kept), left_out
