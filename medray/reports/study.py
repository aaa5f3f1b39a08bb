"""Figures of a search, as PNG bytes: its trials over time, their curves, and what their decisions did to the score.

`sign` is 1 where more of the monitored metric is better, -1 where less is. The best trial is the best finished one;
while none has finished, the best that did not fail. A score that is not finite is none. Axes of scores show the better
ones apart: on the worse edge, outliers are triangles, and trials that ended without a score crosses. A figure without
data says so.
"""

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
MOST_PANELS, MOST_BARS, MOST_TICKS = 12, 30, 12
NOT_DRAWN = -0.16
"""Where, below an axis from 0 to 1, trials without its decision run through."""


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


def optimisation_history(points: Points, monitor: str, sign: int, baseline: int | None = None) -> bytes:
    """Score of each trial in their order, and the best so far; the score of trial `baseline` is a dotted line."""
    trials = _Trials(points, monitor, sign)
    if trials.best is None:
        return _nothing(points)
    figure = new_figure(7.2, 3.8)
    axes = figure.add_subplot()
    for state, count in trials.counts():
        marker, colour, _ = STATES[state]
        axes.plot([], [], marker, color=colour, label=f"{state} ({count})")
        chosen = [n for n, point in enumerate(trials.points) if point.state == state]
        trials.dots(axes, trials.index[chosen], trials.scores[chosen], [colour] * count, marker)
    reached = sign * np.fmax.accumulate(np.where(trials.usual, sign * trials.scores, np.nan))
    x, y = [*trials.index, trials.index[-1] + 0.5], [*reached, reached[-1]]
    axes.step(x, y, where="post", color=BLACK, linewidth=1.2, label="best so far")
    for point in trials.points:
        if point.index == baseline and math.isfinite(point.score):
            style: dict[str, Any] = {"color": GREY, "linewidth": 1.4, "linestyle": ":", "zorder": 1}
            axes.axhline(np.clip(point.score, *trials.limits), label=f"baseline: {_named(point)}", **style)
    trials.ring(axes, trials.index, trials.scores, trials.best)
    axes.set(xlim=(x[0] - 0.7, x[-1] + 0.2), ylim=trials.limits, xlabel="trial", ylabel=trials.measure)
    return _finish(figure, axes, whole=True)


def learning_curves(points: Points, monitor: str, sign: int) -> bytes:
    """The monitored metric of every trial over epochs; the best trial is bold, and its best epoch has a ring."""
    trials = _Trials([point for point in points if np.isfinite(point.values).any()], monitor, sign)
    if not trials.points:
        return _nothing(points)
    trials.limits = _limits(np.concatenate([point.values for point in trials.points]), sign)
    figure = new_figure(7.2, 4.2)
    axes = figure.add_subplot()
    for state, count in trials.counts():
        marker, colour, dashes = STATES[state]
        line = f"{dashes}{marker}" if state in ("stopped", "failed") else dashes
        axes.plot([], [], line, color=GREY if state == "stopped" else colour, ms=4, label=f"{state} ({count})")
    for number, point in enumerate(trials.points):
        marker, colour, dashes = STATES.get(point.state, STATES["running"])
        grey, bold = point.state == "stopped", number == trials.best
        colour = BLACK if bold else GREY if grey else colour
        values = np.where(np.isfinite(point.values), point.values, np.nan)
        style: dict[str, Any] = {"linewidth": 2.4 if bold else 0.7 if grey else 1.1, "zorder": 4 if bold else 2}
        axes.plot(point.epochs, values, dashes, color=colour, alpha=1 if bold else 0.7, **style)
        last = int(np.flatnonzero(np.isfinite(values))[-1])
        beyond = not trials.limits[0] <= values[last] <= trials.limits[1]
        if beyond or point.state in ("stopped", "failed") or np.isfinite(values).sum() == 1:
            trials.dots(axes, [point.epochs[last]], values[[last]], [colour], marker, 12)
        if bold:
            trials.ring(axes, point.epochs, values, int(np.nanargmax(sign * values)))
    axes.set(ylim=trials.limits, xlabel="epoch", ylabel=trials.measure)
    return _finish(figure, axes, whole=True)


