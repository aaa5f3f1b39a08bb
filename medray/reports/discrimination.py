"""How well classes are told apart, as PNG bytes: ROC and precision-recall curves with thresholds marked on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medray.metrics.curves import pr_area, pr_curve, roc_area, roc_curve, step_counts
from medray.reports.canvas import (
    COLOURS,
    GREY,
    line_style,
    new_figure,
    png_bytes,
    quiet,
    short,
    square_axes,
    with_area,
    with_legend,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]
MARKERS = "osD^v<>PX"
MOST_MARKED = 12
"""More thresholds than this hide each other."""


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """One class against the rest: scores (N,) and whether it is true (N,)."""

    name: str
    scores: Floats
    positive: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Mark:
    """A threshold on the curve of the class `line`."""

    line: int
    name: str
    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int


def roc(lines: Sequence[Line], marks: Sequence[Mark] = ()) -> bytes:
    """Sensitivity over 1 - specificity of each line, its thresholds marked; a class that does not occur has none."""
    figure, axes = square_axes(len(lines) + len(marks), "1 - specificity", "sensitivity")
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    for number, line in enumerate(lines):
        x, y, _ = roc_curve(line.scores, line.positive)
        colour, dashes = line_style(number)
        label = with_area(line.name, roc_area(step_counts(line.scores, line.positive)), "AUC")
        axes.plot(x, y, dashes, color=colour, label=label, clip_on=False)
    for number, mark in enumerate(marks[:MOST_MARKED]):
        negatives, positives = mark.false_positives + mark.true_negatives, mark.true_positives + mark.false_negatives
        if negatives and positives:
            _mark(axes, number, mark, mark.false_positives / negatives, mark.true_positives / positives)
    return with_legend(figure, axes)


def precision_recall(lines: Sequence[Line], marks: Sequence[Mark] = ()) -> bytes:
    """Precision over recall of each line, its thresholds marked; the dotted line is the share of the class."""
    figure, axes = square_axes(len(lines) + len(marks), "recall (sensitivity)", "precision (PPV)")
    for number, line in enumerate(lines):
        precision, recall, _ = pr_curve(line.scores, line.positive)
        colour, dashes = line_style(number)
        label = with_area(line.name, pr_area(step_counts(line.scores, line.positive)), "AP")
        # The last point, recall 0 at precision 1, is a convention; holding the precision before it makes AP the area.
        held = np.append(precision[:-1], precision[-2:][0])
        axes.step(recall, held, dashes, where="post", color=colour, label=label, clip_on=False)
        if line.positive.any():
            axes.axhline(float(line.positive.mean()), color=colour, linewidth=0.8, linestyle=":", zorder=0)
    for number, mark in enumerate(marks[:MOST_MARKED]):
        called, positives = mark.true_positives + mark.false_positives, mark.true_positives + mark.false_negatives
        if called and positives:
            _mark(axes, number, mark, mark.true_positives / positives, mark.true_positives / called)
    return with_legend(figure, axes)


def _mark(axes: Axes, number: int, mark: Mark, x: float, y: float) -> None:
    style: dict[str, Any] = {"markersize": 7, "markeredgecolor": "#000000", "markeredgewidth": 0.9, "linestyle": "none"}
    marker, colour = MARKERS[number % len(MARKERS)], line_style(mark.line)[0]
    axes.plot(x, y, marker, color=colour, label=short(mark.name, 34), clip_on=False, zorder=4, **style)


def distribution(values: Sequence[tuple[str, Floats]], label: str, limits: tuple[float, float] | None = None) -> bytes:
    """A figure of each case, such as Dice, by group: a dot per case, a box from quarter to quarter, the median."""
    figure = new_figure(6.2, 0.9 + 0.42 * max(1, len(values)))
    axes = figure.add_subplot()
    for place, (_, numbers) in enumerate(values):
        known = numbers[np.isfinite(numbers)]
        # Spread so that dots do not hide each other; the same for the same cases.
        spread = np.random.default_rng(0).uniform(-0.25, 0.25, len(known))
        colour = COLOURS[place % (len(COLOURS) - 1)]
        axes.plot(known, place + spread, ".", color=colour, markersize=3.5, alpha=0.6, clip_on=False)
        if len(known):
            low, middle, high = np.quantile(known, [0.25, 0.5, 0.75])
            axes.plot([low, high], [place, place], color="#000000", linewidth=5, alpha=0.25, solid_capstyle="butt")
            axes.plot([middle, middle], [place - 0.33, place + 0.33], color="#000000", linewidth=1.6)
    names = [f"{short(name)} ({np.isfinite(numbers).sum()})" for name, numbers in values]
    axes.set_yticks(range(len(values)), names)
    axes.set_ylim(len(values) - 0.5, -0.5)
    if limits:
        axes.set_xlim(*limits)
    axes.set_xlabel(f"{label} of each case (in brackets: cases that define it)")
    quiet(axes)
    return png_bytes(figure)


def agreement(truth: Floats, said: Floats, name: str, limits: tuple[float, float, float]) -> bytes:
    """Said over true (N,), and their difference over their mean with `limits` (bias, low, high) (Bland 1986,
    10.1016/S0140-6736(86)90837-8)."""
    figure = new_figure(8.6, 3.8)
    left, right = figure.subplots(1, 2)
    ends = [float(min(truth.min(), said.min())), float(max(truth.max(), said.max()))]
    left.plot(ends, ends, color=GREY, linewidth=1, linestyle=":")
    left.plot(truth, said, ".", color=COLOURS[0], markersize=4, alpha=0.7)
    left.set(xlabel=f"true {short(name)}", ylabel=f"said {short(name)}")
    right.plot((truth + said) / 2, said - truth, ".", color=COLOURS[0], markersize=4, alpha=0.7)
    for value, style in zip(limits, ("-", "--", "--"), strict=True):
        right.axhline(value, color="#000000", linewidth=1, linestyle=style)
    right.set(xlabel="mean of said and true", ylabel="said - true")
    for axes in (left, right):
        quiet(axes)
    return png_bytes(figure)
