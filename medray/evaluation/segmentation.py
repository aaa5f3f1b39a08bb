"""Evaluation of a segmentation: figures of each case from its label map, and what they are over cases.

Figures of one case are those of metrics/overlap.py, surface.py and lesions.py, per structure. Where a structure is
neither there nor found, nothing is measured (NaN); where only one of the two is, Dice is 0 and a distance is the
image's diagonal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from medray.evaluation.cases import Answered, Cases, Refused, attributes
from medray.imaging.labels import read_label
from medray.metrics import lesions, overlap, surface
from medray.tasks.segmentation import Segmentation
from medray.types import IGNORED, Array, Case, Dataset, InputError, Prediction

SLICED = ("dice", "nsd")
COUNTED = ("lesion_tp", "lesion_fp", "lesion_fn")
"""Columns that are added over cases, not averaged."""
NAMED = 6
"""Structures that a case's truth is told of in words."""


def tabulate(answered: Iterator[Answered], dataset: Dataset, task: Segmentation, refused: list[Refused]) -> Cases:
    """The table of cases whose label maps can be read; the others go to `refused`.

    One image is held at a time.
    """
    kept: list[Answered] = []
    rows: list[dict[str, float]] = []
    words: list[tuple[str, str]] = []
    for item in answered:
        assert item.raw is not None  # noqa: S101  for mypy: cases come with their images here
        try:
            truth = class_map(item, item.raw, dataset)
        except InputError as error:
            refused.append(Refused(item.ref.case_id, item.ref.subject, error.code, error.detail, error.hint))
            continue
        row, volumes = figures_of(item.prediction, truth, item.raw, task)
        rows.append(row)
        words.append(volumes)
        kept.append(Answered(item.ref, item.prediction, item.attributes))
    names = rows[0].keys() if rows else ()
    figures = {name: np.array([row[name] for row in rows]) for name in names}
    dice = _matrix(figures, [f"dice/{name}" for name in task.structures], len(rows))
    nothing = np.zeros((len(rows), 0))
    return Cases(
        task="segmentation",
        classes=task.structures,
        ids=tuple(item.ref.case_id for item in kept),
        subjects=tuple(item.ref.subject for item in kept),
        truths=tuple(true for true, _ in words),
        answers=tuple(said for _, said in words),
        scores=nothing,
        targets=nothing,
        picked=nothing.astype(bool),
        badness=np.nan_to_num(1 - _means(dice.T)),
        figures=figures,
        columns=attributes(kept),
    )


def class_map(item: Answered, raw: Case, dataset: Dataset) -> Array:
    """(*S) uint8, the index of each voxel's true class in the answer's order, IGNORED where nobody labelled.

    Raises InputError: no_label, and as medray.imaging.labels.read_label.
    """
    if item.ref.label_map is None:
        raise InputError("no_label", "the case has no label map", "add it, or leave the case out")
    label = read_label(item.ref.label_map, raw, dataset.legal_values, dataset.classes)
    table = np.full(max(dataset.legal_values) + 1, IGNORED, np.uint8)
    for value, name in zip(dataset.legal_values, dataset.classes, strict=False):
        table[value] = item.prediction.classes.index(name)
    return np.asarray(table[label.image[0]])


def figures_of(
    prediction: Prediction, truth: Array, raw: Case, task: Segmentation
) -> tuple[dict[str, float], tuple[str, str]]:
    """'figure/structure' -> number of one case, and the true and the found volumes in words."""
    assert prediction.mask is not None  # noqa: S101  for mypy: a segmentation's answer has one
    counts, distances, found = (_exclusive if task.exclusive else _regions)(prediction.mask, truth, raw.spacing, task)
    size, unit = voxel_size(raw)
    far = surface.diagonal_mm(truth.shape, raw.spacing)
    table = {
        "dice": overlap.dice(counts),
        "iou": overlap.iou(counts),
        "precision": overlap.precision(counts),
        "recall": overlap.recall(counts),
        "hd95": np.array([min(row.hd95, far) if row.hd95 == row.hd95 else math.nan for row in distances]),
        "nsd": np.array([row.nsd for row in distances]),
        "volume_bias": overlap.volume_error(counts, size),
        "volume_error": np.abs(overlap.volume_error(counts, size)),
        **{name: found[:, column].astype(np.float64) for column, name in enumerate(COUNTED)},
    }
    row = {
        f"{figure}/{name}": float(v)
        for figure, all_ in table.items()
        for name, v in zip(task.structures, all_, strict=True)
    }
    volumes = [_volumes(task.structures, counts[:, column] * size, unit) for column in (2, 1)]
    return row, (volumes[0], volumes[1])


