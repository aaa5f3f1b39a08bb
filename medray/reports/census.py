"""Figures of what a dataset is made of, as PNG bytes: classes per split, sizes, intensities, label volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from medray.reports.canvas import COLOURS, GREY, new_figure, png_bytes, quiet, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CLASSES = 30
AXES = ("first axis", "second axis", "third axis")


def class_bars(counts: Mapping[str, Sequence[int]], classes: Sequence[str]) -> bytes:
    """Cases of each class in each split: `counts` holds K numbers by split. The largest 30 classes are drawn."""
    table = np.array([list(row) for row in counts.values()])
    shown = np.argsort(-table.sum(axis=0), kind="stable")[:MOST_CLASSES]
    figure = new_figure(6.2, 0.9 + 0.34 * len(shown))
    axes = figure.add_subplot()
    left = np.zeros(len(shown))
    for number, (split, row) in enumerate(zip(counts, table, strict=True)):
        axes.barh(range(len(shown)), row[shown], left=left, height=0.62, color=COLOURS[number], label=split or "cases")
        left += row[shown]
    for place, total in enumerate(left):
        axes.annotate(f" {total:,.0f}", (total, place), va="center", fontsize=8, color=GREY)
    axes.set_yticks(range(len(shown)), [short(classes[index]) for index in shown])
    axes.invert_yaxis()
    axes.set_xlabel("cases")
    axes.margins(x=0.1)
    quiet(axes)
    axes.grid(False, axis="y")
    if len(counts) > 1:
        axes.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(counts))
    return png_bytes(figure)


def edges(shapes: ArrayLike, spacings: ArrayLike | None, unit: str) -> bytes:
    """Histograms of the edges of images in voxels (N, S) and, if given, of their voxels in `unit` (N, S)."""
    panels = [("voxels along the axis", np.asarray(shapes, float))]
    if spacings is not None:
        panels.append((f"voxel size in {unit}", np.asarray(spacings, float)))
    figure = new_figure(3.4 * len(panels), 2.7)
    for axes, (title, values) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        low, high = values.min(), values.max()
        bins = np.linspace(low, high, 31) if high > low else np.linspace(low - 0.5, low + 0.5, 4)
        if low > 0 and high > 20 * low:
            bins = np.geomspace(low, high, 31)
            axes.set_xscale("log")
        for axis in range(values.shape[1]):
            style = {"histtype": "step", "linewidth": 1.6, "color": COLOURS[axis]}
            axes.hist(values[:, axis], bins=bins.tolist(), label=AXES[axis], **style)
        axes.set(xlabel=title, ylabel="cases")
        quiet(axes)
    figure.axes[0].legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return png_bytes(figure)


def intensities(p01: ArrayLike, mean: ArrayLike, p99: ArrayLike) -> bytes:
    """From the 1st to the 99th percentile of each image (N,), in the order of the latter, with the means as dots."""
    low, middle, high = (np.asarray(values, float) for values in (p01, mean, p99))
    order = np.argsort(high, kind="stable")
    figure = new_figure(4.6, 2.7)
    axes = figure.add_subplot()
    place = np.arange(len(order))
    axes.fill_between(place, low[order], high[order], step="mid", color=COLOURS[5], alpha=0.45, linewidth=0)
    axes.plot(place, middle[order], ".", color=COLOURS[0], markersize=2.5)
    widest = float(np.abs(high).max())
    usual = max(1e-9, float(np.median(np.abs(high))))
    if widest > 50 * usual:
        decade = int(np.ceil(np.log10(usual)))
        axes.set_yscale("symlog", linthresh=10.0**decade)
        # Its own ticks would crowd around 0.
        ticks = [10.0**power for power in range(decade, int(np.ceil(np.log10(widest))) + 1)]
        axes.set_yticks([0, *ticks])
    axes.set(xlabel="images, by their 99th percentile", ylabel="intensity, 1 % to 99 %")
    quiet(axes)
    return png_bytes(figure)


def label_volumes(voxels: ArrayLike, classes: Sequence[str]) -> bytes:
    """Label voxels (N, K) of each class, one dot per case that has any; the line is the median."""
    table = np.asarray(voxels, float)
    figure = new_figure(5.2, 0.9 + 0.42 * len(classes))
    axes: Axes = figure.add_subplot()
    # Spread so that dots do not hide each other; the same for the same cases.
    spread = np.random.default_rng(0).uniform(-0.25, 0.25, len(table))
    for label in range(len(classes)):
        held = table[:, label] > 0
        colour = COLOURS[label % (len(COLOURS) - 1)]
        axes.plot(table[held, label], label + spread[held], ".", color=colour, markersize=3, alpha=0.6)
        if held.any():
            middle = float(np.median(table[held, label]))
            axes.plot([middle, middle], [label - 0.35, label + 0.35], color="#000000", linewidth=1.4)
    names = [f"{short(name)} ({np.count_nonzero(table[:, k])})" for k, name in enumerate(classes)]
    axes.set_yticks(range(len(classes)), names)
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.set_xlabel("voxels per case (in brackets: cases that have the class)")
    quiet(axes)
    return png_bytes(figure)