def parallel_coordinates(points: Points, axes: Sequence[StudyAxis], monitor: str, sign: int) -> bytes:
    """A line per trial with a score through its decisions to the score: the better the darker, the best one bold.

    A trial without a decision runs below that axis; those with the same option are drawn slightly apart.
    """
    trials = _Trials([point for point in points if math.isfinite(point.score)], monitor, sign)
    if trials.best is None or not axes:
        return _nothing(points, "" if axes else "The search has no decisions.")
    columns = [*axes, StudyAxis(monitor.removeprefix("val/"), *trials.limits, log=False)]
    places = np.array([*(_places(axis, trials.points) for axis in axes), _shares(columns[-1], trials.scores)])
    missing = np.isnan(places)
    places = np.where(missing, NOT_DRAWN + 0.04 * _spread(trials.points), places)
    figure = new_figure(max(5.0, 1.6 + 1.1 * len(columns)), 4.4)
    board = figure.add_subplot()
    shades = _shades(figure, trials.limits, "cividis_r" if sign > 0 else "cividis", trials.measure)
    x = np.linspace(0, len(axes), 24 * len(axes) + 1)
    left = np.minimum(x.astype(int), len(axes) - 1)
    bend = ((x - left) ** 2 * (3 - 2 * (x - left)))[:, None]
    curves = places[left] * (1 - bend) + places[left + 1] * bend
    for number in np.argsort(sign * trials.scores):
        board.plot(x, curves[:, number], color=shades.to_rgba(trials.scores[number]), linewidth=1.1)
    label = f"best: {_named(trials.points[trials.best])}"
    board.plot(x, curves[:, trials.best], color=COLOURS[1], linewidth=2.8, label=label, zorder=3)
    for position, axis in enumerate(columns):
        board.plot([position, position], [0, 1], color=BLACK, linewidth=1, zorder=4)
        board.text(position, 1.04, _wrapped(axis.name, 14), ha="center", va="bottom", fontsize=8.5)
        box = {"facecolor": "#FFFFFF", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}
        for place, text in zip(*_ticks(axis), strict=True):
            board.text(position - 0.04, place, text, ha="right", va="center", fontsize=7.5, bbox=box, zorder=5)
    if missing.any():
        board.text(-0.1, NOT_DRAWN, "not\ndrawn", ha="right", va="center", fontsize=8, color=GREY)
    board.set(xlim=(-0.1, len(axes) + 0.1), ylim=(NOT_DRAWN - 0.04 if missing.any() else -0.03, 1.03))
    board.set_axis_off()
    return _finish(figure)


def importance(shares: Mapping[str, float]) -> bytes:
    """Share of the score's variation that each decision explains (0 to 1), in %, the 30 largest, largest first."""
    known = {name: 100 * share for name, share in shares.items() if math.isfinite(share)}
    if not known:
        return _nothing([], "No importance of decisions: too few trials have a score.")
    names = sorted(known, key=lambda name: -known[name])[:MOST_BARS]
    figure = new_figure(6.2, 0.9 + 0.34 * len(names))
    axes = figure.add_subplot()
    axes.barh(range(len(names)), [known[name] for name in names], height=0.62, color=COLOURS[0])
    for place, name in enumerate(names):
        axes.annotate(f" {known[name]:.1f} %", (max(0.0, known[name]), place), va="center", fontsize=8, color=GREY)
    axes.set_yticks(range(len(names)), [_wrapped(name, 40, 1) for name in names])
    axes.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, 1.16 * max(1.0, *known.values())))
    axes.set_xlabel("share of the score's variation in %")
    quiet(axes)
    axes.grid(False, axis="y")
    return png_bytes(figure)


