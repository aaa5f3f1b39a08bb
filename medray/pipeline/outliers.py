"""Cases that are unlike the rest of their set, compared with medians: only what is far off by every measure.

Robust deviations are 1.4826 times the median absolute deviation (Rousseeuw 1993, 10.1080/01621459.1993.10476408).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from medray.pipeline.findings import Finding
from medray.pipeline.survey import Measured, Survey
from medray.types import Array

FACTOR = 3.0
"""Edges and voxel sizes this many times the median are outliers, unless the whole set scatters that much."""
RANGE_FACTOR = 10.0
"""The same for the width of intensities, which scanners and protocols change more."""
OFFSET_WIDTHS = 0.75
"""How many median widths of intensity a case's darkest level may lie from the median one."""
DEVIATIONS = 6.0
QUALITY_LEAST = {"noise": 0.05, "sharpness": math.log(4), "contrast": 0.4, "clipping": 0.2, "coverage": 0.5}
"""How much worse than the median a measure of quality must be; of sharpness the logarithm counts."""
RARE = 0.05
"""A type, modality or orientation is odd where at most this share of the cases has it."""
ENOUGH_CASES = 10
"""Of fewer cases nobody can say what is usual."""

SPACING_MEND = "compare the spacing in the header with the scanner's; a wrong unit is off by 10 or 1000"
SHAPE_MEND = "look whether it is a localizer, a crop, or another kind of image"
QUALITY_MEND = "look whether they are meant to be used: the model learns from poor images, and is measured on them"
RANGE_MEND = "look at their units and scaling; percentile or zscore in preprocess.intensity evens out what is left"


def outliers(survey: Survey) -> Iterator[Finding]:
    """Cases of unlike shape, spacing, intensities, quality, type, modality, channels, orientation: warnings."""
    rows = survey.readable
    if len(rows) < ENOUGH_CASES:
        return
    cases = [survey.cases[row] for row in rows]
    found = [
        ("odd_spacing", "voxel size", _far_edges(cases, lambda case: case.spacing), SPACING_MEND),
        ("odd_shape", "shape", _far_edges(cases, lambda case: tuple(map(float, case.shape))), SHAPE_MEND),
        ("odd_intensity", "intensities (1 to 99 %)", _far_intensities(cases), RANGE_MEND),
        ("odd_quality", "image quality", _poor(cases), QUALITY_MEND),
        (
            "odd_dtype",
            "pixel type",
            _rare(cases, lambda case: case.dtype),
            "look why these files are stored in another type",
        ),
        (
            "odd_modality",
            "modality",
            _rare(cases, lambda case: case.modality),
            "train modalities apart, or leave these out",
        ),
    ]
    if survey.preprocess.orientation is None:
        mend = "set preprocess.orientation to RAS"
        found.append(("odd_orientation", "orientation", _rare(cases, lambda case: case.orientation), mend))
    if survey.preprocess.channels != "keep":
        mend = "look why colour and grey are mixed; preprocess.channels makes them alike"
        found.append(("odd_channels", "channels", _rare(cases, lambda case: f"{case.channels} channels"), mend))
    for code, what, remarks, mend in found:
        if remarks:
            ids = survey.ids([rows[position] for position in remarks])
            detail = f"{what} unlike the rest: {next(iter(remarks.values()))}"
            yield Finding(code, "warning", detail, mend, ids, tuple(remarks.values()))


def _far_edges(cases: Sequence[Measured], edges: Callable[[Measured], tuple[float, ...]]) -> dict[int, str]:
    """Positions of cases with an edge far from the median edge, with a remark each.

    Edges are compared by size, shortest with shortest, so that another order of axes is no difference.
    """
    rank = Counter(len(edges(case)) for case in cases).most_common(1)[0][0]
    kept = [position for position, case in enumerate(cases) if len(edges(case)) == rank]
    values = np.sort([edges(cases[position]) for position in kept], axis=1)
    far = _far(np.log(values), math.log(FACTOR))
    usual = " x ".join(f"{edge:.3g}" for edge in np.median(values, axis=0))
    return {
        kept[index]: f"{' x '.join(f'{edge:.3g}' for edge in values[index])}, the median is {usual}"
        for index in np.flatnonzero(far.any(axis=1))
    }


def _far_intensities(cases: Sequence[Measured]) -> dict[int, str]:
    """Positions of cases whose intensities are of another scale or start elsewhere, with a remark each."""
    low = np.array([case.p01 for case in cases])
    width = np.array([case.p99 - case.p01 for case in cases])
    filled = width > 0
    if np.count_nonzero(filled) < ENOUGH_CASES:
        return {}
    usual_low, usual_width = float(np.median(low[filled])), float(np.median(width[filled]))
    far = np.zeros(len(cases), bool)
    far[filled] = _far(np.log(width[filled]), math.log(RANGE_FACTOR)) | _far(low[filled], OFFSET_WIDTHS * usual_width)
    usual = f"{usual_low:.4g} to {usual_low + usual_width:.4g}"
    return {
        position: f"{low[position]:.4g} to {low[position] + width[position]:.4g}, usual are {usual}"
        for position in np.flatnonzero(far).tolist()
    }


def _poor(cases: Sequence[Measured]) -> dict[int, str]:
    """Positions of cases of far worse quality by one measure or more, with a remark each; constant images are none."""
    kept = [position for position, case in enumerate(cases) if case.quality.get("contrast", 0.0) > 0]
    if len(kept) < ENOUGH_CASES:
        return {}
    remarks: dict[int, list[str]] = {}
    for name, least in QUALITY_LEAST.items():
        values = np.array([cases[position].quality[name] for position in kept])
        scaled = np.log(np.maximum(values, 1e-3)) if name == "sharpness" else values
        away = scaled - np.median(scaled)
        worse = away > 0 if name in ("noise", "clipping") else away < 0
        for index in np.flatnonzero(_far(scaled, least) & worse).tolist():
            remark = f"{name} {values[index]:.2g}, the median is {np.median(values):.2g}"
            remarks.setdefault(kept[index], []).append(remark)
    return {position: "; ".join(found) for position, found in sorted(remarks.items())}


def _far(values: Array, least: float) -> Array:
    """Where `values` (N, ...) are further from their median than `least` and than DEVIATIONS robust deviations."""
    away = np.abs(values - np.median(values, axis=0))
    return np.asarray(away > np.maximum(least, DEVIATIONS * 1.4826 * np.median(away, axis=0)))


def _rare(cases: Sequence[Measured], word: Callable[[Measured], str]) -> dict[int, str]:
    """Positions of cases with a word that few have, with a remark each; 'OT' and '' say nothing."""
    words = {position: word(case) for position, case in enumerate(cases)}
    said = {position: text for position, text in words.items() if text not in ("", "OT")}
    counts = Counter(said.values())
    if len(counts) < 2:
        return {}
    usual = counts.most_common(1)[0][0]
    return {
        position: f"{text}, most cases: {usual}" for position, text in said.items() if counts[text] <= RARE * len(said)
    }
