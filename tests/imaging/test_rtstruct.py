import warnings
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medray.imaging import labels
from medray.imaging.dicom import rtstruct
from medray.imaging.dicom.rtstruct import fill
from medray.types import Case, InputError

SHAPE = (12, 10, 5)
TURN = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
AFFINE = np.vstack([np.column_stack([TURN * (0.7, 0.9, 2.5), [12.5, -30.25, 101.0]]), [0, 0, 0, 1]])
"""Voxel -> RAS+; oblique."""
IMAGE = Case("scan", np.zeros((1, *SHAPE), np.int16), AFFINE, unit="mm", modality="CT")
SQUARE = np.array([(1.5, 1.5), (1.5, 5.5), (6.5, 5.5), (6.5, 1.5)])
"""Around the voxels 2..6 of i and 2..5 of j."""
HOLE = np.array([(2.5, 2.5), (4.5, 2.5), (4.5, 4.5), (2.5, 4.5)])
Contour = tuple[np.ndarray, float]
"""Corners (P, 2) in (i, j), and the slice k."""


def item(**values: object) -> Dataset:
    data = Dataset()
    for name, value in values.items():
        setattr(data, name, value)
    return data


def contour(corners: np.ndarray, k: float, kind: str = "CLOSED_PLANAR") -> Dataset:
    index = np.column_stack([corners, np.full(len(corners), k), np.ones(len(corners))])
    points = (index @ AFFINE.T)[:, :3] * (-1, -1, 1)
    numbers = [f"{number:.10g}" for number in points.ravel()]
    return item(ContourGeometricType=kind, NumberOfContourPoints=len(corners), ContourData=numbers)


def structures(rois: dict[tuple[int, str], list[Contour]], kind: str = "CLOSED_PLANAR") -> Dataset:
    uid = generate_uid()
    storage = "1.2.840.10008.5.1.4.1.1.481.3"
    data = item(SOPClassUID=storage, SOPInstanceUID=uid, Modality="RTSTRUCT", StructureSetLabel="set")
    data.file_meta = FileMetaDataset(
        item(TransferSyntaxUID=ExplicitVRLittleEndian, MediaStorageSOPClassUID=storage, MediaStorageSOPInstanceUID=uid)
    )
    data.StructureSetROISequence = [item(ROINumber=number, ROIName=name) for number, name in rois]
    data.ROIContourSequence = [
        item(ReferencedROINumber=number, ContourSequence=[contour(corners, k, kind) for corners, k in contours])
        for (number, _), contours in rois.items()
    ]
    return data


def content(data: Dataset) -> bytes:
    file = BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def code_of(data: Dataset, image: Case = IMAGE, rois: tuple[str, ...] = ()) -> str:
    with pytest.raises(InputError) as caught:
        labels.load(content(data), image, rois)
    return caught.value.code


def expected(*boxes: tuple[slice, slice, int, int]) -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    for i, j, k, value in boxes:
        label[i, j, k] = value
    return label


def inside(point: tuple[float, float], corners: np.ndarray) -> bool:
    """Whether a point is inside, by the sum of the angles that the corners are seen under: another method."""
    rays = corners - point
    ahead = np.roll(rays, -1, axis=0)
    cross = rays[:, 0] * ahead[:, 1] - rays[:, 1] * ahead[:, 0]
    turns = np.arctan2(cross, (rays * ahead).sum(axis=1)).sum() / (2 * np.pi)
    return round(turns) % 2 == 1


def edge_distance(point: tuple[float, float], corners: np.ndarray) -> float:
    start, along = corners, np.roll(corners, -1, axis=0) - corners
    length = (along**2).sum(axis=1)
    share = np.clip(((np.array(point) - start) * along).sum(axis=1) / np.where(length, length, 1), 0, 1)
    return float(np.linalg.norm(start + share[:, None] * along - point, axis=1).min())


CORNERS = st.lists(st.tuples(st.floats(-3, 12), st.floats(-3, 10)), min_size=3, max_size=8).map(np.array)


@settings(max_examples=150, deadline=None)
@given(corners=CORNERS)
def test_filled_pixels_are_those_whose_centre_is_inside(corners: np.ndarray) -> None:
    filled = fill([corners], (9, 8))
    for point in np.ndindex(9, 8):
        # On an edge either side is right.
        if edge_distance(point, corners) > 1e-6:
            assert filled[point] == inside(point, corners), point


@settings(max_examples=150, deadline=None)
@given(
    corners=st.lists(st.tuples(st.integers(-2, 10), st.integers(-2, 10)), min_size=4, max_size=8).map(
        lambda points: np.array(points, float)
    ),
    cut=st.integers(2, 6),
    start=st.integers(0, 7),
)
def test_parts_of_a_region_neither_overlap_nor_leave_a_gap(corners: np.ndarray, cut: int, start: int) -> None:
    """Corners on pixel centres, where rounding and double counting would show."""
    whole = np.roll(corners, start, axis=0)
    cut = min(cut, len(whole) - 2)
    first, second = whole[: cut + 1], np.concatenate([whole[cut:], whole[:1]])
    parts = fill([first], (9, 9)) ^ fill([second], (9, 9))
    np.testing.assert_array_equal(fill([whole], (9, 9)), parts)
    np.testing.assert_array_equal(fill([whole[::-1]], (9, 9)), fill([whole], (9, 9)))
    np.testing.assert_array_equal(fill([first, second], (9, 9)), parts)