def slices(points: Points, axes: Sequence[StudyAxis], monitor: str, sign: int) -> bytes:
    """Score over each of the first 12 decisions; the colour is the trial's number, the best trial has a ring."""
    trials, axes = _Trials(points, monitor, sign), axes[:MOST_PANELS]
    if trials.best is None or not axes:
        return _nothing(points, "" if axes else "The search has no decisions.")
    rows = -(-len(axes) // 4)
    columns = -(-len(axes) // rows)
    figure = new_figure(max(4.8, 2.5 * columns + 1.0), 0.6 + 2.6 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    shades = _shades(figure, (trials.index[0], trials.index[-1]), "cividis", "trial")
    for panel in panels.ravel()[len(axes) :]:
        panel.set_axis_off()
    for panel, axis in zip(panels.ravel(), axes, strict=False):
        x = _places(axis, trials.points)
        trials.dots(panel, x, trials.scores, shades.to_rgba(trials.index), "o")
        trials.ring(panel, x, trials.scores, trials.best)
        tilt: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
        quiet(panel)
        panel.set_xticks(*_ticks(axis), fontsize=8, **(tilt if len("".join(axis.labels)) > 20 else {}))
        missing = f"\n({np.isnan(x).sum()} not drawn)" if np.isnan(x).any() else ""
        panel.set_xlabel(_wrapped(axis.name, 24) + missing, fontsize=9)
        panel.set(xlim=(-0.06, 1.06), ylim=trials.limits)
    figure.supylabel(trials.measure, fontsize=10)
    return _finish(figure)


def pareto(points: Points, names: tuple[str, str], values: Sequence[Pair], signs: tuple[int, int]) -> bytes:
    """Two objectives of each point (N, 2), named and signed; the front is joined, and labelled with trials' numbers.

    Failed trials and values that are not finite are left out. ValueError where points and values differ in number.
    """
    rows = [(*pair, point.index) for point, pair in zip(points, values, strict=True) if point.state != "failed"]
    table = np.array([row for row in rows if np.isfinite(row).all()], float).reshape(-1, 3)
    if not len(table):
        return _nothing(points)
    found = pareto_front(table[:, :2].tolist(), signs)
    rest, front = np.delete(table, found, axis=0)[:, :2], table[sorted(found, key=lambda n: tuple(table[n]))]
    limits = np.array([_limits(table[:, k], signs[k], front[:, k]) for k in (0, 1)])
    figure = new_figure(6.4, 4.6)
    axes = figure.add_subplot()
    style: dict[str, Any] = {"color": GREY, "alpha": 0.6, "clip_on": False, "label": f"dominated ({len(rest)})"}
    axes.plot(*np.clip(rest, *limits.T).T, "o", markersize=5, **style)
    # What lies on the worse side of the line is dominated.
    style = {"color": COLOURS[0], "label": f"front ({len(front)})", "zorder": 3}
    axes.step(front[:, 0], front[:, 1], "o-", where="pre" if signs[0] > 0 else "post", **style)
    labels: list[tuple[Floats, list[str]]] = []
    for row in front:
        if not labels or (np.abs(row - labels[-1][0])[:2] > 0.05 * np.ptp(limits, axis=1)).any():
            labels.append((row, []))
        labels[-1][1].append(f"{row[2]:.0f}")
    style = {"ha": "left" if signs[0] > 0 else "right", "va": "bottom" if signs[1] > 0 else "top", "fontsize": 8}
    for row, numbers in labels:
        place = (row[0], row[1])
        offset = (4 * signs[0], 3 * signs[1])
        axes.annotate(_wrapped(", ".join(numbers), 16), place, offset, textcoords="offset points", **style)
    axes.set(xlim=limits[0], ylim=limits[1], xlabel=_measure(names[0], signs[0]), ylabel=_measure(names[1], signs[1]))
    return _finish(figure, axes)


def pareto_front(values: Sequence[Sequence[float]], signs: Sequence[int]) -> list[int]:
    """Positions of the points (N, M) that no other dominates: as good in every objective and better in one.

    Points with a NaN are never on the front; the same point twice is there twice.
    """
    table = np.asarray(values, float).reshape(-1, len(signs)) * np.asarray(signs)
    known = np.flatnonzero(~np.isnan(table).any(axis=1))
    rows = table[known]
    return [int(n) for n in known if not ((rows >= table[n]).all(axis=1) & (rows > table[n]).any(axis=1)).any()]


class _Trials:
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
        self.limits = _limits(self.scores, sign, [] if self.best is None else self.scores[[self.best]])
        self.measure, self.sign = _measure(monitor, sign), sign

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
        label = f"best: {_named(self.points[self.best or 0])}"
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


def _limits(values: Floats, sign: int, needed: ArrayLike = ()) -> Pair:
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


def _shares(axis: StudyAxis, numbers: Floats) -> Floats:
    """Where numbers of a range lie, from 0 to 1."""
    ends = np.array([axis.low, axis.high], float)
    if axis.log and axis.low > 0:
        ends, numbers = np.log(ends), np.log(np.maximum(numbers, axis.low))
    shares: Floats = np.clip((numbers - ends[0]) / (np.ptp(ends) or 1.0), 0, 1)
    return shares


def _places(axis: StudyAxis, points: Points) -> Floats:
    """Where points lie on the axis, from 0 to 1; NaN where the decision was not drawn. The same option apart."""
    values = [point.choices.get(axis.name, math.nan) for point in points]
    if not axis.labels:
        return _shares(axis, np.array([math.nan if isinstance(value, str) else value for value in values], float))
    order = {label: float(place) for place, label in enumerate(axis.labels)}
    return (np.array([order.get(str(value), math.nan) for value in values]) + 0.5 + 0.4 * _spread(points)) / len(order)


def _spread(points: Points) -> Floats:
    """Shifts from -0.5 to 0.5 that keep trials apart, the same for the same trial."""
    return np.array([point.index for point in points]) * 0.6180339887 % 1 - 0.5


def _ticks(axis: StudyAxis) -> tuple[list[float], list[str]]:
    """Places from 0 to 1, and what to write there."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    if axis.labels:
        shown = range(0, len(axis.labels), -(-len(axis.labels) // MOST_TICKS))
        return [(n + 0.5) / len(axis.labels) for n in shown], [_wrapped(axis.labels[n], 12) for n in shown]
    locator: LogLocator | MaxNLocator = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10])
    if axis.log and axis.low > 0:
        locator = LogLocator(subs=(1.0,) if axis.high >= 99 * axis.low else (1.0, 2.0, 5.0), numticks=6)
    near = 1e-9 * abs(axis.high - axis.low)
    values = [v for v in locator.tick_values(axis.low, axis.high) if axis.low - near <= v <= axis.high + near]
    values = values if len(values) > 1 else [axis.low, axis.high]
    return _shares(axis, np.array(values)).tolist(), [re.sub(r"e([-+])0", r"e\1", f"{v:.3g}") for v in values]


def _wrapped(text: str, width: int, lines: int = 3) -> str:
    """Text in lines that rather break after a sign than in a word; the middle of a very long one is left out."""
    half = width * lines // 2
    text = text if len(text) <= 2 * half else text[: half - 1] + "…" + text[-half:]
    parts = textwrap.wrap(re.sub(r"(?<=[]\[./=_,-])(?! )", "\v", text), width + 2, replace_whitespace=False)
    return plain("\n".join(part.replace("\v", "") for part in parts) if lines > 1 else text)


def _measure(name: str, sign: int) -> str:
    """What to write beside an axis of a metric."""
    return f"{_wrapped(name.removeprefix('val/'), 40, 1)} ({'higher' if sign > 0 else 'lower'} is better)"


def _named(point: StudyPoint) -> str:
    """A trial in a legend."""
    return f"trial {point.index} ({point.score:.4g})"


def _shades(figure: Figure, ends: Pair, name: str, label: str) -> ScalarMappable:
    """Colours of numbers, with their bar."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    shades = ScalarMappable(Normalize(ends[0], ends[1] if ends[1] > ends[0] else ends[0] + 1), name)
    whole = all(float(end).is_integer() for end in ends)
    style: dict[str, Any] = {"ticks": MaxNLocator(5, integer=whole), "fraction": 0.03, "pad": 0.02, "aspect": 30}
    figure.colorbar(shades, ax=figure.axes, label=label, **style).ax.tick_params(labelsize=9)
    return shades


def _nothing(points: Points, text: str = "") -> bytes:
    """A figure that says why there is none."""
    counts = Counter(point.state for point in points)
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    text = text or (f"No trial has a score: {states}." if points else "There are no trials.")
    figure = new_figure(6.2, 1.2)
    axes = figure.add_subplot(xticks=[], yticks=[])
    axes.spines[:].set_color("#DDDDDD")
    axes.text(0.5, 0.5, text, ha="center", va="center", color=GREY, transform=axes.transAxes)
    return png_bytes(figure)


def _finish(figure: Figure, axes: Axes | None = None, whole: bool = False) -> bytes:
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
