"""Series to volumes: exact voxels and places from files in any order, and refusals that name what is wrong."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import FileDataset
from series_phantom import content, dataset, item, noise, series

from medray.imaging.dicom.series import find, list_folder, read, read_folder
from medray.imaging.limits import DEFAULT_LIMITS, Limits
from medray.types import InputError

QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def refused(parts: Any, time: int | None = None, limits: Limits = DEFAULT_LIMITS) -> str:
    with pytest.raises(InputError) as caught:
        read(parts, limits, time)
    return caught.value.code


def detail(parts: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(parts)
    return caught.value.detail


def write(folder: Path, files: list[bytes], names: str = "IM{:04d}") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(files):
        (folder / names.format(number)).write_bytes(file)
    return folder


def changed(file: bytes, **elements: Any) -> bytes:
    data = pydicom.dcmread(pydicom.filebase.DicomBytesIO(file))
    assert isinstance(data, FileDataset)
    for keyword, value in elements.items():
        if value is None:
            delattr(data, keyword)
        else:
            setattr(data, keyword, value)
    return content(data)


@st.composite
def rotations(draw: st.DrawFn) -> np.ndarray:
    """Any orientation, as a (3, 3) matrix of columns: along a row, along a column, along the normal."""
    numbers = draw(st.lists(st.floats(-1, 1, allow_nan=False, width=32), min_size=4, max_size=4))
    a, b, c, d = np.array(numbers) / (np.linalg.norm(numbers) or 1.0)
    if not any(numbers):
        a = 1.0
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a - b * b + c * c - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a - b * b - c * c + d * d],
        ]
    )


@QUICK
@given(
    rotations(),
    st.tuples(st.floats(0.1, 5), st.floats(0.1, 5), st.floats(0.1, 10)),
    st.tuples(*[st.floats(-500, 500)] * 3),
    st.integers(2, 7),
    st.randoms(use_true_random=False),
)
def test_any_orientation_and_order_gives_the_volume_and_its_place_back(
    turn: np.ndarray, spacing: tuple[float, float, float], first: tuple[float, float, float], count: int, draw: Any
) -> None:
    volume = noise(count)
    numbers = draw.sample(range(1000), count)
    files = [
        content(
            dataset(
                pixels,
                ImageOrientationPatient=[float(f"{c:.12f}") for c in turn[:, :2].T.ravel()],
                ImagePositionPatient=[float(f"{c:.9f}") for c in np.array(first) + k * spacing[2] * turn[:, 2]],
                PixelSpacing=[float(f"{edge:.9f}") for edge in spacing[:2]],
                InstanceNumber=numbers[k],
                SliceLocation=-float(k),
                SliceThickness=17,
                SOPInstanceUID=f"1.2.4.{k}",
            )
        )
        for k, pixels in enumerate(volume)
    ]
    draw.shuffle(files)
    case = read(files)
    np.testing.assert_array_equal(case.image[0], volume.transpose(2, 1, 0))
    assert case.image.dtype == np.int16
    expected = np.eye(4)
    expected[:3] = np.column_stack([turn * (spacing[1], spacing[0], spacing[2]), first])
    np.testing.assert_allclose(case.affine, np.diag([-1, -1, 1, 1]) @ expected, atol=1e-7)
    assert np.linalg.det(case.affine[:3, :3]) > 0
    assert (case.case_id, case.unit, case.modality, case.subject_id) == ("upload", "mm", "MR", "P1")


@QUICK
@given(st.integers(4, 9), st.data(), st.integers(2, 80).map(lambda tenths: tenths / 10))
def test_dropping_an_inner_slice_is_seen_and_named(count: int, data: st.DataObject, step: float) -> None:
    files = series(noise(count), step=(0, 0, step))
    gone = data.draw(st.integers(1, count - 2))
    left = files[:gone] + files[gone + 1 :]
    assert refused(left) == "missing_slices"
    assert f"1 after {(gone - 1) * step:.2f} mm" in detail(left)


@QUICK
@given(st.integers(5, 9), st.data(), st.floats(0.06, 2.2))
def test_a_slice_out_of_step_is_seen(count: int, data: st.DataObject, off: float) -> None:
    # 1 % of the step is less than 0.05 mm; a quarter and more off it is no whole number of steps.
    files = series(noise(count), step=(0, 0, 2.5))
    moved = data.draw(st.integers(1, count - 2))
    files[moved] = changed(files[moved], ImagePositionPatient=[-10, 20, f"{30 + 2.5 * moved + off:.6f}"])
    assert refused(files) == "non_uniform_spacing"


@QUICK
@given(st.integers(2, 9), st.floats(0.5, 10), st.data())
def test_steps_within_the_tolerance_are_let_pass(count: int, step: float, data: st.DataObject) -> None:
    within = 0.45 * max(0.01 * step, 0.05)
    files = [
        changed(file, ImagePositionPatient=[-10, 20, f"{k * step + data.draw(st.floats(-within / 2, within / 2)):.9f}"])
        for k, file in enumerate(series(noise(count)))
    ]
    np.testing.assert_array_equal(read(files).image[0], noise(count).transpose(2, 1, 0))


def test_many_small_differences_do_not_add_up_to_a_crooked_volume() -> None:
    steps = [2.5] * 40 + [2.54] * 40
    files = series(noise(81))
    files = [changed(file, ImagePositionPatient=[0, 0, sum(steps[:k])]) for k, file in enumerate(files)]
    assert read(files[:60]).image.shape[-1] == 60
    long = [1.0] * 60 + [1.05] * 60
    files = series(noise(121))
    files = [changed(file, ImagePositionPatient=[0, 0, sum(long[:k])]) for k, file in enumerate(files)]
    assert refused(files) == "non_uniform_spacing"


@pytest.mark.parametrize(
    ("orientation", "axes"),
    [
        ((1, 0, 0, 0, 1, 0), "LPS"),
        ((-1, 0, 0, 0, -1, 0), "RAS"),  # prone
        ((0, 1, 0, -1, 0, 0), "PRS"),  # decubitus
        ((0, 1, 0, 0, 0, -1), "PIR"),  # sagittal
        ((1, 0, 0, 0, 0, -1), "LIP"),  # coronal
        ((-1, 0, 0, 0, 1, 0), "RPI"),  # feet first, seen from above
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_axes_point_where_they_should_whichever_end_comes_first(
    orientation: tuple[int, ...], axes: str, sign: int
) -> None:
    import nibabel

    normal = np.cross(orientation[:3], orientation[3:]) * sign
    files = series(noise(3), step=3.0 * normal, ImageOrientationPatient=list(orientation))
    case = read(files)
    assert "".join(nibabel.aff2axcodes(case.affine)) == axes
    np.testing.assert_array_equal(case.image[0], noise(3)[::sign].transpose(2, 1, 0))
    assert case.spacing == pytest.approx((0.7, 0.8, 3.0))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"SliceThickness": 5}, {"SliceThickness": 1.5}),
        ({"EchoTime": 20}, {"EchoTime": 80}),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}, {"ImageType": ["DERIVED", "SECONDARY", "MIP"]}),
    ],
)
def test_two_stacks_of_one_name_that_interlock_are_not_one_of_half_the_step(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    files = series(noise(4), step=(0, 0, 3), first=(0, 0, 0), **one)
    between = series(noise(4), step=(0, 0, 3), first=(0, 0, 1.5), number=1, **other)
    assert read(files).image.shape[-1] == read(between).image.shape[-1] == 4
    with pytest.raises(InputError, match="mixed_series"):
        read([*files, *between])


def test_patients_without_an_id_are_told_by_name_and_birth() -> None:
    files = series(noise(4), PatientID="", PatientName="Doe^Jane", PatientBirthDate="19500101")
    assert read(files).image.shape[-1] == 4
    other = changed(files[0], PatientName="Roe^Jim")
    with pytest.raises(InputError, match="mixed_patients") as caught:
        read([*files[1:], other])
    assert "Roe" not in str(caught.value)


def test_positions_of_zero_are_positions() -> None:
    case = read(series(noise(3), first=(0, 0, 0), step=(0, 0, -1)))
    np.testing.assert_allclose(case.affine[:3, 3], [0, 0, -2])


@pytest.mark.parametrize(
    ("elements", "code"),
    [
        ({"PatientID": "P2"}, "mixed_patients"),
        ({"SeriesInstanceUID": "1.2.9"}, "mixed_series"),
        ({"PatientID": "P2", "SeriesInstanceUID": "1.2.9"}, "mixed_patients"),
        ({"SeriesInstanceUID": None}, "bad_header"),
        ({"Modality": "CT"}, "mixed_series"),
        ({"FrameOfReferenceUID": "1.2.77"}, "mixed_series"),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "mixed_orientation"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 2, 0]}, "bad_affine"),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "bad_affine"),
        ({"ImageOrientationPatient": None}, "missing_geometry"),
        ({"ImagePositionPatient": None}, "missing_geometry"),
        ({"ImagePositionPatient": ""}, "missing_geometry"),
        ({"ImagePositionPatient": [0, 0, 1e300]}, "bad_affine"),
        ({"PixelSpacing": None}, "missing_geometry"),
        ({"PixelSpacing": [0, 0]}, "bad_affine"),
        ({"PixelSpacing": [-0.8, 0.7]}, "bad_affine"),
        ({"PixelSpacing": [0.9, 0.7]}, "non_uniform_spacing"),
        ({"Rows": 5, "Columns": 6}, "inconsistent_size"),
        ({"PixelData": bytes(20)}, "truncated"),
    ],
)
def test_one_slice_that_does_not_belong_refuses_the_series(elements: dict[str, Any], code: str) -> None:
    files = series(noise(5))
    files[3] = changed(files[3], **elements)
    assert refused(files) == code


def test_a_tilted_gantry_is_refused_however_thin_the_slices() -> None:
    for degrees, code in ((2, "gantry_tilt"), (20, "gantry_tilt")):
        for step in (0.5, 5.0):
            files = series(noise(12), step=(0, step * math.tan(math.radians(degrees)), step))
            assert refused(files) == code
    assert read(series(noise(12), step=(0, 0.008 * 5, 5))).affine[1, 2] == pytest.approx(-0.04)


def test_a_copy_of_a_file_is_dropped_with_a_warning_but_no_other_image_at_its_place() -> None:
    files = series(noise(4))
    case = read([*files, *files])
    assert case.warnings == ("duplicate_files",)
    np.testing.assert_array_equal(case.image[0], noise(4).transpose(2, 1, 0))
    assert read([files[0], files[0]]).image.shape == (1, 6, 5)
    assert refused([*files, changed(files[1], SOPInstanceUID="1.2.77")]) == "duplicate_slices"
    assert refused([*files, series(noise(4, seed=1))[1]]) == "duplicate_slices"
    assert "2 slices at 2.50 mm" in detail([*files, changed(files[1], SOPInstanceUID="1.2.77")])


def test_slices_keep_integers_where_all_are_and_float_where_one_is() -> None:
    volume = noise(3)
    files = series(volume, RescaleIntercept=0, RescaleSlope=1)
    wide = [files[0], changed(files[1], RescaleIntercept=100_000), files[2]]
    case = read(wide)
    assert case.image.dtype == np.int32
    np.testing.assert_array_equal(case.image[0, ..., 1], volume[1].T.astype(int) + 100_000)
    slopes = [changed(file, RescaleSlope=str(1 + 0.5 * k)) for k, file in enumerate(files)]
    case = read(slopes)
    assert case.image.dtype == np.float32
    np.testing.assert_allclose(case.image[0, ..., 2], volume[2].T * 2.0)
    np.testing.assert_array_equal(case.image[0, ..., 0], volume[0].T)
    # Resampling takes ten times as long on another order.
    assert case.image.flags["C_CONTIGUOUS"]


def test_blocks_of_slices_and_rows_are_one_volume() -> None:
    volume = noise(70, rows=37, seed=3)
    files = series(volume, RescaleIntercept=0, RescaleSlope=1)
    np.testing.assert_array_equal(read(files).image[0], volume.transpose(2, 1, 0))
    files[69] = changed(files[69], RescaleSlope=0.5)
    case = read(files)
    assert case.image.dtype == np.float32
    np.testing.assert_array_equal(case.image[0, ..., :69], volume[:69].transpose(2, 1, 0))
    np.testing.assert_array_equal(case.image[0, ..., 69], volume[69].T / 2)


def test_colour_slices_stay_in_order_also_where_one_is_grey() -> None:
    draw = np.random.default_rng(0).integers(0, 255, (3, 4, 5, 3)).astype(np.uint8)
    draw[0] = draw[0, ..., :1]
    files = []
    for k, pixels in enumerate(draw):
        data = dataset(
            np.zeros((4, 5), np.int16), ImagePositionPatient=[0, 0, k], SOPInstanceUID=f"1.2.{k}", SamplesPerPixel=3
        )
        data.BitsAllocated = data.BitsStored = 8
        data.HighBit, data.PixelRepresentation, data.PlanarConfiguration = 7, 0, 0
        data.PhotometricInterpretation = "RGB"
        data.PixelData = pixels.tobytes()
        files.append(content(data))
    case = read(files)
    assert case.image.shape == (3, 5, 4, 3)
    np.testing.assert_array_equal(case.image, draw.transpose(3, 2, 1, 0))
    # A block of grey slices, then one with colour.
    grey = [changed(files[0], ImagePositionPatient=[0, 0, -k], SOPInstanceUID=f"1.3.{k}") for k in range(1, 40)]
    tall = read([*grey, *files]).image
    np.testing.assert_array_equal(tall[..., -3:], case.image)
    np.testing.assert_array_equal(tall[..., :39], np.repeat(case.image[..., :1], 39, axis=-1))


def test_the_grid_is_checked_before_pixels_are_decoded() -> None:
    files = series(noise(5))
    files[4] = changed(files[4], PixelData=bytes(2))
    assert refused(files, limits=Limits(max_voxels=149)) == "too_many_voxels"
    assert refused(files, limits=Limits(max_decompressed_bytes=599)) == "too_large_decompressed"
    assert refused(series(noise(2), step=(0, 0, 60))) == "implausible_spacing"


FOUR_D = [
    ({"TemporalPositionIdentifier": 1}, {"TemporalPositionIdentifier": 2}),
    ({"AcquisitionNumber": 9}, {"AcquisitionNumber": 10}),
    ({"EchoNumbers": 1, "ImageType": ["A", "M", "ECHO_00"]}, {"EchoNumbers": 2, "ImageType": ["A", "M", "ECHO_01"]}),
    ({"EchoTime": "4.6"}, {"EchoTime": "9.2"}),
    ({"DiffusionBValue": 0.0}, {"DiffusionBValue": 1000.0}),
    ({"TriggerTime": "12.5"}, {"TriggerTime": "112.5"}),
    (
        {"AcquisitionTime": "235959.5", "AcquisitionDate": "20200101"},
        {"AcquisitionTime": "000001", "AcquisitionDate": "20200102"},
    ),
    ({"ContentTime": "101500"}, {"ContentTime": "101500.25"}),
]


@pytest.mark.parametrize(("early", "late"), FOUR_D, ids=lambda told: next(iter(told)))
def test_a_4d_series_is_parted_by_the_attribute_that_parts_it(early: dict[str, Any], late: dict[str, Any]) -> None:
    volumes = noise(3), noise(3, seed=1)
    files = series(volumes[1], number=1, **late) + series(volumes[0], **early)
    with pytest.raises(InputError) as caught:
        read(files)
    assert (caught.value.code, "2 volumes" in caught.value.detail) == ("time_series", True)
    assert "time=0" in caught.value.hint
    for time, volume in enumerate(volumes):
        np.testing.assert_array_equal(read(files, time=time).image[0], volume.transpose(2, 1, 0))
    for time in (-1, 2):
        assert refused(files, time) == "index_out_of_range"


def test_cine_phases_need_not_be_at_the_same_moment_in_every_slice() -> None:
    volumes = [noise(3, seed=phase) for phase in range(4)]
    files = []
    for phase, volume in enumerate(volumes):
        plain = series(volume, number=phase)
        files += [changed(file, TriggerTime=str(phase * (30 + k) + k)) for k, file in enumerate(plain)]
    for time, volume in enumerate(volumes):
        np.testing.assert_array_equal(read(files[::-1], time=time).image[0], volume.transpose(2, 1, 0))


def test_diffusion_directions_of_one_b_value_are_volumes_of_their_own() -> None:
    told = [(0.0, None), (1000.0, [1.0, 0.0, 0.0]), (1000.0, [0.0, 1.0, 0.0])]
    files = []
    for number, (b, direction) in enumerate(told):
        extra = {"DiffusionBValue": b, "DiffusionGradientOrientation": direction}
        files += series(noise(3, seed=number), number=number, **extra)
    assert "3 volumes" in detail(files)
    np.testing.assert_array_equal(read(files, time=1).image[0], noise(3, seed=2).transpose(2, 1, 0))


def test_numbers_part_volumes_where_they_run_volume_by_volume() -> None:
    files = []
    for number in range(3):
        files += series(noise(4, seed=number), number=number)
    files = [changed(file, InstanceNumber=k + 1) for k, file in enumerate(files)]
    assert "3 volumes" in detail(files)
    np.testing.assert_array_equal(read(files, time=2).image[0], noise(4, seed=2).transpose(2, 1, 0))
    mixed = [
        changed(file, InstanceNumber=k) for k, file in zip([1, 2, 3, 9, 5, 6, 7, 8, 4, 10, 11, 12], files, strict=True)
    ]
    assert refused(mixed) == "duplicate_slices"
    assert refused([changed(file, InstanceNumber=1) for file in files]) == "duplicate_slices"


def test_a_slice_missing_at_one_time_point_is_missing() -> None:
    files = [file for number in range(3) for file in series(noise(4), number=number, AcquisitionNumber=number)]
    assert refused(files[:5] + files[6:]) == "missing_slices"


def test_two_reconstructions_in_one_series_are_refused() -> None:
    images = ["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]
    for keyword, one, other in (("ConvolutionKernel", "B30f", "B70f"), ("ImageType", *images)):
        files = series(noise(3), AcquisitionNumber=1, **{keyword: one})
        files += series(noise(3, seed=1), number=1, AcquisitionNumber=2, **{keyword: other})
        assert refused(files) == "mixed_series"
        assert refused(files, time=0) == "mixed_series"
    # Between each other's slices they would look like one volume of half the step.
    between = series(noise(3), number=1, first=(-10, 20, 31.25), ConvolutionKernel="B70f")
    assert refused(series(noise(3), ConvolutionKernel="B30f") + between) == "mixed_series"


def test_one_position_is_a_2d_image_or_a_series_of_them() -> None:
    files = series(noise(1))
    case = read(files)
    np.testing.assert_array_equal(case.image, noise(1))
    np.testing.assert_allclose(np.diag(case.affine), [0.8, 0.7, 1, 1])
    assert read(files, time=0).image.shape == (1, 6, 5)
    assert refused(files, time=1) == "index_out_of_range"
    cine = [file for t in range(3) for file in series(noise(1, seed=t), number=t, TriggerTime=str(40 * t))]
    assert "3 images" in detail(cine)
    np.testing.assert_array_equal(read(cine, time=2).image, noise(1, seed=2))


def test_slices_that_are_all_at_zero_have_no_place() -> None:
    files = series(noise(4), step=(0, 0, 0), first=(0, 0, 0))
    files = [changed(file, InstanceNumber=k, ContentTime=f"1010{k:02d}") for k, file in enumerate(files)]
    assert refused(files) == "missing_geometry"
    assert refused([changed(file, TriggerTime=str(k)) for k, file in enumerate(files)]) == "time_series"
    placed = series(noise(4), step=(0, 0, 0))
    assert refused([changed(file, InstanceNumber=k) for k, file in enumerate(placed)]) == "duplicate_slices"


def test_a_cine_file_gives_its_frames() -> None:
    frames = noise(4)
    data = dataset(frames, Modality="US", ImagePositionPatient=None, ImageOrientationPatient=None)
    files = [content(data)]
    assert refused(files) == "time_series"
    assert "4 images" in detail(files)
    case = read(files, time=3)
    np.testing.assert_array_equal(case.image, frames[3:])
    assert (case.unit, case.modality) == ("mm", "US")
    np.testing.assert_allclose(np.diag(case.affine), [0.8, 0.7, 1, 1])
    del data.PixelSpacing
    assert read([content(data)], time=0).unit == "px"
    assert refused([content(data)] * 2 + series(noise(1))) == "missing_geometry"


def test_a_folder_is_read_with_its_subfolders_and_without_what_is_foreign(tmp_path: Path) -> None:
    files = series(noise(6))
    folder = write(tmp_path / "exam", files[:3])
    write(folder / "more", files[3:], "1.2.3.{}")
    (folder / "DICOMDIR").write_bytes(b"anything")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "notes.txt").write_text("hello")
    (folder / "empty.txt").write_bytes(b"")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "._IM0001.dcm").write_bytes(b"x")
    data = dataset(noise(1)[0], Modality="SR", SeriesInstanceUID="1.2.50")
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(data, keyword)
    (folder / "report").write_bytes(content(data))
    assert [len(list_folder(folder)[0]), list_folder(folder)[1]] == [7, 5]
    case = read_folder(folder)
    assert (case.case_id, case.warnings) == ("exam", ())
    np.testing.assert_array_equal(case.image[0], noise(6).transpose(2, 1, 0))
    assert read(sorted(folder.glob("IM*"))).case_id == "exam"
    assert read([folder / "IM0001"]).case_id == "IM0001"
    (folder / "report").write_bytes(changed(content(data), PatientID="P9"))
    with pytest.raises(InputError, match="mixed_patients"):
        read_folder(folder)


@pytest.mark.parametrize(
    ("name", "damaged", "code"),
    [
        ("IM0005.dcm", b"", "empty_file"),
        ("IM0005", b"", "empty_file"),
        ("IM0005", bytes(100), "unsupported_type"),
        ("1.2.840.5", bytes(100), "unsupported_type"),
        ("IM0005.dcm", b"garbage", "unsupported_type"),
        ("IM0005", b"\x08\0\x05\0\x0a\0\0\0ISO_IR 100", "unsupported_type"),
        ("IM0005", bytes(128) + b"DICM", "bad_header"),
    ],
)
def test_a_damaged_last_slice_is_not_taken_for_a_foreign_file(
    tmp_path: Path, name: str, damaged: bytes, code: str
) -> None:
    folder = write(tmp_path / "exam", series(noise(4)))
    (folder / name).write_bytes(damaged)
    with pytest.raises(InputError) as caught:
        read_folder(folder)
    assert caught.value.code == code
    (info,) = find(folder.iterdir())
    assert folder / name in info.files, "it goes with the series, so that no layout reads the series without it"


def test_what_cannot_be_read_in_a_folder_is_not_left_out(tmp_path: Path) -> None:
    folder = write(tmp_path / "exam", series(noise(4)))
    os.mkfifo(folder / "pipe")
    with pytest.raises(InputError, match="not_readable"):
        read_folder(folder)
    (folder / "pipe").unlink()
    (folder / "IM0004").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="not_readable"):
        read_folder(folder)
    with pytest.raises(InputError, match="not_readable"):
        read_folder(tmp_path / "gone")


def test_a_folder_without_images_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="none of the 1 files") as caught:
        read_folder(tmp_path)
    assert caught.value.code == "unsupported_type"
    (tmp_path / "seg").write_bytes(changed(series(noise(1))[0], Modality="SEG"))
    with pytest.raises(InputError, match="only SEG") as caught:
        read_folder(tmp_path)
    assert caught.value.code == "no_pixel_data"
    assert refused([tmp_path / "missing"]) == "not_found"


def test_find_describes_series_by_headers_alone(tmp_path: Path) -> None:
    plain = series(noise(3), SeriesDescription="T1")
    write(tmp_path / "a", [file[:-40] for file in plain])
    echoes = [f for n in (1, 2) for f in series(noise(3), number=n, EchoNumbers=n, SeriesInstanceUID="1.2.20")]
    write(tmp_path / "b", echoes)
    write(tmp_path / "c", [changed(plain[0], PatientID="P2", SeriesInstanceUID="1.2.25")])
    write(tmp_path / "e", plain)
    reference = item(SeriesInstanceUID="1.2.2")
    seg = dataset(noise(2), Modality="SEG", SeriesInstanceUID="1.2.30", ReferencedSeriesSequence=[reference])
    study = item(RTReferencedSeriesSequence=[reference])
    frame = item(RTReferencedStudySequence=[study])
    contours = dataset(noise(1)[0], Modality="RTSTRUCT", SeriesInstanceUID="1.2.31")
    contours.ReferencedFrameOfReferenceSequence = [frame]
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(contours, keyword)
    both = dataset(noise(2), Modality="SEG", SeriesInstanceUID="1.2.32")
    both.ReferencedSeriesSequence = [reference, item(SeriesInstanceUID="1.2.20")]
    write(tmp_path / "d", [content(seg), content(contours), content(both)])
    (tmp_path / "notes.txt").write_text("hello")
    found = find(path for path in tmp_path.rglob("*") if path.is_file())
    told = [(info.uid, info.patient_id, info.modality, len(info.files), info.times, info.refers_to) for info in found]
    assert told == [
        ("1.2.2", "P1", "MR", 6, 1, ""),
        ("1.2.20", "P1", "MR", 6, 2, ""),
        ("1.2.25", "P2", "MR", 1, 1, ""),
        ("1.2.30", "P1", "SEG", 1, 1, "1.2.2"),
        ("1.2.31", "P1", "RTSTRUCT", 1, 1, "1.2.2"),
        ("1.2.32", "P1", "SEG", 1, 1, ""),
    ]
    assert (found[0].description, found[0].study_uid) == ("T1", "1.2.1")
    assert found[0].files == tuple(sorted(found[0].files))


def test_a_header_longer_than_what_is_read_first_is_read_whole(tmp_path: Path) -> None:
    files = series(noise(3), number=1, ImageComments="x" * 9000)
    long = [changed(file, TextValue="y" * 70_000, Rows=6) for file in files]
    # An icon holds the tag of the pixels, long before them.
    icon = item(Rows=1, Columns=1, PixelData=b"\0\0")
    icon["PixelData"].VR = "OB"
    iconic = [changed(file, IconImageSequence=[icon]) for file in long]
    for name, group in (("long", long), ("iconic", iconic)):
        folder = write(tmp_path / name, group)
        assert find(folder.iterdir())[0].times == 1
        np.testing.assert_array_equal(read_folder(folder).image[0], noise(3).transpose(2, 1, 0))