def test_squares_that_share_edges_tile_the_plane() -> None:
    tiles = [
        np.array([(r, c), (r + 2, c), (r + 2, c + 3), (r, c + 3)], float)
        for r in range(0, 8, 2)
        for c in range(0, 9, 3)
    ]
    assert sum(fill([tile], (8, 9)).astype(int) for tile in tiles).tolist() == np.ones((8, 9)).tolist()


def test_a_circle_has_its_area_and_its_pixels() -> None:
    angle = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
    centre, radius = np.array([50.3, 47.8]), 40.0
    circle = centre + radius * np.column_stack([np.cos(angle), np.sin(angle)])
    filled = fill([circle], (100, 100))
    distance = np.linalg.norm(np.moveaxis(np.indices((100, 100)), 0, -1) - centre, axis=-1)
    sure = abs(distance - radius) > 1e-3
    np.testing.assert_array_equal(filled[sure], (distance < radius)[sure])
    assert filled.sum() == pytest.approx(np.pi * radius**2, rel=0.005)


def test_contours_become_a_label_map_with_values_in_the_order_of_the_numbers() -> None:
    data = structures({(7, "lung"): [(SQUARE, 3)], (2, "liver"): [(SQUARE, 0), (SQUARE, 1)]})
    label = labels.load(content(data), IMAGE)
    box = slice(2, 7), slice(2, 6)
    np.testing.assert_array_equal(label.case.image[0], expected((*box, 0, 1), (*box, 1, 1), (*box, 3, 2)))
    assert label.names == {1: "liver", 2: "lung"}
    assert (label.case.warnings, label.case.image.dtype) == ((), np.uint8)


def test_regions_are_chosen_by_name_and_get_the_values_of_their_classes() -> None:
    data = structures({(1, "body"): [(SQUARE, 1)], (2, "liver"): [(HOLE, 1)], (3, "lung"): [(SQUARE, 3)]})
    assert code_of(data) == "overlapping_segments"
    label = labels.read_label(content(data), IMAGE, (0, 1, 2, 3), ("background", "lung", "liver", "spleen"))
    holes = expected((slice(2, 7), slice(2, 6), 3, 1), (slice(3, 5), slice(3, 5), 1, 2))
    np.testing.assert_array_equal(label.image[0], holes)
    assert code_of(data, rois=("spleen",)) == "unknown_roi"
    twice = structures({(1, "liver"): [(SQUARE, 1)], (2, "liver"): [(SQUARE, 3)]})
    assert code_of(twice, rois=("liver",)) == "unknown_roi"


@pytest.mark.parametrize("kind", ["CLOSED_PLANAR", "CLOSEDPLANAR_XOR"])
def test_a_contour_within_another_is_a_hole(kind: str) -> None:
    label = labels.load(content(structures({(1, "ring"): [(SQUARE, 2), (HOLE, 2)]}, kind)), IMAGE)
    ring = expected((slice(2, 7), slice(2, 6), 2, 1), (slice(3, 5), slice(3, 5), 2, 0))
    np.testing.assert_array_equal(label.case.image[0], ring)


@settings(max_examples=30, deadline=None)
@given(axes=st.permutations(range(3)), signs=st.tuples(*[st.sampled_from([1, -1])] * 3))
def test_the_image_may_have_its_axes_in_another_order_and_direction(
    axes: list[int], signs: tuple[int, int, int]
) -> None:
    # Away from the centres, so that no turn decides which side an edge falls to.
    wedge = np.array([(0.6, 0.7), (9.3, 2.4), (4.2, 8.6)])
    data = content(structures({(1, "wedge"): [(wedge, 1), (SQUARE + 0.1, 2)]}))
    voxels, affine = labels.load(data, IMAGE).case.image[0].transpose(axes), AFFINE[:, [*axes, 3]].copy()
    for axis in (axis for axis in range(3) if signs[axis] < 0):
        affine[:, 3] += affine[:, axis] * (voxels.shape[axis] - 1)
        affine[:, axis] *= -1
        voxels = np.flip(voxels, axis)
    image = replace(IMAGE, image=np.zeros((1, *voxels.shape), np.int16), affine=affine)
    np.testing.assert_array_equal(labels.load(data, image).case.image[0], voxels)
    assert voxels.any()


def test_slices_without_a_contour_between_others_are_warned_of() -> None:
    data = structures({(1, "liver"): [(SQUARE, 0), (SQUARE, 2)], (2, "lung"): [(SQUARE, 3)]})
    label = labels.load(content(data), IMAGE)
    assert label.case.warnings == ("contour_gap",)
    assert not label.case.image[0, :, :, 1].any()


