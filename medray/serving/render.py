"""The files of an answer, made when somebody asks for them: pure functions of what is kept.

A mask is the very file that `medray predict` writes. What is made on a disk lies in a folder of its own, which nobody
else may read, under names that medray gives, and is gone with the answer.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import numpy as np

from medray.imaging import archive
from medray.imaging.geometry import fitted, grid_of, onto
from medray.imaging.limits import Limits
from medray.imaging.overlay import grey_window, heat_overlay, overlay
from medray.imaging.writer import png_bytes, write_nifti
from medray.inference import outputs
from medray.inference.outputs import Wanted
from medray.reports.answer import render as report_page
from medray.serving.kept import Kept
from medray.serving.planes import layer_png
from medray.types import Array, Case, SeriesRef

PREVIEW = 256
"""Longest edge in voxels: what a browser can hold as a 3D texture."""
UNBOUNDED = Limits(max_file_bytes=1 << 62, max_decompressed_bytes=1 << 62)
"""The upload has been read once, within the limits of the service."""
NIFTI, PNG = "application/gzip", "image/png"
TYPES = {".gz": NIFTI, ".dcm": "application/dicom", ".png": PNG, ".zip": "application/zip"}


@dataclass(frozen=True, slots=True)
class Rendered:
    """A file."""

    content: bytes
    media_type: str
    filename: str
    """What to save it as."""


def render(
    kept: Kept, what: str, *, axis: int | None = None, index: int | None = None, layer: str = "image"
) -> Rendered:
    """One file of an answer, by its name in `Kept.available`.

    Args:
        kept: the answer.
        what: which file.
        axis: of slices: 0 sagittal, 1 coronal, 2 axial; a 2D image needs none.
        index: of slices: which plane of the axis, counted from left, posterior or inferior.
        layer: of slices: image, mask or heat.

    Raises:
        ValueError: the answer has no such file, axis, plane or layer.
        InputError: the DICOM image lacks what a DICOM SEG must refer to.
    """
    if what not in kept.available():
        raise ValueError(f"the answer has no {what}; it has {', '.join(kept.available())}")
    if what == "slices":
        if kept.raw.spatial_dims == 3 and (axis is None or index is None):
            raise ValueError("name the axis and index of the plane")
        return Rendered(layer_png(kept, axis or 0, index or 0, layer), PNG, f"{layer}.png")
    return MAKERS[what](kept)


def mask(kept: Kept) -> Rendered:
    """The mask in the format of the image's kind; a zip where overlapping regions have a file each."""
    with TemporaryDirectory(prefix="medray-") as root:
        (folder := Path(root) / "out").mkdir()
        (unpacked := Path(root) / "in").mkdir()
        source = _on_disk(kept, unpacked)
        outputs.write(folder, kept.raw, source, kept.answer, kept.facts, Wanted(overlay=False))
        files = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    name = next(iter(files))
    if len(files) > 1:
        name, content = "masks.zip", _zipped(files)
    else:
        content = files[name]
    return Rendered(content, TYPES[Path(name).suffix], name)


def _on_disk(kept: Kept, folder: Path) -> Path | SeriesRef:
    """The upload as `outputs.write` takes it: a file, or the numbered files of a series."""
    parts = [kept.source]
    if kept.kind == "archive":
        members = archive.members(kept.source, UNBOUNDED)
        parts = archive.slices(members) or [data for name, data in members if _counts(name)][:1]
    files = []
    for number, content in enumerate(parts):
        files.append(folder / f"{number:05d}")
        files[-1].write_bytes(content)
    return SeriesRef(tuple(files)) if kept.is_dicom else files[0]


def _counts(name: str) -> bool:
    """Whether a member is a file of the archive's and not of the system that packed it, see `archive.read`."""
    return not PurePosixPath(name).name.startswith(".") and "__MACOSX" not in name


def _zipped(files: Mapping[str, bytes]) -> bytes:
    content = BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        for name, data in files.items():
            # A fixed time: the same answer is the same bytes.
            packed.writestr(zipfile.ZipInfo(name), data)
    return content.getvalue()


def picture(kept: Kept) -> Rendered:
    """What was found, drawn on the image; of an answer without a mask the image alone."""
    found = kept.answer.mask
    if found is None:
        found = np.zeros(kept.raw.image.shape[1:], np.uint8)
    drawn = overlay(kept.raw, found, dict(enumerate(kept.facts.structures, start=1)))
    return Rendered(png_bytes(drawn), PNG, "overlay.png")


def explanation(kept: Kept) -> Rendered:
    """The heat on the image."""
    return Rendered(png_bytes(heat_overlay(kept.raw, np.asarray(kept.heat), limit=1.0)), PNG, "explanation.png")


def report(kept: Kept) -> Rendered:
    """The answer as one HTML page, with no name of a file or patient in it."""
    pictures = [("The image and what was found in it" if kept.answer.mask is not None else "The image", picture(kept))]
    if kept.heat is not None:
        said = kept.body.get("explanation") or {}
        pictures.append(
            (f"What speaks for {said.get('target', 'the answer')}: {said.get('method', 'heat')}", explanation(kept))
        )
    content = report_page(kept.body, [(caption, made.content) for caption, made in pictures])
    return Rendered(content.encode("utf-8", "replace"), "text/html; charset=utf-8", "report.html")


def image_preview(kept: Kept) -> Rendered:
    """The first channel as NIfTI of at most PREVIEW voxels an edge, for a viewer: uint8 between its percentiles.

    Whole numbers that fit into int16, such as those of a CT, stay what they are.
    """
    first = kept.raw.image[:1]
    if first.dtype.kind not in "iu" or first.max() > np.iinfo(np.int16).max or first.min() < np.iinfo(np.int16).min:
        low, high = grey_window(first)
        first = np.clip((first.astype(np.float32) - low) * (255 / max(high - low, 1e-12)), 0, 255).astype(np.uint8)
    elif first.dtype != np.uint8:
        first = first.astype(np.int16)
    return _preview(kept.raw, first, 1, "image")


def mask_preview(kept: Kept) -> Rendered:
    """The mask on the grid of the image's preview; of regions that overlap the later lie on top."""
    found = np.asarray(kept.answer.mask)
    if found.ndim == kept.raw.image.ndim:
        values = np.zeros(found.shape[1:], np.uint8)
        for value, inside in enumerate(found, start=1):
            values[inside] = value
        found = values
    return _preview(kept.raw, found[None], 0, "mask")


def heat_preview(kept: Kept) -> Rendered:
    """The heat times 255 on the grid of the image's preview."""
    return _preview(kept.raw, np.rint(np.asarray(kept.heat)[None] * 255).astype(np.uint8), 1, "heat")


def _preview(raw: Case, voxels: Array, order: int, name: str) -> Rendered:
    case = Case("preview", voxels, raw.affine)
    size = [min(length, PREVIEW) for length in voxels.shape[1:]]
    small = onto(case, fitted(grid_of(case), size, "stretch"), order, 0.0)
    with TemporaryDirectory(prefix="medray-") as folder:
        write_nifti(path := Path(folder) / f"{name}.nii.gz", small.image[0], small.affine)
        return Rendered(path.read_bytes(), NIFTI, path.name)


MAKERS: Mapping[str, Callable[[Kept], Rendered]] = {
    "mask": mask,
    "dicom_seg": mask,
    "overlay": picture,
    "explanation": explanation,
    "report": report,
    "image_preview": image_preview,
    "mask_preview": mask_preview,
    "heat_preview": heat_preview,
}
