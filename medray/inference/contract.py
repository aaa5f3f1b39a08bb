"""The input contract: what the training images were like, and the words of warning for an image that is not.

Facts of an image and the embedding that the network makes of it are held against the training's. A range is what the
percentiles 1 to 99 of the training cases span, and MARGIN of that more on both sides. Embeddings are compared by the
Mahalanobis distance (Lee 2018, arXiv:1807.03888) under a covariance of some principal components and a rest that is
alike in all directions (Tipping 1999, 10.1111/1467-9868.00196), shrunk as Ledoit 2004, 10.1016/S0047-259X(03)00096-4.

In a bundle the contract is card["contract"] and `contract.npz`. It holds percentiles, means and components over at
least FEWEST_CASES cases, never a value or a name of one.
"""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medray.bundle import BundleError, ModelBundle
from medray.imaging.quality import QUALITIES, levels, measure
from medray.inference.reference import Reference, fit_reference
from medray.types import Array, Case

ARRAYS = "contract.npz"
MODALITY, SPACING, EXTENT, INTENSITY = "unseen_modality", "unseen_spacing", "unseen_extent", "unseen_intensity"
EMBEDDING = "unlike_training"
POOR = {
    "noise": "low_quality_noise",
    "sharpness": "low_quality_blur",
    "contrast": "low_quality_contrast",
    "clipping": "low_quality_clipping",
    "coverage": "low_quality_coverage",
}
"""Measure of imaging/quality.py -> the word of an image that is worse by it."""
WARNINGS: Mapping[str, str] = {
    MODALITY: "the file names a modality, or has a number of channels, that no training image had",
    SPACING: "voxel edges outside of the training's, or in mm where those were in pixels (or the reverse)",
    EXTENT: "the image shows more or less of the body than the training's: shape times spacing",
    INTENSITY: "percentiles 1, 50 or 99 of the raw intensities outside of the training's",
    EMBEDDING: "what the network makes of the image lies farther from the training's than 99 % of new cases do",
    POOR["noise"]: "noisier than the training images",
    POOR["sharpness"]: "more blurred than the training images",
    POOR["contrast"]: "less contrast than the training images: a few extreme voxels take up the range",
    POOR["clipping"]: "more voxels at the ends of the range than in the training images",
    POOR["coverage"]: "more padding around the image than in the training images",
}
"""Every warning that a contract gives, and what it means."""

FEWEST_CASES = 20
"""Of fewer training cases no range and no mean is kept: a percentile would be a patient's own value."""
MARGIN = 0.25
"""Of the width of a range: of normal numbers it then reaches to 3.5 deviations."""
FLOORS = {"noise": 0.01, "sharpness": 0.03, "contrast": 0.03, "clipping": 0.02, "coverage": 0.03}
"""Least margin of a measure of quality."""
SPACING_FLOOR, EXTENT_FLOOR, LEVEL_FLOOR = 0.05, 0.1, 0.05
"""The same as a share of the median, and of the median width of intensities."""
TOO_FEW = f"made of fewer than {FEWEST_CASES} training cases: only kinds of images are compared"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is compared of one raw image."""

    modality: str
    unit: str
    channels: int
    spacing: tuple[float, ...]
    """Shortest edge first: another order of axes is no difference."""
    extent: tuple[float, ...]
    """Shape times spacing, in the unit of the spacing, shortest first."""
    levels: tuple[float, float, float]
    """Percentiles 1, 50 and 99 of the intensities."""
    quality: Mapping[str, float]


def facts_of(raw: Case, quality: Mapping[str, float] | None = None) -> Facts:
    """The facts of an image as it lies in its file; `quality` is imaging/quality.py's measure of it, where at hand."""
    extent = sorted(length * edge for length, edge in zip(raw.image.shape[1:], raw.spacing, strict=True))
    known = measure(raw) if quality is None else quality
    spacing = tuple(sorted(raw.spacing))
    return Facts(raw.modality, raw.unit, len(raw.image), spacing, tuple(extent), levels(raw.image), known)


@dataclass(frozen=True, slots=True, eq=False)
class Contract:
    """What a model has seen."""

    cases: int
    """Training cases whose images were looked at."""
    modalities: Mapping[str, int]
    """Modality -> cases; OT where the file does not say."""
    units: Mapping[str, int]
    channels: Mapping[str, int]
    unit: str
    """The commonest, in which spacing and extent are."""
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """spacing_0, ..., extent_0, ..., p01, p50, p99, and QUALITIES -> (low, high); empty of too few cases."""
    reference: Reference | None = None

    @staticmethod
    def of(bundle: ModelBundle) -> Contract | None:
        """The contract of a bundle; None where it has none.

        Raises:
            BundleError: it cannot be used.
        """
        plain = bundle.card.get("contract")
        if plain is None:
            return None
        try:
            ranges = {name: (float(low), float(high)) for name, (low, high) in plain["ranges"].items()}
            kinds = (plain["modalities"], plain["units"], plain["channels"])
            reference = _reference(plain["embedding"], bundle.extra(ARRAYS))  # noqa: S610  # no query of Django
            return Contract(plain["cases"], *kinds, plain["unit"], ranges, reference)
        except (KeyError, TypeError, ValueError, OSError, zipfile.BadZipFile) as error:
            raise BundleError(f"the input contract in {bundle.folder} cannot be used: {error!r}") from None

    def as_dict(self) -> dict[str, Any]:
        """What the card keeps, as plain JSON."""
        return {
            "cases": self.cases,
            "modalities": dict(self.modalities),
            "units": dict(self.units),
            "channels": dict(self.channels),
            "unit": self.unit,
            "ranges": {name: list(pair) for name, pair in self.ranges.items()},
            "embedding": None if self.reference is None else self.reference.as_dict(),
            "note": "" if self.ranges else TOO_FEW,
        }

    def files(self) -> dict[str, bytes]:
        """The extra files that a bundle keeps beside the card."""
        if self.reference is None:
            return {}
        content = io.BytesIO()
        np.savez_compressed(content, **self.reference.arrays())  # type: ignore[arg-type]
        return {ARRAYS: content.getvalue()}