def test_points_and_open_lines_enclose_nothing() -> None:
    data = structures({(1, "isocentre"): [(SQUARE, 1)]}, kind="POINT")
    assert code_of(data) == "no_contours"
    both = structures({(1, "isocentre"): [(SQUARE, 1)], (2, "liver"): [(SQUARE, 1)]})
    both.ROIContourSequence[0].ContourSequence[0].ContourGeometricType = "OPEN_PLANAR"
    assert labels.load(content(both), IMAGE).names == {1: "liver"}
    del both.ROIContourSequence[0].ContourSequence
    assert labels.load(content(both), IMAGE).names == {1: "liver"}


@pytest.mark.parametrize(
    ("corners", "k", "passes"),
    [
        (SQUARE, 1.2, True),
        (SQUARE, 1.3, False),
        (SQUARE, -1, False),
        (SQUARE, 5, False),
        (SQUARE - 2.4, 1, True),
        (SQUARE - 2.6, 1, False),
        (SQUARE + 4.4, 1, True),
        (SQUARE + 4.6, 1, False),
    ],
)
def test_contours_off_the_slices_or_out_of_the_image_are_refused(corners: np.ndarray, k: float, passes: bool) -> None:
    data = structures({(1, "liver"): [(corners, k), (SQUARE, 2)]})
    if passes:
        assert labels.load(content(data), IMAGE).counts[1] > 20
    else:
        assert code_of(data) == "affine_mismatch"


def test_a_tilted_contour_is_refused() -> None:
    data = structures({(1, "liver"): [(SQUARE, 1)]})
    tilted = contour(SQUARE, 1).ContourData[:6] + contour(SQUARE, 2).ContourData[6:]
    data.ROIContourSequence[0].ContourSequence[0].ContourData = tilted
    assert code_of(data) == "affine_mismatch"


def first_contour(data: Dataset) -> Dataset:
    part: Dataset = data.ROIContourSequence[0].ContourSequence[0]
    return part


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: setattr(first_contour(data), "ContourData", ["1", "2", "3", "4"]),
        lambda data: setattr(first_contour(data), "ContourData", []),
        lambda data: delattr(first_contour(data), "ContourData"),
        lambda data: setattr(data.ROIContourSequence[0], "ReferencedROINumber", 9),
        lambda data: data.ROIContourSequence.append(data.ROIContourSequence[0]),
        lambda data: delattr(data, "StructureSetROISequence"),
    ],
)
def test_a_structure_set_that_cannot_be_understood_has_a_bad_header(edit: Callable[[Dataset], None]) -> None:
    data = structures({(1, "liver"): [(SQUARE, 1)]})
    edit(data)
    assert code_of(data) == "bad_header"


def test_no_value_of_an_element_is_quoted() -> None:
    raw = content(structures({(12345678, "liver"): [(SQUARE, 1)]})).replace(b"12345678", b"JaneDoe^")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(InputError) as caught:
            labels.load(raw, IMAGE)
    assert caught.value.code == "bad_header"
    assert "Doe" not in f"{caught.value} {[str(line.message) for line in said]}"


def test_contours_need_a_volume_with_a_place() -> None:
    data = structures({(1, "liver"): [(SQUARE, 1)]})
    assert code_of(data, Case("photo", np.zeros((1, 12, 10), np.uint8), np.eye(4))) == "wrong_rank"
    assert code_of(data, replace(IMAGE, unit="px")) == "missing_affine"


@settings(max_examples=150, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_raises_nothing_but_input_errors(at: float, bit: int) -> None:
    flipped = bytearray(content(structures({(1, "liver"): [(SQUARE, 1)], (2, "lung"): [(SQUARE, 2), (HOLE, 2)]})))
    flipped[int(at * len(flipped))] ^= 1 << bit
    try:
        label = labels.load(bytes(flipped), IMAGE)
    except InputError:
        return
    assert label.case.image.shape == (1, *SHAPE)


def test_a_real_structure_set_fills_the_area_of_its_contours(shared_data: Path) -> None:
    data = pydicom.dcmread(shared_data / "dicom" / "pydicom_test_files" / "rtstruct.dcm", force=True)
    affine = np.array([[-2.0, 0, 0, 250], [0, -2.0, 0, 250], [0, 0, 10, -220], [0, 0, 0, 1]])
    image = Case("phantom", np.zeros((1, 250, 250, 6), np.uint8), affine, unit="mm")
    label, warnings, names = rtstruct.read(data, image)
    assert (warnings, names) == ((), {1: "patient"})
    for part, k in zip(data.ROIContourSequence[0].ContourSequence, (2, 3, 4), strict=True):
        x, y = np.array(part.ContourData, float).reshape(-1, 3).T[:2]
        area = abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
        assert 4.0 * label[0, :, :, k].sum() == pytest.approx(area, rel=0.01)
    assert not label[0, :, :, [0, 1, 5]].any()
