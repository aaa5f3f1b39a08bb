"""What the figures of a search are put together from: its trials, places on axes, and text that fits."""

from __future__ import annotations

import math
import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medray.reports.canvas import COLOURS, GREY, new_figure, plain, png_bytes, quiet

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
Pair = tuple[float, float]
BLACK = COLOURS[6]
STATES = {
    "finished": ("o", COLOURS[0], "-"),
    "stopped": ("s", COLOURS[4], "-"),
    "failed": ("x", COLOURS[1], ":"),
    "running": ("D", COLOURS[2], "--"),
}
"""Marker, colour and dashes; a waiting trial has nothing to show."""
MOST_TICKS = 12


@dataclass(frozen=True, slots=True)
class StudyPoint:
    """One trial of a search, as figures see it."""

    index: int
    """Number of the trial, from 0, in the order in which they were drawn."""
    state: Literal["waiting", "running", "finished", "stopped", "failed"]
    score: float
    """Value of the monitored metric; NaN where there is none."""
    choices: Mapping[str, float | str]
    """Decision -> number, or label of an option; without conditional ones that were not drawn."""
    epochs: Sequence[float]
    values: Sequence[float]
    """The monitored metric at those epochs; NaN leaves a gap."""


@dataclass(frozen=True, slots=True)
class StudyAxis:
    """One decision: a range, or an option of `labels`; then the range does not count."""

    name: str
    low: float
    high: float
    log: bool
    labels: tuple[str, ...] = ()


Points = Sequence[StudyPoint]


class Trials:
    """Trials that have something to show, in their order."""

    def __init__(self, points: Points, monitor: str, sign: int) -> None:
        shown = (p for p in points if p.state not in ("waiting", "running") or np.isfinite([p.score, *p.values]).any())
        self.points = sorted(shown, key=lambda point: point.index)
        self.index = np.array([point.index for point in self.points], float)
        self.scores = np.array([point.score for point in self.points], float)
        known = np.isfinite(self.scores)
        self.scores[~known] = np.nan
        states = np.array([point.state for point in self.points], str)
        groups = [known & (states == "finished"), known & (states != "failed"), known]
        self.usual = next((group for group in groups if group.any()), known)
        """Those that the best one is of."""
        self.best = int(np.nanargmax(np.where(self.usual, sign * self.scores, np.nan))) if known.any() else None
        self.limits = ends_of(self.scores, sign, [] if self.best is None else self.scores[[self.best]])
        self.measure, self.sign = measure_of(monitor, sign), sign

    def counts(self) -> list[tuple[str, int]]:
        """States that occur, and how often."""
        found = Counter[str](point.state for point in self.points)
        return [(state, found[state]) for state in STATES if found[state]]

    def dots(self, axes: Axes, x: ArrayLike, y: Floats, colours: ArrayLike, marker: str, size: float = 26) -> None:
        """Points; those without a y, or with one beyond the axis, on its worse edge."""
        low, high = self.limits
        x, colours, missing, inside = np.asarray(x), np.asarray(colours), np.isnan(y), (y >= low) & (y <= high)
        heights = np.where(inside, y, low if self.sign > 0 else high)
        triangle = "v" if self.sign > 0 else "^"
        groups = ((inside, marker, ""), (missing, "x", "no score"), (~inside & ~missing, triangle, "beyond the axis"))
        for mask, shape, label in groups:
            if (mask := mask & np.isfinite(x)).any():
                style: dict[str, Any] = {"lw": 1.4} if shape == "x" else {"ec": "#444444", "lw": 0.4}
                axes.scatter(
                    x[mask], heights[mask], size, colours[mask], marker=shape, clip_on=False, zorder=3, **style
                )
                axes.plot([], [], shape, color=GREY, label=label)

    def ring(self, axes: Axes, x: ArrayLike, y: Floats, position: int) -> None:
        """A ring around the point of the best trial."""
        label = f"best: {name_of(self.points[self.best or 0])}"
        style: dict[str, Any] = {"color": "none", "markeredgecolor": BLACK, "markersize": 10, "clip_on": False}
        axes.plot(
            np.asarray(x)[position],
            np.clip(y[position], *self.limits),
            "o",
            label=label,
            zorder=5,
            markeredgewidth=1.4,
            **style,
        )


def ends_of(values: Floats, sign: int, needed: ArrayLike = ()) -> Pair:
    """Ends of an axis, with a margin: `needed`, and all values but outliers on the worse side (Tukey's fence)."""
    found = sign * values[np.isfinite(values)]
    if not len(found):
        return 0.0, 1.0
    low, high = np.quantile(found, [0.25, 0.75])
    kept = np.concatenate([found[found >= low - 1.5 * (high - low)], sign * np.asarray(needed, float)])
    worst, best = float(kept.min()), float(kept.max())
    room = 0.07 * (best - worst) if best - worst > 1e-9 * abs(best) else 0.05 * abs(best) or 0.5
    first, last = sorted((sign * (worst - room), sign * (best + room)))
    return first, last


