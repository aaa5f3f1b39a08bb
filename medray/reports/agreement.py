"""Figures of a regression, as PNG bytes: predicted against true numbers, and their differences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from medray.reports.canvas import COLOURS, GREY, new_figure, png_bytes, quiet, short

LIMIT = 1.96
"""Standard deviations within which 95 % of normal differences lie."""


def agreement(predicted: ArrayLike, true: ArrayLike, names: Sequence[str]) -> bytes:
    """Of each target (N, T) a row: predicted over true, and the difference over the mean with limits of agreement.

    Bland and Altman 1986 (10.1016/S0140-6736(86)90837-8).
    """
    found, real = (np.asarray(values, np.float64).reshape(-1, len(names)) for values in (predicted, true))
    figure = new_figure(8.4, 3.8 * len(names))
    for (left, right), one, other, name in zip(
        figure.subplots(len(names), 2, squeeze=False), found.T, real.T, names, strict=True
    ):
        ends = [min(one.min(), other.min()), max(one.max(), other.max())]
        left.plot(ends, ends, ":", color=GREY, linewidth=1)
        left.plot(other, one, ".", color=COLOURS[0], markersize=4, alpha=0.6)
        error = float(np.abs(one - other).mean())
        left.set(xlabel=f"true {short(name)}", ylabel="predicted", title=f"mean absolute error {error:.3g}")
        difference = one - other
        bias, spread = float(difference.mean()), float(difference.std())
        right.plot((one + other) / 2, difference, ".", color=COLOURS[1], markersize=4, alpha=0.6)
        for level, dashes in ((bias, "-"), (bias - LIMIT * spread, "--"), (bias + LIMIT * spread, "--")):
            right.axhline(level, color="#000000", linewidth=1, linestyle=dashes)
        right.set(
            xlabel="mean of both", ylabel="predicted - true", title=f"bias {bias:.3g}, 95 % +- {LIMIT * spread:.3g}"
        )
        for axes in (left, right):
            axes.title.set_fontsize(10)
            quiet(axes)
    return png_bytes(figure)
