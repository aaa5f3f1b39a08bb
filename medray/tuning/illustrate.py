"""The figures of a study."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from medray.reports import study as figures
from medray.reports.study import StudyAxis, StudyPoint
from medray.tuning.space import Range, Space, dimensions
from medray.tuning.tpe import importances
from medray.tuning.trials import Curve, Trial


def illustrate(
    folder: Path,
    space: Space,
    scored: Sequence[tuple[Trial, float]],
    curves: Mapping[int, Curve],
    signs: Mapping[str, int],
) -> None:
    """Write every figure into `folder`.

    Args:
        folder: made if it does not exist.
        space: of the search.
        scored: trials in the order in which they were drawn, with what they are ranked by.
        curves: number of a trial -> its epochs.
        signs: objective -> 1 where more is better, -1 where less is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    monitor, sign = next(iter(signs.items()))
    points = [_point(trial, score, curves[trial.index], monitor) for trial, score in scored]
    axes = [_axis(name, part) for name, part in dimensions(space).items()]
    first = next((trial.index for trial, _ in scored if trial.as_it_is), None)
    known = [(trial.choices, score) for trial, score in scored if trial.choices and math.isfinite(score)]
    pages = {
        "history": figures.optimisation_history(points, monitor, sign, first),
        "curves": figures.learning_curves(points, monitor, sign),
        "parallel": figures.parallel_coordinates(points, axes, monitor, sign),
        "slices": figures.slices(points, axes, monitor, sign),
        "importance": figures.importance(importances(space, known, sign)),
    }
    if len(signs) > 1:
        (one, two), both = list(signs)[:2], list(signs.values())[:2]
        values = [(trial.measured.get(one, math.nan), trial.measured.get(two, math.nan)) for trial, _ in scored]
        pages["pareto"] = figures.pareto(points, (one, two), values, (both[0], both[1]))
    for name, png in pages.items():
        (folder / f"{name}.png").write_bytes(png)


def _point(trial: Trial, score: float, epochs: Curve, monitor: str) -> StudyPoint:
    return StudyPoint(
        trial.index,
        trial.state,
        score,
        trial.choices,
        [row["epoch"] for row in epochs.rows],
        [row.get(monitor, math.nan) for row in epochs.rows],
    )


def _axis(name: str, part: Range | tuple[str, ...]) -> StudyAxis:
    if isinstance(part, Range):
        return StudyAxis(name, part.low, part.high, part.log)
    return StudyAxis(name, 0, 0, False, part)