def shares_of(axis: StudyAxis, numbers: Floats) -> Floats:
    """Where numbers of a range lie, from 0 to 1."""
    ends = np.array([axis.low, axis.high], float)
    if axis.log and axis.low > 0:
        ends, numbers = np.log(ends), np.log(np.maximum(numbers, axis.low))
    shares: Floats = np.clip((numbers - ends[0]) / (np.ptp(ends) or 1.0), 0, 1)
    return shares


def places_of(axis: StudyAxis, points: Points) -> Floats:
    """Where points lie on the axis, from 0 to 1; NaN where the decision was not drawn. The same option apart."""
    values = [point.choices.get(axis.name, math.nan) for point in points]
    if not axis.labels:
        return shares_of(axis, np.array([math.nan if isinstance(value, str) else value for value in values], float))
    order = {label: float(place) for place, label in enumerate(axis.labels)}
    return (np.array([order.get(str(value), math.nan) for value in values]) + 0.5 + 0.4 * shifts_of(points)) / len(
        order
    )


def shifts_of(points: Points) -> Floats:
    """Shifts from -0.5 to 0.5 that keep trials apart, the same for the same trial."""
    return np.array([point.index for point in points]) * 0.6180339887 % 1 - 0.5


def ticks_of(axis: StudyAxis) -> tuple[list[float], list[str]]:
    """Places from 0 to 1, and what to write there."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    if axis.labels:
        shown = range(0, len(axis.labels), -(-len(axis.labels) // MOST_TICKS))
        return [(n + 0.5) / len(axis.labels) for n in shown], [wrapped(axis.labels[n], 12) for n in shown]
    locator: LogLocator | MaxNLocator = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10])
    if axis.log and axis.low > 0:
        locator = LogLocator(subs=(1.0,) if axis.high >= 99 * axis.low else (1.0, 2.0, 5.0), numticks=6)
    near = 1e-9 * abs(axis.high - axis.low)
    values = [v for v in locator.tick_values(axis.low, axis.high) if axis.low - near <= v <= axis.high + near]
    values = values if len(values) > 1 else [axis.low, axis.high]
    return shares_of(axis, np.array(values)).tolist(), [re.sub(r"e([-+])0", r"e\1", f"{v:.3g}") for v in values]


def wrapped(text: str, width: int, lines: int = 3) -> str:
    """Text in lines that rather break after a sign than in a word; the middle of a very long one is left out."""
    half = width * lines // 2
    text = text if len(text) <= 2 * half else text[: half - 1] + "…" + text[-half:]
    parts = textwrap.wrap(re.sub(r"(?<=[]\[./=_,-])(?! )", "\v", text), width + 2, replace_whitespace=False)
    return plain("\n".join(part.replace("\v", "") for part in parts) if lines > 1 else text)


def measure_of(name: str, sign: int) -> str:
    """What to write beside an axis of a metric."""
    return f"{wrapped(name.removeprefix('val/'), 40, 1)} ({'higher' if sign > 0 else 'lower'} is better)"


def name_of(point: StudyPoint) -> str:
    """A trial in a legend."""
    return f"trial {point.index} ({point.score:.4g})"


def with_bar(figure: Figure, ends: Pair, name: str, label: str) -> ScalarMappable:
    """Colours of numbers, with their bar."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    shades = ScalarMappable(Normalize(ends[0], ends[1] if ends[1] > ends[0] else ends[0] + 1), name)
    whole = all(float(end).is_integer() for end in ends)
    style: dict[str, Any] = {"ticks": MaxNLocator(5, integer=whole), "fraction": 0.03, "pad": 0.02, "aspect": 30}
    figure.colorbar(shades, ax=figure.axes, label=label, **style).ax.tick_params(labelsize=9)
    return shades


def nothing(points: Points, text: str = "") -> bytes:
    """A figure that says why there is none."""
    counts = Counter(point.state for point in points)
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    text = text or (f"No trial has a score: {states}." if points else "There are no trials.")
    figure = new_figure(6.2, 1.2)
    axes = figure.add_subplot(xticks=[], yticks=[])
    axes.spines[:].set_color("#DDDDDD")
    axes.text(0.5, 0.5, text, ha="center", va="center", color=GREY, transform=axes.transAxes)
    return png_bytes(figure)


def finished(figure: Figure, axes: Axes | None = None, whole: bool = False) -> bytes:
    """PNG bytes, with one legend above; `axes` made quiet, with whole numbers below if so."""
    from matplotlib.ticker import MaxNLocator

    if axes is not None:
        quiet(axes)
        axes.ticklabel_format(useOffset=False)
        if whole:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    entries: dict[str, Artist] = {}
    for panel in figure.axes:
        entries |= {label: line for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    if entries:
        figure.legend(
            list(entries.values()), list(entries), loc="outside upper center", ncols=4, fontsize=8, frameon=False
        )
    return png_bytes(figure)
