"""The paper that figures are drawn on.

Only matplotlib's objects are used, never pyplot: nothing is global, and threads may draw at the same time. Colours
are of Okabe and Ito 2008 (jfly.uni-koeln.de/color), told apart with any colour vision; lines differ in dashes as well.
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 120
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":")
GREY = "#767676"


def new_figure(width: float, height: float, pad: float = 0.06) -> Figure:
    """A figure of its own with an Agg canvas, in inches, laid out without overlaps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=pad, h_pad=pad)  # type: ignore[union-attr,call-arg]
    return figure


def png_bytes(figure: Figure) -> bytes:
    """PNG bytes, cut to what is drawn; without metadata, so that the same arrays are the same bytes."""
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.06, metadata={"Software": None})
    return file.getvalue()


def quiet(axes: Axes) -> None:
    """Axes with a light grid and no frame above and right."""
    axes.grid(True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


def line_style(line: int) -> tuple[str, str]:
    """(colour, dashes) of the n-th line, told apart up to 21 lines."""
    return COLOURS[line % len(COLOURS)], DASHES[line // len(COLOURS) % len(DASHES)]


def short(name: str, length: int = 24) -> str:
    """A class name that fits a legend or an axis."""
    return plain(name if len(name) <= length else name[: length - 1] + "…")


def plain(text: str) -> str:
    """The text itself where matplotlib would read a formula between dollar signs."""
    return text.replace("$", r"\$")


def square_axes(entries: int, x: str, y: str) -> tuple[Figure, Axes]:
    """Axes of a curve from 0 to 1, with room for a legend of so many entries beside them."""
    edge = max(4.0, 0.6 + 0.2 * entries)
    figure = new_figure(edge + 3.0, edge)
    axes = figure.add_subplot()
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel=x, ylabel=y, aspect="equal")
    quiet(axes)
    return figure, axes


def with_legend(figure: Figure, axes: Axes) -> bytes:
    """PNG bytes of the figure with its legend on the right."""
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8, frameon=False)
    return png_bytes(figure)


def with_area(name: str, area: float, what: str) -> str:
    """A curve's entry in the legend."""
    return f"{short(name)}: {what} {area:.3f}" if math.isfinite(area) else f"{short(name)}: not in the data"
