"""Figures of a training and of a test, as PNG bytes; arrays in, bytes out.

C channel, K class, N cases or images, S the spatial axes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medray.metrics.curves import calibration_bins, pr_area, pr_curve, roc_area, roc_curve, step_counts, top_label
from medray.reports.canvas import (
    COLOURS,
    GREY,
    line_style,
    new_figure,
    plain,
    png_bytes,
    quiet,
    short,
    square_axes,
    with_area,
    with_legend,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.generic]
Floats = NDArray[np.float64]


def curves(history: Sequence[Mapping[str, float]], monitor: str, mode: Literal["max", "min"] = "max") -> bytes:
    """Loss, the monitored metric and the learning rate over epochs; the best epoch of `monitor` is marked.

    Each row holds `epoch` and any of `lr`, `train/loss`, `val/loss` and metrics; a key that a row lacks, or a value
    that is not finite, leaves a gap. `monitor` is a key such as `val/auroc`; its `train/` twin is drawn with it.
    """
    twin = "train/" + monitor.removeprefix("val/")
    panels = [("loss", ["train/loss", "val/loss"])]
    if monitor not in panels[0][1]:
        panels.append((monitor.removeprefix("val/").replace("_", " "), [twin, monitor]))
    panels.append(("learning rate", ["lr"]))
    epochs = _column(history, "epoch")
    best = _best(_column(history, monitor), mode)

    figure = new_figure(4.2 * len(panels), 3.2)
    for axes, (title, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _line_panel(axes, history, epochs, names)
        axes.set_title(title, fontsize=11)
        if best is not None and names != ["lr"]:
            axes.axvline(epochs[best], color=GREY, linewidth=1, linestyle=":", zorder=0)
        if best is not None and monitor in names:
            value = float(history[best][monitor])
            label = f"best {value:.4g}, epoch {epochs[best]:g}"
            axes.plot(epochs[best], value, "o", color="none", markeredgecolor="#000000", markersize=9, label=label)
        if names == ["lr"]:
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        elif axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, framealpha=0.8)
    return png_bytes(figure)


def confusion(matrix: ArrayLike, classes: Sequence[str]) -> bytes:
    """Counts (K, K), true class in rows; the colour is the share of the true class, so rare classes show too."""
    counts = np.asarray(matrix)
    k = len(classes)
    if counts.shape != (k, k):
        raise ValueError(f"{k} classes need a ({k}, {k}) matrix, got {counts.shape}")
    total = counts.sum(1, keepdims=True)
    share = counts / np.where(total, total, 1)
    edge = max(4.2, 1.8 + 0.52 * k)
    figure = new_figure(edge + 0.8, edge)
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    names = [short(name) for name in classes]
    small = 9 if k <= 10 else 8
    axes.set_xticks(range(k), names, rotation=0 if k <= 3 else 45, ha="center" if k <= 3 else "right", fontsize=small)
    axes.set_yticks(range(k), names, fontsize=small)
    axes.tick_params(length=0)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for row in range(k):
        for column in range(k):
            text = f"{counts[row, column]:,}" if counts[row, column] < 1e5 else f"{counts[row, column]:.1e}"
            if k <= 10:
                text += f"\n{share[row, column]:.0%}"
            colour = "#FFFFFF" if share[row, column] > 0.55 else "#000000"
            axes.text(column, row, text, ha="center", va="center", fontsize=small - 1, color=colour)
    figure.colorbar(image, ax=axes, shrink=0.75, label="share of the true class")
    return png_bytes(figure)


def roc(scores: ArrayLike, targets: ArrayLike, classes: Sequence[str], multilabel: bool = False) -> bytes:
    """Sensitivity over 1 - specificity, one class (N, K) against the rest; of class 1 alone where two exclude each
    other. A class that does not occur is named in the legend without a curve.
    """
    figure, axes = square_axes(len(classes), "1 - specificity", "sensitivity")
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    for line, (name, score, positive) in enumerate(_against_rest(scores, targets, classes, multilabel)):
        x, y, _ = roc_curve(score, positive)
        area = roc_area(step_counts(score, positive))
        colour, dashes = line_style(line)
        axes.plot(x, y, dashes, color=colour, label=with_area(name, area, "AUC"), clip_on=False)
    return with_legend(figure, axes)


def precision_recall(scores: ArrayLike, targets: ArrayLike, classes: Sequence[str], multilabel: bool = False) -> bytes:
    """Precision over recall, one class (N, K) against the rest; of class 1 alone where two exclude each other.

    AP is average precision; a dot at recall 1 marks the share of the class, which chance would reach.
    """
    figure, axes = square_axes(len(classes), "recall", "precision")
    for line, (name, score, positive) in enumerate(_against_rest(scores, targets, classes, multilabel)):
        precision, recall, _ = pr_curve(score, positive)
        area = pr_area(step_counts(score, positive))
        colour, dashes = line_style(line)
        label = with_area(name, area, "AP")
        # The last point, recall 0 at precision 1, is a convention; holding the precision before it makes AP the area.
        held = np.append(precision[:-1], precision[-2:][0])
        axes.step(recall, held, dashes, where="post", color=colour, label=label, clip_on=False)
        if positive.any():
            axes.plot(1, positive.mean(), ".", color=colour, clip_on=False, zorder=3)
    return with_legend(figure, axes)


def calibration(scores: ArrayLike, targets: ArrayLike, multilabel: bool = False, bins: int = 15) -> bytes:
    """Reliability: share of correct cases over mean confidence per bin, and how many cases each bin holds.

    Exclusive classes: the confidence of the picked class (Guo 2017, arXiv:1706.04599); multi-label: the probability
    of every label of every case against how often it is true.
    """
    scores, targets = np.asarray(scores, np.float64), np.asarray(targets)
    confidence, correct = (scores.ravel(), targets.ravel()) if multilabel else top_label(scores, targets)
    mean_confidence, share, count = calibration_bins(confidence, correct, bins)
    filled = count > 0
    error = float(np.abs(mean_confidence - share)[filled] @ count[filled] / max(1, count.sum()))

    figure = new_figure(4.4, 5.2)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    above.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="perfect")
    above.plot(mean_confidence[filled], share[filled], "o-", color=COLOURS[0], markersize=5, label=f"ECE {error:.3f}")
    above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share true" if multilabel else "share correct")
    above.legend(loc="upper left", fontsize=9)
    below.bar((np.arange(bins) + 0.5) / bins, count, width=0.9 / bins, color=COLOURS[0])
    below.set(xlabel="probability" if multilabel else "confidence", ylabel="labels" if multilabel else "cases")
    for axes in (above, below):
        quiet(axes)
    return png_bytes(figure)


def image_grid(
    images: ArrayLike, titles: Sequence[str] = (), columns: int = 8, limits: tuple[float, float] | None = None
) -> bytes:
    """Images (N, C, *S) side by side, on one grey scale: `limits`, or the 0.5th to 99.5th percentile of them all.

    2D with three channels is shown in colour, else the first channel. 3D, taken as RAS+, is shown by its middle
    slice along the last axis, upright as radiologists look at it: anterior up, the patient's left on the right.
    """
    stack = np.asarray(images)
    if stack.ndim not in (4, 5) or (titles and len(titles) != len(stack)):
        raise ValueError(f"images must be (N, C, *S) with N titles or none, got {stack.shape} and {len(titles)}")
    pictures = [_picture(image) for image in stack.astype(np.float64)]
    low, high = limits or _robust_range(pictures)
    scaled = [np.clip((picture - low) / (high - low), 0, 1) for picture in pictures]

    columns = max(1, min(columns, len(scaled)))
    rows = max(1, -(-len(scaled) // columns))
    width = min(2.4, max(1.5, 9 / columns))
    letters = int(13 * width)
    lines = [[part for line in title.splitlines() for part in textwrap.wrap(line, letters)][:4] for title in titles]
    tall = max((picture.shape[0] / picture.shape[1] for picture in pictures), default=1.0)
    height = width * tall + 0.05 + 0.15 * max((len(line) for line in lines), default=0)
    figure = new_figure(width * columns, height * rows, pad=0.02)
    for position, axes in enumerate(figure.subplots(rows, columns, squeeze=False).ravel()):
        axes.set_axis_off()
        if position < len(scaled):
            axes.imshow(scaled[position], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            if lines:
                axes.set_title(plain("\n".join(lines[position])), fontsize=7.5, pad=2)
    return png_bytes(figure)


def _picture(image: Floats) -> Floats:
    """(C, *S) -> (row, column) or (row, column, 3), NaN as 0."""
    image = np.nan_to_num(image)
    if image.ndim == 4:
        return image[0, :, :, image.shape[3] // 2].T[::-1, ::-1]
    return np.moveaxis(image, 0, -1) if len(image) == 3 else image[0]


def _robust_range(pictures: Sequence[Floats]) -> tuple[float, float]:
    if not pictures:
        return 0.0, 1.0
    low, high = np.percentile(np.concatenate([picture.ravel() for picture in pictures]), [0.5, 99.5])
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1.0)


def _column(history: Sequence[Mapping[str, float]], name: str) -> Floats:
    return np.asarray([row.get(name, np.nan) for row in history], np.float64)


def _best(values: Floats, mode: Literal["max", "min"]) -> int | None:
    if not np.isfinite(values).any():
        return None
    signed = np.where(np.isfinite(values), values if mode == "max" else -values, -np.inf)
    return int(signed.argmax())


def _line_panel(axes: Axes, history: Sequence[Mapping[str, float]], epochs: Floats, names: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    for name in names:
        values = _column(history, name)
        if np.isfinite(values).any():
            colour = COLOURS[0] if name.startswith("train/") else COLOURS[1] if "/" in name else COLOURS[2]
            marker = "." if len(values) <= 40 else ""
            axes.plot(epochs, values, marker=marker, linewidth=1.5, color=colour, label=name.split("/")[0])
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    quiet(axes)


def _against_rest(
    scores: ArrayLike, targets: ArrayLike, classes: Sequence[str], multilabel: bool
) -> list[tuple[str, Floats, NDArray[np.bool_]]]:
    scores, targets = np.asarray(scores, np.float64), np.asarray(targets).astype(bool)
    if scores.shape != targets.shape or scores.ndim != 2 or scores.shape[1] != len(classes):
        raise ValueError(f"{len(classes)} classes need (N, {len(classes)}), got {scores.shape} and {targets.shape}")
    shown = [1] if len(classes) == 2 and not multilabel else range(len(classes))
    return [(classes[k], scores[:, k], targets[:, k]) for k in shown]
