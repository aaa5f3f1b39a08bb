"""Label maps: a class value per voxel, on exactly the grid of the image that they belong to.

A label is never resampled, clipped or truncated to fit; it fits or it is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medray.imaging import reader
from medray.imaging.limits import DEFAULT_LIMITS, TOLERANCE_VOXELS, Limits
from medray.types import Array, Case, InputError, SeriesRef

EXACT_FLOAT = 1 << 24
"""Whole numbers up to here are exact in float32."""
COUNTED_RANGE = 1 << 16
"""Values in a range of this length are counted without sorting."""
NAMED_VALUES = 8
"""How many unexpected values a refusal lists."""
PREAMBLE_BYTES = 132


@dataclass(frozen=True, slots=True, eq=False)
class LabelMap:
    """A label file on the grid of its image, before anyone says which values are legal."""

    case: Case
    """As the image's, but image (1, *S) holds whole numbers, of any integer dtype."""
    counts: Mapping[int, int]
    """Value -> number of voxels, in ascending order, of the values that occur."""
    names: Mapping[int, str]
    """Value -> name of the structure, where the file says (DICOM SEG and RTSTRUCT)."""


def read_label(
    source: Path | SeriesRef | bytes,
    image: Case,
    values: Collection[int],
    names: Sequence[str] = (),
    limits: Limits = DEFAULT_LIMITS,
) -> Case:
    """The label map of `image`: image (1, *S) of the smallest unsigned dtype that holds `values`, on its grid.

    `values` are the legal ones, background (0) included; `names` those of the first of them, by which the structures
    of DICOM SEG and RTSTRUCT get their values: each file numbers them as it likes. Of an RTSTRUCT, which holds
    planning regions too, only structures of these names are taken. Raises what `load`, `by_name` and `checked` raise.
    """
    label = load(source, image, names, limits)
    return checked(by_name(label, dict(zip(names, values, strict=False))), values)


def load(
    source: Path | SeriesRef | bytes, image: Case, rois: Sequence[str] = (), limits: Limits = DEFAULT_LIMITS
) -> LabelMap:
    """Read the label of `image` with all that it holds: any format of `reader.read`, DICOM SEG, RTSTRUCT.

    A volume whose axes are another order or direction of the same grid is turned onto the image's. `rois` are the
    structures that count of an RTSTRUCT (see `rtstruct.read`). Raises InputError as the reader does, and:
    non_integer_label, wrong_rank (one-hot or coloured), shape_mismatch, affine_mismatch, missing_affine (one of
    the two says where it is and the other does not). Does not judge the values: see `checked`.
    """
    content = _dicom_object(source, limits)
    found = _from_dicom(content, image, rois, limits) if content else None
    if found is None:
        label = reader.read(source, limits)
        found = _on_grid(label, image), label.warnings, {}
    voxels, said, names = found
    voxels = np.ascontiguousarray(_whole(voxels))
    # A label of one value is nothing odd, and background alone is said by `checked`.
    kept = tuple(warning for warning in said if warning != "constant_image")
    return LabelMap(replace(image, image=voxels, modality="SEG", warnings=kept), value_counts(voxels), names)


def by_name(label: LabelMap, values: Mapping[str, int]) -> LabelMap:
    """The label with the values that its structures have in `values` by their names.

    As it is where the file names nothing, or `values` is empty. Raises unknown_class for a structure not among them.
    """
    if not label.names or not values:
        return label
    if unknown := [name for name in label.names.values() if name not in values]:
        listed = ", ".join(map(repr, unknown[:NAMED_VALUES]))
        hint = f"name it in the classes, which are {', '.join(values)}"
        raise InputError("unknown_class", f"the label has {len(unknown)} structures of no class: {listed}", hint)
    new = np.zeros(max(label.names) + 1, np.min_scalar_type(max(values.values())))
    for value, name in label.names.items():
        new[value] = values[name]
    voxels = new[label.case.image]
    names = {values[name]: name for name in label.names.values()}
    return LabelMap(replace(label.case, image=voxels), value_counts(voxels), names)


def checked(label: LabelMap, values: Collection[int]) -> Case:
    """The label as a case (see `read_label`), with a warning empty_label where it holds background alone.

    Raises unknown_class where a value is not one of `values`; ValueError where `values` is empty or has one below 0.
    """
    if not values or min(values) < 0:
        raise ValueError(f"the legal values of a label are whole numbers from 0 up, not {sorted(values)}")
    if unknown := {value: count for value, count in label.counts.items() if value not in values}:
        listed = ", ".join(f"{value} ({count} voxels)" for value, count in list(unknown.items())[:NAMED_VALUES])
        more = f" and {len(unknown) - NAMED_VALUES} others" if len(unknown) > NAMED_VALUES else ""
        hint = f"map the values to classes, which are {', '.join(map(str, sorted(values)))}"
        if label.counts.keys() <= {0, 255}:
            hint = "the mask is stored as 0 and 255: say that 255 is class 1"
        raise InputError("unknown_class", f"the label holds {listed}{more}", hint)
    empty = ("empty_label",) if label.counts.keys() == {0} else ()
    voxels = label.case.image.astype(np.min_scalar_type(max(values)), copy=False)
    return replace(label.case, image=voxels, warnings=label.case.warnings + empty)


