"""The report of an evaluation as one HTML page: no script, nothing from elsewhere, whatever classes are called."""

from __future__ import annotations

import math
from dataclasses import dataclass

from medray.reports.page import Picture, Sheet, environment

BAR_WIDTH, BAR_HEIGHT = 200, 16
"""Of a drawn interval, in px."""
BAR_MARGIN = 5


@dataclass(frozen=True, slots=True)
class Bar:
    """A value with its interval, drawn in the last column of a row."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a table."""

    cells: tuple[str, ...]
    bar: Bar | None = None
    mark: str = ""
    """A warning beside the first cell."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a header; numbers stand right, words left."""

    header: tuple[str, ...]
    rows: tuple[Row, ...]
    words: int = 1
    """How many columns from the left hold words."""
    domain: tuple[float, float] = (0.0, 1.0)
    """Left and right end of the bars."""
    reference: float | None = None
    """Where a thin line crosses all bars: the value of all cases, or no difference."""
    title: str = ""
    note: str = ""

    @property
    def has_bars(self) -> bool:
        """Whether any row has one."""
        return any(row.bar is not None for row in self.rows)

    def place(self, value: float) -> float:
        """Where a value lies on a bar, in px; what is beyond an end lies on it."""
        low, high = self.domain
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return round(BAR_MARGIN + share * (BAR_WIDTH - 2 * BAR_MARGIN), 1)

    def drawn(self, bar: Bar | None) -> bool:
        """Whether there is something to draw."""
        return bar is not None and math.isfinite(bar.value)


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page."""

    title: str
    words: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Picture, ...] = ()
    sheets: tuple[Sheet, ...] = ()


@dataclass(frozen=True, slots=True)
class Alert:
    """What must be known before a figure is believed."""

    text: str
    grave: bool = False


@dataclass(frozen=True, slots=True)
class CardPart:
    """A heading of the model card with what stands below."""

    title: str
    words: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    rows: tuple[tuple[str, str], ...] = ()
    """(figure, value with interval)"""


@dataclass(frozen=True, slots=True)
class Page:
    """What the report says, from top to bottom."""

    title: str
    verdict: str
    in_words: str
    """The verdict, in a sentence."""
    sound: bool
    """Whether the figures may be read as those on unseen patients."""
    alerts: tuple[Alert, ...]
    purpose: str
    not_for: str
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    card: tuple[CardPart, ...]


def render(page: Page) -> str:
    """The page as HTML."""
    return environment().get_template("evaluation.html.j2").render(page=page, width=BAR_WIDTH, height=BAR_HEIGHT)


def as_markdown(title: str, card: tuple[CardPart, ...]) -> str:
    """The model card as a Markdown file; what stands in it is text, never markup."""
    lines = [f"# {_text(title)}", ""]
    for part in card:
        lines += [f"## {_text(part.title)}", ""]
        for words in part.words:
            lines += [_text(words), ""]
        if part.facts:
            lines += [*(f"* {_text(name)}: {_text(value)}" for name, value in part.facts), ""]
        if part.rows:
            lines += ["| figure | value (95 % interval) |", "|---|---|"]
            lines += [*(f"| {_text(name)} | {_text(value)} |" for name, value in part.rows), ""]
    return "\n".join(lines).rstrip() + "\n"


def _text(words: str) -> str:
    """`words` on one line, with what Markdown or HTML would read as markup escaped."""
    line = " ".join(words.split())
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else letter for letter in line)