def _exclusive(
    mask: Array, truth: Array, spacing: Sequence[float], task: Segmentation
) -> tuple[Array, list[surface.SurfaceDistances], Array]:
    """Counts (M, 3), distances (M) and lesions (M, 3) of the classes but the background."""
    classes, tolerance = len(task.classes), task.cfg.tolerance_mm
    counts = overlap.overlap_counts(mask, truth, classes, IGNORED)
    distances = surface.surface_metrics(mask, truth, classes, spacing, tolerance, IGNORED)
    return counts[1:], distances[1:], lesions.label_lesion_counts(mask, truth, classes, IGNORED)[1:]


def _regions(
    mask: Array, truth: Array, spacing: Sequence[float], task: Segmentation
) -> tuple[Array, list[surface.SurfaceDistances], Array]:
    """The same of regions, which may overlap."""
    valid = truth != IGNORED
    pairs = [(said & valid, task.membership[place, truth] > 0) for place, said in enumerate(mask)]
    counts = overlap.region_counts(np.stack([said for said, _ in pairs]), np.stack([true for _, true in pairs]))
    distances = [surface.surface_distances(said, true, spacing, task.cfg.tolerance_mm) for said, true in pairs]
    return counts, distances, np.array([lesions.lesion_counts(said, true) for said, true in pairs])


def voxel_size(case: Case) -> tuple[float, str]:
    """The size of a voxel and its unit: mL of volumes, mm2 of pictures, voxels where the image has no unit."""
    if case.unit == "px":
        return 1.0, "voxels"
    size = case.voxel_size
    return (size / 1000, "mL") if case.spatial_dims == 3 else (size, "mm2")


def _volumes(names: Sequence[str], sizes: Array, unit: str) -> str:
    listed = ", ".join(f"{name} {size:.4g}" for name, size in zip(names, sizes.tolist(), strict=True) if size)
    shown = ", ".join(listed.split(", ")[:NAMED])
    return f"{shown} {unit}" if shown else "nothing"


def statistic(cases: Cases, names: Sequence[str] = ()) -> Callable[[Array], dict[str, float]]:
    """rows -> figures of those cases: 'figure/structure', the mean over cases, and 'figure', its mean over structures.

    Lesions are counted over all cases together: lesion_f1, lesion_recall, and false ones per case.
    """
    kinds = list(dict.fromkeys(name.partition("/")[0] for name in cases.figures))
    averaged = [kind for kind in kinds if kind not in COUNTED and (not names or kind in names)]
    several = len(cases.classes) > 1
    values = _matrix(cases.figures, [f"{kind}/{name}" for kind in averaged for name in cases.classes], len(cases))
    found = np.stack(
        [_matrix(cases.figures, [f"{kind}/{name}" for name in cases.classes], len(cases)) for kind in COUNTED], 2
    )

    def figures(rows: Array) -> dict[str, float]:
        means = _means(values[rows]).reshape(len(averaged), len(cases.classes))
        result = dict(zip(averaged, _means(means.T).tolist(), strict=True))
        if names:
            return {name: result[name] for name in names}
        if several:
            for kind, row in zip(averaged, means.tolist(), strict=True):
                result |= {f"{kind}/{name}": value for name, value in zip(cases.classes, row, strict=True)}
        return result | _lesions(found[rows].sum(0), len(rows), cases.classes if several else ())

    return figures


def _lesions(sums: Array, cases: int, names: Sequence[str]) -> dict[str, float]:
    """Figures of lesions (M, 3) that were added over cases: mean over structures, and each where there are several."""
    counts = np.rint(sums).astype(np.int64)
    table = {
        "lesion_f1": lesions.f1(counts),
        "lesion_recall": lesions.recall(counts),
        "lesion_fp_per_case": counts[:, 1] / max(1, cases),
    }
    found = {figure: float(_means(values[:, None])[0]) for figure, values in table.items()}
    return found | {
        f"{figure}/{name}": float(v) for figure, all_ in table.items() for name, v in zip(names, all_, strict=False)
    }


def headline(_: object) -> str:
    """The figure that stands for all."""
    return "dice"


def proportions(_: Cases) -> dict[str, Array]:
    """No figure is a share of cases."""
    return {}


def _matrix(figures: Mapping[str, Array], names: Sequence[str], cases: int) -> Array:
    """(N, names) columns of the table; none where there is no case."""
    return np.stack([figures[name] for name in names], 1) if cases and names else np.zeros((cases, len(names)))


def _means(values: Array) -> Array:
    """The mean of each column of (n, M), NaN left out; NaN where nothing is left."""
    known = ~np.isnan(values)
    counts = known.sum(0)
    return np.where(counts > 0, np.where(known, values, 0.0).sum(0) / np.maximum(counts, 1), np.nan)
