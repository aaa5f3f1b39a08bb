"""The files of one case's answer: a mask on exactly its grid in the format of its kind, a picture, probabilities.

DICOM gets a DICOM SEG of the patient's study; NIfTI a mask with the file's own place, bit for bit; other volumes NIfTI
with the affine of the case; pictures a grey PNG of class values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medray.imaging.masks import write_mask_like, write_mask_png, write_probabilities_like
from medray.imaging.overlay import overlay
from medray.imaging.reader import SNIFF_BYTES, sniff
from medray.imaging.writer import write_nifti, write_png
from medray.types import Array, Case, Prediction, SeriesRef

if TYPE_CHECKING:
    from medray.inference.about import Facts

DICOM_TEXT = 64
"""Characters of a name in a DICOM object."""
VERSION = 12
"""Characters of a model's digest that name it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is written of each segmentation beside its mask."""

    overlay: bool = True
    """A picture of the mask on the image, for a person to judge."""
    probabilities: bool = False
    """Those of each class, as float32 NIfTI."""


def write(
    folder: Path, raw: Case, source: Path | SeriesRef, answer: Prediction, facts: Facts, wanted: Wanted
) -> dict[str, int]:
    """Write the files of `answer` for the image `raw` of `source` into `folder`; their names and bytes.

    Nothing for an answer without a mask. Raises InputError as `segwrite.write_seg`.
    """
    if answer.mask is None:
        return {}
    kind = _kind(source)
    _write_mask(folder, raw, source, kind, answer.mask, facts)
    if wanted.overlay:
        names = dict(enumerate(facts.structures, start=1))
        write_png(folder / "overlay.png", overlay(raw, answer.mask, names))
    if answer.probabilities is not None:
        _write_probabilities(folder, raw, source, kind, answer.probabilities, facts)
    return {file.name: file.stat().st_size for file in sorted(folder.iterdir())}


def _kind(source: Path | SeriesRef) -> str:
    """The kind of file, see `reader.sniff`; a packed NIfTI is one too."""
    if isinstance(source, SeriesRef):
        return "dicom"
    with source.open("rb") as stream:
        kind = sniff(stream.read(SNIFF_BYTES))
    return "nifti" if kind == "gzip" else kind


def _write_mask(folder: Path, raw: Case, source: Path | SeriesRef, kind: str, mask: Array, facts: Facts) -> None:
    if kind == "dicom":
        from medray.imaging.dicom.segwrite import Segment, write_seg

        segments = [Segment(value, dicom_text(name)) for value, name in enumerate(facts.structures, start=1)]
        model, version = dicom_text(facts.name), facts.digest[:VERSION]
        write_seg(folder / "seg.dcm", mask, segments, source, model=model, version=version)
    elif kind == "nifti" and isinstance(source, Path):
        write_mask_like(folder / "mask.nii.gz", mask, source)
    else:
        for ending, layer in _layers(mask, raw, facts.structures):
            if raw.spatial_dims == 3:
                write_nifti(folder / f"mask{ending}.nii.gz", layer, raw.affine)
            else:
                write_mask_png(folder / f"mask{ending}.png", layer)


def _layers(mask: Array, raw: Case, structures: Sequence[str]) -> Iterator[tuple[str, Array]]:
    """The mask; or, where regions may overlap, one of each, and what its file's name ends in."""
    if mask.ndim == raw.spatial_dims:
        yield "", mask
    else:
        yield from zip(_endings(structures), mask, strict=True)


def _write_probabilities(
    folder: Path, raw: Case, source: Path | SeriesRef, kind: str, probabilities: Array, facts: Facts
) -> None:
    if kind == "nifti" and isinstance(source, Path):
        write_probabilities_like(folder / "probabilities.nii.gz", probabilities, source)
        return
    for ending, share in zip(_endings(facts.outputs), probabilities, strict=True):
        volume = share if share.ndim == 3 else share[..., None]
        write_nifti(folder / f"probabilities{ending}.nii.gz", np.asarray(volume, np.float32), raw.affine)


def _endings(names: Sequence[str]) -> Iterator[str]:
    """Of file names: numbered, since two names may look alike when only harmless characters are left of them."""
    return (f"-{number}-{re.sub(r'[^A-Za-z0-9]+', '_', name)[:40]}" for number, name in enumerate(names, start=1))


def dicom_text(text: str) -> str:
    """`text` as a DICOM object can name something: one line of 64 characters without a backslash."""
    plain = "".join(character if character.isprintable() and character != "\\" else " " for character in text)
    return plain.strip()[:DICOM_TEXT].strip() or "unnamed"
