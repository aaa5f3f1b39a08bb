"""Figures of a search, as PNG bytes: its trials over time, their curves, and what their decisions did to the score.

`sign` is 1 where more of the monitored metric is better, -1 where less is. The best trial is the best finished one;
while none has finished, the best that did not fail. A score that is not finite is none. Axes of scores show the better
ones apart: on the worse edge, outliers are triangles, and trials that ended without a score crosses. A figure without
data says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medray.reports.canvas import COLOURS, GREY, new_figure, png_bytes, quiet
from medray.reports.study_parts import (
    BLACK,
    STATES,
    Floats,
    Pair,
    Points,
    StudyAxis,
    StudyPoint,
    Trials,
    ends_of,
    finished,
    measure_of,
    name_of,
    nothing,
    places_of,
    shares_of,
    shifts_of,
    ticks_of,
    with_bar,
    wrapped,
)

__all__ = [
    "StudyAxis",
    "StudyPoint",
    "importance",
    "learning_curves",
    "optimisation_history",
    "parallel_coordinates",
    "pareto",
    "pareto_front",
    "slices",
]
MOST_PANELS, MOST_BARS = 12, 30
NOT_DRAWN = -0.16
"""Where, below an axis from 0 to 1, trials without its decision run through."""


def optimisation_history(points: Points, monitor: str, sign: int, baseline: int | None = None) -> bytes:
    """Score of each trial in their order, and the best so far; the score of trial `baseline` is a dotted line."""
    trials = Trials(points, monitor, sign)
    if trials.best is None:
        return nothing(points)
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
            axes.axhline(np.clip(point.score, *trials.limits), label=f"baseline: {name_of(point)}", **style)
    trials.ring(axes, trials.index, trials.scores, trials.best)
    axes.set(xlim=(x[0] - 0.7, x[-1] + 0.2), ylim=trials.limits, xlabel="trial", ylabel=trials.measure)
    return finished(figure, axes, whole=True)


def learning_curves(points: Points, monitor: str, sign: int) -> bytes:
    """The monitored metric of every trial over epochs; the best trial is bold, and its best epoch has a ring."""
    trials = Trials([point for point in points if np.isfinite(point.values).any()], monitor, sign)
    if not trials.points:
        return nothing(points)
    trials.limits = ends_of(np.concatenate([point.values for point in trials.points]), sign)
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
    return finished(figure, axes, whole=True)


def parallel_coordinates(points: Points, axes: Sequence[StudyAxis], monitor: str, sign: int) -> bytes:
    """A line per trial with a score through its decisions to the score: the better the darker, the best one bold.

    A trial without a decision runs below that axis; those with the same option are drawn slightly apart.
    """
    trials = Trials([point for point in points if math.isfinite(point.score)], monitor, sign)
    if trials.best is None or not axes:
        return nothing(points, "" if axes else "The search has no decisions.")
    columns = [*axes, StudyAxis(monitor.removeprefix("val/"), *trials.limits, log=False)]
    places = np.array([*(places_of(axis, trials.points) for axis in axes), shares_of(columns[-1], trials.scores)])
    missing = np.isnan(places)
    places = np.where(missing, NOT_DRAWN + 0.04 * shifts_of(trials.points), places)
    figure = new_figure(max(5.0, 1.6 + 1.1 * len(columns)), 4.4)
    board = figure.add_subplot()
    shades = with_bar(figure, trials.limits, "cividis_r" if sign > 0 else "cividis", trials.measure)
    x = np.linspace(0, len(axes), 24 * len(axes) + 1)
    left = np.minimum(x.astype(int), len(axes) - 1)
    bend = ((x - left) ** 2 * (3 - 2 * (x - left)))[:, None]
    curves = places[left] * (1 - bend) + places[left + 1] * bend
    for number in np.argsort(sign * trials.scores):
        board.plot(x, curves[:, number], color=shades.to_rgba(trials.scores[number]), linewidth=1.1)
    label = f"best: {name_of(trials.points[trials.best])}"
    board.plot(x, curves[:, trials.best], color=COLOURS[1], linewidth=2.8, label=label, zorder=3)
    for position, axis in enumerate(columns):
        board.plot([position, position], [0, 1], color=BLACK, linewidth=1, zorder=4)
        board.text(position, 1.04, wrapped(axis.name, 14), ha="center", va="bottom", fontsize=8.5)
        box = {"facecolor": "#FFFFFF", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}
        for place, text in zip(*ticks_of(axis), strict=True):
            board.text(position - 0.04, place, text, ha="right", va="center", fontsize=7.5, bbox=box, zorder=5)
    if missing.any():
        board.text(-0.1, NOT_DRAWN, "not\ndrawn", ha="right", va="center", fontsize=8, color=GREY)
    board.set(xlim=(-0.1, len(axes) + 0.1), ylim=(NOT_DRAWN - 0.04 if missing.any() else -0.03, 1.03))
    board.set_axis_off()
    return finished(figure)


def importance(shares: Mapping[str, float]) -> bytes:
    """Share of the score's variation that each decision explains (0 to 1), in %, the 30 largest, largest first."""
    known = {name: 100 * share for name, share in shares.items() if math.isfinite(share)}
    if not known:
        return nothing([], "No importance of decisions: too few trials have a score.")
    names = sorted(known, key=lambda name: -known[name])[:MOST_BARS]
    figure = new_figure(6.2, 0.9 + 0.34 * len(names))
    axes = figure.add_subplot()
    axes.barh(range(len(names)), [known[name] for name in names], height=0.62, color=COLOURS[0])
    for place, name in enumerate(names):
        axes.annotate(f" {known[name]:.1f} %", (max(0.0, known[name]), place), va="center", fontsize=8, color=GREY)
    axes.set_yticks(range(len(names)), [wrapped(name, 40, 1) for name in names])
    axes.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, 1.16 * max(1.0, *known.values())))
    axes.set_xlabel("share of the score's variation in %")
    quiet(axes)
    axes.grid(False, axis="y")
    return png_bytes(figure)