def _reference(plain: Mapping[str, Any] | None, content: bytes | None) -> Reference | None:
    if plain is None:
        return None
    if content is None:
        raise ValueError(f"{ARRAYS} is missing")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return Reference.from_parts(plain, {name: arrays[name] for name in arrays.files})


def build(facts: Sequence[Facts], embeddings: Array | None = None, val_embeddings: Array | None = None) -> Contract:
    """The contract of a training.

    Args:
        facts: of training cases, at least one.
        embeddings: (N, F) what the network makes of training cases.
        val_embeddings: (M, F) the same of validation cases, which say how far new ones lie.
    """
    if not facts:
        raise ValueError("a contract needs the facts of at least one case")
    # Images of two kinds have no range in common: the commonest kind counts.
    (unit, axes), _ = Counter((fact.unit, len(fact.spacing)) for fact in facts).most_common(1)[0]
    alike = [fact for fact in facts if (fact.unit, len(fact.spacing)) == (unit, axes)]
    enough = len(alike) >= FEWEST_CASES
    reference = None
    if embeddings is not None and enough and len(embeddings) >= FEWEST_CASES:
        reference = fit_reference(embeddings, val_embeddings)
    return Contract(
        cases=len(facts),
        modalities=_counts([fact.modality for fact in facts]),
        units=_counts([fact.unit for fact in facts]),
        channels=_counts([str(fact.channels) for fact in facts]),
        unit=unit,
        ranges=_ranges(alike) if enough else {},
        reference=reference,
    )


def _counts(words: Sequence[str]) -> dict[str, int]:
    return dict(Counter(words).most_common())


def _ranges(facts: Sequence[Facts]) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    spacing, extent = np.array([fact.spacing for fact in facts]), np.array([fact.extent for fact in facts])
    for axis in range(spacing.shape[1]):
        found[f"spacing_{axis}"] = _range(spacing[:, axis], SPACING_FLOOR * float(np.median(spacing[:, axis])))
        found[f"extent_{axis}"] = _range(extent[:, axis], EXTENT_FLOOR * float(np.median(extent[:, axis])))
    intensity = np.array([fact.levels for fact in facts])
    least = LEVEL_FLOOR * float(np.median(intensity[:, 2] - intensity[:, 0]))
    for column, name in enumerate(("p01", "p50", "p99")):
        found[name] = _range(intensity[:, column], least)
    for name in QUALITIES:
        found[name] = _range(np.array([fact.quality[name] for fact in facts]), FLOORS[name])
    return found


def _range(values: Array, least: float) -> tuple[float, float]:
    """(low, high) around `values` (N,)."""
    low, high = np.percentile(values, [1, 99])
    margin = MARGIN * (high - low) + least
    return float(f"{low - margin:.6g}"), float(f"{high + margin:.6g}")


def check(contract: Contract, facts: Facts, embedding: Array | None = None) -> tuple[tuple[str, ...], float | None]:
    """How an image differs from what the model has seen.

    Args:
        contract: the model's.
        facts: the image's, see `facts_of`.
        embedding: (F,) what the network makes of it.

    Returns:
        Words of WARNINGS, and the embedding's distance as a multiple of the one from which on it is unlike; None
        where it is not compared.
    """
    words = dict.fromkeys(_unseen(contract, facts))
    for name, word in POOR.items():
        low, high = contract.ranges.get(name, (-np.inf, np.inf))
        value = facts.quality[name]
        if value > high if name in ("noise", "clipping") else value < low:
            words[word] = None
    if contract.reference is None or embedding is None:
        return tuple(words), None
    distance = float(contract.reference.distances(embedding[None])[0]) / contract.reference.threshold
    if not distance <= 1:
        words[EMBEDDING] = None
    return tuple(words), distance


def _unseen(contract: Contract, facts: Facts) -> list[str]:
    """The words for kind, place and intensities of an image."""
    words = []
    # OT says nothing, neither of the image nor of the training's.
    known = set(contract.modalities) - {"OT"}
    if (known and facts.modality not in {*known, "OT"}) or str(facts.channels) not in contract.channels:
        words.append(MODALITY)
    if facts.unit not in contract.units:
        words.append(SPACING)
    elif facts.unit == contract.unit:
        words += [SPACING] * _outside(contract, "spacing", facts.spacing)
        words += [EXTENT] * _outside(contract, "extent", facts.extent)
    levels_of = zip(("p01", "p50", "p99"), facts.levels, strict=True)
    if any(not _within(contract, name, value) for name, value in levels_of):
        words.append(INTENSITY)
    return words


def _outside(contract: Contract, what: str, edges: Sequence[float]) -> bool:
    return any(not _within(contract, f"{what}_{axis}", edge) for axis, edge in enumerate(edges))


def _within(contract: Contract, name: str, value: float) -> bool:
    low, high = contract.ranges.get(name, (-np.inf, np.inf))
    return low <= value <= high
