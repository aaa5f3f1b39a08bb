"""DICOM Segmentation objects out: a mask on the grid of a DICOM image, as an object of the patient's study.

Sources: DICOM PS3.3 A.51 and C.8.20 (Segmentation), PS3.16 CID 7150 (categories), CID 7162 (families of algorithms).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version as version_of
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from medray.imaging.dicom import file as dicom
from medray.imaging.dicom import segsource
from medray.imaging.dicom.headers import content_of
from medray.imaging.dicom.slices import Volume
from medray.imaging.labels import value_counts
from medray.imaging.limits import DEFAULT_LIMITS, Limits
from medray.imaging.masks import narrow
from medray.imaging.overlay import colour_of
from medray.imaging.writer import put_transposed, replacing
from medray.types import Array, SeriesRef

Code = tuple[str, str, str]
"""A coded concept: value, scheme, meaning."""
TISSUE: Code = ("85756007", "SCT", "Tissue")
"""What 3D Slicer writes for a segment without a code: it claims nothing of what the tissue is."""
UTF8 = "ISO_IR 192"
SERIES_NUMBER = 1000
"""Added to that of the source, so that the segmentation comes behind the images of its study."""
LONG_STRING = 64


@dataclass(frozen=True, slots=True)
class Segment:
    """A class of a mask as DICOM describes it. Raises ValueError for a name or value that it cannot hold."""

    value: int
    """In the mask, from 1; of overlapping regions their place, from 1."""
    name: str
    colour: tuple[int, int, int] | None = None
    """RGB from 0 to 255; None for that of `overlay.colour_of`."""
    category: Code = TISSUE
    """Of CID 7150, such as ('123037004', 'SCT', 'Anatomical Structure')."""
    type: Code = TISSUE
    """What it is, such as ('10200004', 'SCT', 'Liver')."""

    def __post_init__(self) -> None:
        if not 1 <= self.value <= np.iinfo(np.uint16).max:
            raise ValueError(f"a segment's value is from 1 to 65535, not {self.value}")
        _check_text("a segment's name", self.name)


def write_seg(
    target: Path,
    mask: Array,
    segments: Sequence[Segment],
    source: SeriesRef | Path | bytes,
    *,
    model: str,
    version: str,
    labelmap: bool = False,
    omit_empty_frames: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> None:
    """Write `mask` as a DICOM SEG that belongs to the study of `source`, with its patient and frame of reference.

    `mask` is what medray's reader gives of the source: (i, j, k) for a volume, (row, column) for one image, of the
    values of `segments` and 0; or (R, *S) bool of regions that may overlap. `source` is what `reader.read` takes:
    the files of a series, a folder, a file, or their bytes (a zip or tar too). `model` and its `version` are named as
    the algorithm. A BINARY segmentation numbers its segments 1, 2, ... in the order of their values and has a frame
    for each slice of each, which OHIF asks for; `labelmap` writes one frame per slice with the values themselves
    (Supplement 243, which few viewers know), `omit_empty_frames` only frames with something in them.

    Raises InputError as `series.read` does, and missing_geometry for a volume without FrameOfReferenceUID; ValueError
    for a mask that does not fit the source or holds a value of no segment, and for names that DICOM cannot hold.
    """
    _check_text("a model's name", model)
    _check_text("a model's version", version)
    kind = "LABELMAP" if labelmap else "BINARY"
    ordered = sorted(segments, key=lambda segment: segment.value)
    described = _described(ordered, kind, model, version)
    volume, parts = segsource.located(source, limits)
    pixels = _pixels(mask, ordered, volume, labelmap)
    with dicom.guarded("an element of the image cannot be taken over into a segmentation"):
        files = {
            number: dicom.parse_header(content_of(parts[number], limits), limits)
            for number in dict.fromkeys(plane.file for plane in volume)
        }
        images = segsource.images(volume, files)
        data = _segmentation(images, pixels, kind, described, model, version, omit_empty_frames)
        segsource.refer(data, volume, files)
        content = BytesIO()
        data.save_as(content)
    with replacing(target) as file:
        file.write(content.getbuffer())


def _check_text(what: str, text: str) -> None:
    plain = text.isprintable() and "\\" not in text and text == text.strip()
    if not plain or not 1 <= len(text) <= LONG_STRING:
        raise ValueError(f"{what} is 1 to {LONG_STRING} characters of one line without \\, not {text!r}")


def _pixels(mask: Array, segments: Sequence[Segment], volume: Volume, labelmap: bool) -> Array:
    """(slice, row, column) of segment numbers, or (slice, row, column, R) of regions, as highdicom takes them."""
    rows, columns = volume[0].size
    shape = (columns, rows, len(volume)) if len(volume) > 1 else (rows, columns)
    values = [segment.value for segment in segments]
    if not values or len(set(values)) < len(values):
        raise ValueError(f"segments have different values, and there is one at least: {values}")
    regions = mask.ndim == len(shape) + 1
    if mask.shape[regions:] != shape:
        raise ValueError(f"the mask is {mask.shape}, its source {shape}")
    if regions:
        if mask.dtype != np.bool_ or values != list(range(1, len(mask) + 1)) or labelmap:
            raise ValueError(f"{len(mask)} regions (R, *S) bool have segments 1 to R and no label map, not {values}")
        return np.stack([_frames(region.view(np.uint8)) for region in mask], axis=-1)
    mask = narrow(mask)
    in_order = values == list(range(1, len(values) + 1))
    # Values are only counted where their maximum does not tell.
    unknown = set() if in_order and mask.max() <= len(values) else value_counts(mask).keys() - {0, *values}
    if unknown:
        raise ValueError(f"the mask holds {sorted(unknown)[:8]}, and its segments are {values}")
    if labelmap or in_order:
        return _frames(mask)
    numbers = np.zeros(values[-1] + 1, np.min_scalar_type(len(values)))
    numbers[values] = range(1, len(values) + 1)
    return _frames(numbers[mask])


def _frames(mask: Array) -> Array:
    """(slice, row, column) of a mask (column, row, slice) or (row, column)."""
    if mask.ndim == 2:
        return mask[None]
    frames = np.empty(mask.shape[::-1], mask.dtype)
    put_transposed(frames, mask)
    return frames


def _segmentation(
    images: Sequence[Any],
    pixels: Array,
    kind: str,
    described: Sequence[Any],
    model: str,
    version: str,
    omit_empty_frames: bool,
) -> Any:
    import highdicom

    # It logs the name of a patient that it finds odd.
    logging.getLogger("highdicom").setLevel(logging.CRITICAL + 1)
    versions: Any = (f"medray {version_of('medray')}", version)
    number = images[0].get("SeriesNumber") or 0
    return highdicom.seg.Segmentation(
        source_images=images,
        pixel_array=pixels,
        segmentation_type=kind,
        segment_descriptions=described,
        series_instance_uid=highdicom.UID(),
        series_number=SERIES_NUMBER + max(int(number), 0),
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="medray",
        manufacturer_model_name=model,
        software_versions=versions,
        device_serial_number="0",
        content_label=re.sub(r"[^A-Z0-9_]", "_", model.upper())[:16],
        content_description=f"medray: {model}"[:LONG_STRING],
        series_description=f"medray: {model}"[:LONG_STRING],
        omit_empty_frames=omit_empty_frames,
        specific_character_set=UTF8,
    )


def _described(segments: Sequence[Segment], kind: str, model: str, version: str) -> list[Any]:
    import highdicom
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(model, codes.DCM.ArtificialIntelligence, version)
    return [
        highdicom.seg.SegmentDescription(
            segment.value if kind == "LABELMAP" else number,
            segment.name,
            highdicom.sr.CodedConcept(*segment.category),
            highdicom.sr.CodedConcept(*segment.type),
            "AUTOMATIC",
            algorithm,
            display_color=highdicom.color.CIELabColor.from_rgb(*(segment.colour or colour_of(segment.value))),
        )
        for number, segment in enumerate(segments, start=1)
    ]
