"""Figures of a segmentation, as PNG bytes: how well each structure was found, case by case."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from medray.reports.canvas import GREY, line_style, new_figure, png_bytes, quiet, short


def dice_per_case(dice: ArrayLike, structures: Sequence[str]) -> bytes:
    """Dice (N, M) of every case as dots, a column per structure, with median and quartiles; NaN is left out."""
    table = np.asarray(dice, np.float64).reshape(-1, len(structures))
    figure = new_figure(1.8 + 0.9 * len(structures), 3.6)
    axes = figure.add_subplot()
    for position, name in enumerate(structures):
        values = table[:, position][~np.isnan(table[:, position])]
        colour, _ = line_style(position)
        # The golden ratio spreads neighbours evenly, the same way every time.
        spread = (np.arange(len(values)) * 0.618034 % 1 - 0.5) * 0.5
        axes.plot(position + spread, values, ".", color=colour, markersize=4, alpha=0.6, clip_on=False)
        if len(values):
            low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
            axes.plot([position - 0.32, position + 0.32], [middle, middle], color="#000000", linewidth=2)
            axes.plot([position, position], [low, high], color="#000000", linewidth=1)
            label = f"{short(name, 14)}\nmean {values.mean():.3f}\n{len(values)} cases"
        else:
            label = f"{short(name, 14)}\nnot in the data"
        axes.text(position, -0.04, label, ha="center", va="top", fontsize=8, transform=axes.get_xaxis_transform())
    axes.set(xlim=(-0.6, len(structures) - 0.4), ylim=(0, 1.0), ylabel="Dice")
    axes.set_xticks([])
    axes.axhline(1, color=GREY, linewidth=0.6)
    quiet(axes)
    return png_bytes(figure)
