"""DICOM series: files in any order to volumes with their place in the world, or a refusal that names what is wrong."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medray.imaging.dicom import file as dicom
from medray.imaging.dicom import stacks
from medray.imaging.dicom.assembly import read_image, read_volume
from medray.imaging.dicom.headers import (
    DOCUMENTS,
    LABEL_MAPS,
    Header,
    content_of,
    first_bytes,
    is_foreign,
    read_header,
)
from medray.imaging.dicom.slices import Plane, Volume
from medray.imaging.limits import DEFAULT_LIMITS, Limits
from medray.types import Case, InputError


@dataclass(frozen=True, slots=True)
class SeriesInfo:
    """What the headers of a series say of it."""

    uid: str
    """SeriesInstanceUID; empty for a file that cannot be told to belong to any, which is a series of its own."""
    study_uid: str
    patient_id: str
    modality: str
    description: str
    files: tuple[Path, ...]
    """In the order of their paths."""
    times: int
    """How many volumes (4D series, cine): 1 for a plain series, for one that `read` refuses, and for no image."""
    refers_to: str = ""
    """SeriesInstanceUID of the images that a SEG or RTSTRUCT belongs to."""

    @property
    def is_label_map(self) -> bool:
        """Whether it marks what is in the images of another series."""
        return self.modality in LABEL_MAPS

    @property
    def is_image(self) -> bool:
        """Whether it may be an image: no report, plan or presentation state, no label map, and readable at all."""
        return bool(self.uid) and not self.is_label_map and self.modality not in DOCUMENTS


def find(files: Iterable[Path], limits: Limits = DEFAULT_LIMITS) -> tuple[SeriesInfo, ...]:
    """The series among `files`, by their headers alone, in the order of their first paths.

    What is no DICOM is left out. Two patients in one SeriesInstanceUID are one series, which `read` refuses. A file
    whose header cannot be read or names no series goes with the only series of its folder, which `read` then
    refuses: without it the volume could end early and look whole. Elsewhere it is a series of its own.
    """
    found: dict[str, list[Header]] = {}
    unreadable: list[Path] = []
    for number, path in enumerate(sorted(map(Path, files))):
        try:
            if is_foreign(path.name, first_bytes(path)):
                continue
            header = read_header(path, number, limits)
        except InputError:
            unreadable.append(path)
            continue
        if header is not None:
            found.setdefault(header.uid, []).append(header)
    infos = [_describe(headers) for headers in found.values()]
    nameless = [*unreadable, *(file for info in infos if not info.uid for file in info.files)]
    infos = [info for info in infos if info.uid]
    owners: dict[Path, set[int]] = {}
    for place, info in enumerate(infos):
        for file in info.files:
            owners.setdefault(file.parent, set()).add(place)
    for path in nameless:
        if len(owners.get(path.parent, ())) == 1:
            (place,) = owners[path.parent]
            infos[place] = replace(infos[place], files=tuple(sorted((*infos[place].files, path))))
        else:
            infos.append(SeriesInfo("", "", "", "", "", (path,), 1))
    return tuple(sorted(infos, key=lambda info: info.files[0]))


def read(parts: Sequence[Path | bytes], limits: Limits = DEFAULT_LIMITS, time: int | None = None) -> Case:
    """The image in the files of one series, in any order (or the one file of an image, mosaic or multi-frame).

    Several slices give image (C, i, j, k) = (channel, column, row, slice), with slices in the order of their
    positions along the normal, and the affine to RAS+ in mm. One slice, or a frame without position (cine), gives
    a 2D image as `dicom.read` does. `time` picks one of several volumes or frames, from 0. Objects that are no
    images (SEG, RTSTRUCT, reports) are left out. Integers stay integers where all slices are, else float32.
    case_id is the name of the file or of the folder it is in, 'upload' for bytes.

    Raises InputError: what `dicom.parse`, `dicom.frames`, `stacks.volumes` and `slices.affine` raise, and
    not_found, not_readable, unsupported_type, mixed_patients, mixed_series, no_pixel_data, time_series,
    index_out_of_range, too_many_voxels, implausible_spacing, non_finite_voxels.
    Warns: duplicate_files, and what `dicom.read` warns of.
    """
    volume, planes, dropped = locate(parts, limits, time)
    case = read_volume(volume, parts, limits) if len(volume) > 1 else read_image(volume[0], planes, parts, limits)
    return replace(case, case_id=_case_id(parts), warnings=(*case.warnings, *dropped))


def locate(
    parts: Sequence[Path | bytes], limits: Limits, time: int | None
) -> tuple[Volume, list[Plane], tuple[str, ...]]:
    """The planes of the image that `read` takes, in the order of its slices; those of all images; warnings.

    Raises as `read`, which reads their pixels.
    """
    numbered = (read_header(part, number, limits) for number, part in enumerate(parts))
    headers = _one_series([header for header in numbered if header is not None])
    planes = _without_copies(headers, limits)
    dropped = ("duplicate_files",) if len(planes) < len(_planes(headers)) else ()
    return _pick(_volumes(planes), time), planes, dropped


def read_folder(folder: Path, limits: Limits = DEFAULT_LIMITS, time: int | None = None) -> Case:
    """The one image series in a folder and the folders in it, as `read`; foreign files are left out.

    `list_folder` says how many are. case_id is the folder's name. Raises what `read` raises; unsupported_type where
    no file is DICOM.
    """
    files, strays = list_folder(folder)
    if not files:
        raise InputError("unsupported_type", f"none of the {strays} files in the folder is DICOM")
    return replace(read(files, limits, time), case_id=folder.absolute().name)


def list_folder(folder: Path) -> tuple[tuple[Path, ...], int]:
    """The DICOM files in a folder and the folders in it, by path, and how many other files are there.

    Links to folders are not followed. Raises not_readable.
    """

    def refuse(error: OSError) -> None:
        raise InputError("not_readable", f"a folder in the folder cannot be read ({error.strerror})")

    paths = [Path(root) / name for root, _, names in os.walk(folder, onerror=refuse) for name in names]
    files = tuple(path for path in sorted(paths) if not is_foreign(path.name, first_bytes(path)))
    return files, len(paths) - len(files)


def _describe(headers: list[Header]) -> SeriesInfo:
    first = headers[0]
    # Copies of a file are told by their headers alone: `read` also compares their pixels.
    copies = {_identity(header): header for header in headers}
    planes = _planes(copies.values())
    try:
        times = len(_volumes(planes)) if planes else 1
    except InputError:
        times = 1
    return SeriesInfo(
        uid=first.uid,
        study_uid=first.study_uid,
        patient_id=first.patient_id,
        modality=first.modality,
        description=first.description,
        files=tuple(header.part for header in headers if isinstance(header.part, Path)),
        times=times,
        refers_to=first.refers_to,
    )


def _planes(headers: Iterable[Header]) -> list[Plane]:
    return [plane for header in headers for plane in header.planes]


def _one_series(headers: list[Header]) -> list[Header]:
    """Those of the one image series. Raises mixed_patients, no_pixel_data, mixed_series."""
    images = [header for header in headers if header.planes]
    patients = {header.person for header in images} | {header.person for header in headers if header.person}
    if len(patients) > 1:
        raise InputError(
            "mixed_patients", f"the files belong to {len(patients)} patients", "give the files of one patient"
        )
    if not images:
        kinds = ", ".join(sorted({header.modality for header in headers})) or "DICOMDIR"
        raise InputError("no_pixel_data", f"there is no image among the files, only {kinds}")
    series = {header.uid for header in images}
    if len(images) > 1 and "" in series:
        raise InputError("bad_header", "SeriesInstanceUID is missing, without which nobody knows what belongs together")
    if len(series) > 1:
        raise InputError(
            "mixed_series", f"the images belong to {len(series)} series", "give the files of one SeriesInstanceUID"
        )
    return images


def _without_copies(headers: list[Header], limits: Limits) -> list[Plane]:
    """The planes of all files but those with the instance, positions and pixels of another."""
    kept: dict[tuple[object, ...], list[Header]] = {}
    for header in headers:
        same = kept.setdefault(_identity(header), [])
        if not any(_same_pixels(header, other, limits) for other in same):
            same.append(header)
    return [plane for same in kept.values() for plane in _planes(same)]


def _identity(header: Header) -> tuple[object, ...]:
    return header.instance_uid or header.part, tuple(plane.position for plane in header.planes)


def _same_pixels(one: Header, other: Header, limits: Limits) -> bool:
    """Whether two files show the same values, however they are stored."""
    first, second = (dicom.parse(content_of(header.part, limits), limits) for header in (one, other))
    return np.array_equal(dicom.frames(first, limits), dicom.frames(second, limits))


def _volumes(planes: list[Plane]) -> tuple[Volume, ...]:
    """Volumes, or 2D images: a single file's frames without position (cine), or its only one."""
    one_file = len({plane.file for plane in planes}) == 1
    if len(planes) == 1 or (one_file and not any(plane.position for plane in planes)):
        return tuple((plane,) for plane in planes)
    return stacks.volumes(planes)


def _pick(volumes: tuple[Volume, ...], time: int | None) -> Volume:
    count, thing = len(volumes), "volumes" if len(volumes[0]) > 1 else "images"
    if time is None and count > 1:
        hint = "dataset.time=0, or SeriesRef(files, time=0)"
        raise InputError("time_series", f"the series holds {count} {thing}, one is expected", hint)
    if time is not None and not 0 <= time < count:
        raise InputError("index_out_of_range", f"time {time} of a series of {count} {thing}")
    return volumes[time or 0]


def _case_id(parts: Sequence[Path | bytes]) -> str:
    first = parts[0]
    if isinstance(first, bytes):
        return "upload"
    if len(parts) == 1:
        return first.name if first.suffix[1:].isdecimal() else first.stem
    return first.absolute().parent.name