def slices(points: Points, axes: Sequence[StudyAxis], monitor: str, sign: int) -> bytes:
    """Score over each of the first 12 decisions; the colour is the trial's number, the best trial has a ring."""
    trials, axes = Trials(points, monitor, sign), axes[:MOST_PANELS]
    if trials.best is None or not axes:
        return nothing(points, "" if axes else "The search has no decisions.")
    rows = -(-len(axes) // 4)
    columns = -(-len(axes) // rows)
    figure = new_figure(max(4.8, 2.5 * columns + 1.0), 0.6 + 2.6 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    shades = with_bar(figure, (trials.index[0], trials.index[-1]), "cividis", "trial")
    for panel in panels.ravel()[len(axes) :]:
        panel.set_axis_off()
    for panel, axis in zip(panels.ravel(), axes, strict=False):
        x = places_of(axis, trials.points)
        trials.dots(panel, x, trials.scores, shades.to_rgba(trials.index), "o")
        trials.ring(panel, x, trials.scores, trials.best)
        tilt: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
        quiet(panel)
        panel.set_xticks(*ticks_of(axis), fontsize=8, **(tilt if len("".join(axis.labels)) > 20 else {}))
        missing = f"\n({np.isnan(x).sum()} not drawn)" if np.isnan(x).any() else ""
        panel.set_xlabel(wrapped(axis.name, 24) + missing, fontsize=9)
        panel.set(xlim=(-0.06, 1.06), ylim=trials.limits)
    figure.supylabel(trials.measure, fontsize=10)
    return finished(figure)


def pareto(points: Points, names: tuple[str, str], values: Sequence[Pair], signs: tuple[int, int]) -> bytes:
    """Two objectives of each point (N, 2), named and signed; the front is joined, and labelled with trials' numbers.

    Failed trials and values that are not finite are left out. ValueError where points and values differ in number.
    """
    rows = [(*pair, point.index) for point, pair in zip(points, values, strict=True) if point.state != "failed"]
    table = np.array([row for row in rows if np.isfinite(row).all()], float).reshape(-1, 3)
    if not len(table):
        return nothing(points)
    found = pareto_front(table[:, :2].tolist(), signs)
    rest, front = np.delete(table, found, axis=0)[:, :2], table[sorted(found, key=lambda n: tuple(table[n]))]
    limits = np.array([ends_of(table[:, k], signs[k], front[:, k]) for k in (0, 1)])
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
        axes.annotate(wrapped(", ".join(numbers), 16), place, offset, textcoords="offset points", **style)
    axes.set(
        xlim=limits[0], ylim=limits[1], xlabel=measure_of(names[0], signs[0]), ylabel=measure_of(names[1], signs[1])
    )
    return finished(figure, axes)


def pareto_front(values: Sequence[Sequence[float]], signs: Sequence[int]) -> list[int]:
    """Positions of the points (N, M) that no other dominates: as good in every objective and better in one.

    Points with a NaN are never on the front; the same point twice is there twice.
    """
    table = np.asarray(values, float).reshape(-1, len(signs)) * np.asarray(signs)
    known = np.flatnonzero(~np.isnan(table).any(axis=1))
    rows = table[known]
    return [int(n) for n in known if not ((rows >= table[n]).all(axis=1) & (rows > table[n]).any(axis=1)).any()]