def value_counts(voxels: Array) -> dict[int, int]:
    """Value -> number of voxels, in ascending order, of an array of whole numbers."""
    low, high = int(voxels.min()), int(voxels.max())
    if high - low >= COUNTED_RANGE or max(abs(low), abs(high)) > EXACT_FLOAT:
        found, counts = np.unique(voxels, return_counts=True)
        return dict(zip(found.tolist(), counts.tolist(), strict=True))
    totals, flat = np.zeros(high - low + 1, np.int64), voxels.ravel()
    # In parts: bincount takes a copy in 64 bits. It is many times faster than unique, which sorts.
    for start in range(0, flat.size, COUNTED_RANGE):
        part = flat[start : start + COUNTED_RANGE].astype(np.int64)
        totals += np.bincount(part - low, minlength=totals.size)
    return {low + int(offset): int(totals[offset]) for offset in np.flatnonzero(totals)}


def _dicom_object(source: Path | SeriesRef | bytes, limits: Limits) -> bytes | None:
    """The bytes of a source that is one DICOM file; None where it is anything else."""
    if isinstance(source, SeriesRef) and len(source.files) == 1:
        source = source.files[0]
    if isinstance(source, SeriesRef) or (isinstance(source, Path) and source.is_dir()):
        return None
    if isinstance(source, Path):
        limits.check_path(source)
        try:
            with source.open("rb") as file:
                head = file.read(PREAMBLE_BYTES)
                source = head + file.read() if head.endswith(b"DICM") else head
        except OSError as error:
            raise InputError("not_readable", f"the file cannot be read ({error.strerror})") from None
    return source if source[128:PREAMBLE_BYTES] == b"DICM" else None


def _from_dicom(
    content: bytes, image: Case, rois: Sequence[str], limits: Limits
) -> tuple[Array, tuple[str, ...], Mapping[int, str]] | None:
    """Voxels, warnings and names of a SEG or RTSTRUCT; None for DICOM of another modality."""
    from medray.imaging.dicom import file as dicom
    from medray.imaging.dicom import rtstruct, seg

    data = dicom.parse(content, limits)
    try:
        # pydicom's warnings quote the values of elements, and no log may hold the name of a patient.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            modality = str(data.get("Modality", ""))
            if modality == "SEG":
                return seg.read(data, image, limits)
            if modality == "RTSTRUCT":
                return rtstruct.read(data, image, rois)
    except (InputError, MemoryError):
        raise
    except Exception as error:
        # pydicom parses a value when it is asked for, and promises no type of exception for one that cannot be.
        raise InputError("bad_header", "a needed tag is absent or its value cannot be understood") from error
    return None


def _whole(voxels: Array) -> Array:
    """`voxels` as whole numbers; `non_integer_label` where one is not."""
    if voxels.dtype.kind != "f":
        return voxels
    largest = max(abs(float(voxels.min())), abs(float(voxels.max())))
    whole = voxels.astype(np.int32) if largest <= EXACT_FLOAT else None
    parts = 0 if whole is None else int(np.count_nonzero(whole != voxels))
    if whole is None or parts:
        fact = f"{parts} of {voxels.size} voxels are fractions" if parts else f"a value is {largest:g}"
        hint = "write the label with nearest-neighbour resampling and an integer type"
        raise InputError("non_integer_label", f"{fact}, where whole class values are expected", hint)
    return whole


def _on_grid(label: Case, image: Case) -> Array:
    """The voxels (1, *S) of `label` on the grid of `image`, by turning alone."""
    if len(label.image) != 1 or label.spatial_dims != image.spatial_dims:
        fact = f"the label has {len(label.image)} channels and {label.spatial_dims} axes"
        hint = "give one class value per voxel, not colours or one channel per class"
        raise InputError("wrong_rank", f"{fact}; 1 and {image.spatial_dims} are expected", hint)
    if image.spatial_dims == 2 or label.unit == image.unit == "px":
        _check_shape(label.image, image)
        return label.image
    if label.unit != image.unit:
        silent = "image" if image.unit == "px" else "label"
        hint = "save both in a format that holds an affine, such as NIfTI"
        raise InputError("missing_affine", f"the {silent} does not say where its voxels are, the other does", hint)
    return _turned(label, image)


def _turned(label: Case, image: Case) -> Array:
    """The label's voxels with axes in the order and direction of the image's, whose grid must be the same."""
    to_image = np.linalg.solve(image.affine, label.affine)[:3]
    turn = np.rint(to_image[:, :3])
    voxels, backwards = label.image, turn.sum(axis=1) < 0
    signed_permutation = (abs(turn).sum(axis=0) == 1).all() and (abs(turn).sum(axis=1) == 1).all()
    if signed_permutation:
        # Row r of the turn names the label's axis that runs along the image's axis r, and its direction.
        voxels = voxels.transpose(0, *(abs(turn).argmax(axis=1) + 1))
        voxels = np.flip(voxels, tuple(int(axis) + 1 for axis in np.flatnonzero(backwards)))
    _check_shape(voxels, image)
    ends = [(0, length - 1) for length in label.image.shape[1:]]
    corners = np.stack(np.meshgrid(*ends, [1], indexing="ij")).reshape(4, -1)
    first = np.where(backwards, np.array(voxels.shape[1:]) - 1, 0)
    distance = float(abs(to_image @ corners - np.column_stack([turn, first]) @ corners).max())
    if not signed_permutation or distance > TOLERANCE_VOXELS:
        fact = f"{distance:.3g} voxels away" if signed_permutation else "of other directions or spacing"
        raise InputError(
            "affine_mismatch",
            f"the label's grid is {fact} from the image's, where {TOLERANCE_VOXELS:g} voxels are let pass",
            "export the label on the grid of this image",
        )
    return voxels


def _check_shape(voxels: Array, image: Case) -> None:
    if voxels.shape[1:] != image.image.shape[1:]:
        shapes = [" x ".join(map(str, array.shape[1:])) for array in (voxels, image.image)]
        raise InputError("shape_mismatch", f"the label is {shapes[0]}, its image {shapes[1]}")
