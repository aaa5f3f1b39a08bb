import itertools
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
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, RLELossless, generate_uid

from medray.imaging import labels, nrrd
from medray.imaging.dicom import seg
from medray.imaging.limits import Limits
from medray.types import Case, InputError, SeriesRef

SHAPE = (7, 5, 4)
"""(i, j, k) = (column, row, slice): 35 pixels a frame, so that all frames but the first start within a byte."""
SPACING = (0.7, 0.9, 2.5)
TURN = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
ORIGIN = np.array([12.5, -30.25, 101.0])
AFFINE = LPS_TO_RAS @ np.vstack([np.column_stack([TURN * SPACING, ORIGIN]), [0, 0, 0, 1]])
IMAGE = Case("scan", np.zeros((1, *SHAPE), np.int16), AFFINE, unit="mm", modality="CT")
CLASSES = np.random.default_rng(1).integers(0, 3, SHAPE).astype(np.uint8)


def item(**values: object) -> Dataset:
    data = Dataset()
    for name, value in values.items():
        setattr(data, name, value)
    return data


def position(index: tuple[float, float, float]) -> list[float]:
    return (ORIGIN + TURN @ (np.array(index) * SPACING)).tolist()


def header(kind: str, bits: int, numbers: list[int]) -> Dataset:
    """All of a segmentation but its frames."""
    syntax = {"MediaStorageSOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4", "MediaStorageSOPInstanceUID": generate_uid()}
    data = item(SOPClassUID=syntax["MediaStorageSOPClassUID"], Modality="SEG", SegmentationType=kind)
    data.file_meta = FileMetaDataset(item(TransferSyntaxUID=ExplicitVRLittleEndian, **syntax))
    data.SOPInstanceUID = syntax["MediaStorageSOPInstanceUID"]
    data.SegmentSequence = [item(SegmentNumber=number, SegmentLabel=f"organ {number}") for number in numbers]
    data.Rows, data.Columns = SHAPE[1], SHAPE[0]
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    measures = item(PixelSpacing=[SPACING[1], SPACING[0]], SliceThickness=9.0)
    plane = item(ImageOrientationPatient=[*TURN[:, 0], *TURN[:, 1]])
    shared = item(PixelMeasuresSequence=[measures], PlaneOrientationSequence=[plane])
    data.SharedFunctionalGroupsSequence = [shared]
    return data


def add_frames(data: Dataset, frames: list[tuple[np.ndarray, int, tuple[float, float, float]]]) -> Dataset:
    """Frames of (pixels (row, column), segment, index of the first pixel)."""
    data.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=position(first))],
            SegmentIdentificationSequence=[item(ReferencedSegmentNumber=number)],
        )
        for _, number, first in frames
    ]
    data.NumberOfFrames = len(frames)
    pixels = np.stack([frame for frame, *_ in frames])
    packed = np.packbits(pixels.ravel(), bitorder="little") if data.BitsAllocated == 1 else pixels
    raw = packed.tobytes()
    data.PixelData = raw + bytes(len(raw) % 2)
    data["PixelData"].VR = "OB" if data.BitsAllocated <= 8 else "OW"
    return data


def binary(classes: np.ndarray = CLASSES) -> Dataset:
    """One frame per class and slice, classes outermost; slices without the class have none."""
    numbers = [int(number) for number in np.unique(classes) if number]
    frames = [
        ((classes[..., k] == number).T, number, (0.0, 0.0, float(k)))
        for number, k in itertools.product(numbers, range(classes.shape[2]))
        if (classes[..., k] == number).any()
    ]
    return add_frames(header("BINARY", 1, numbers), frames)


def content(data: Dataset) -> bytes:
    file = BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def code_of(data: Dataset, image: Case = IMAGE) -> str:
    with pytest.raises(InputError) as caught:
        labels.load(content(data), image)
    return caught.value.code


def test_frames_of_bits_are_set_on_their_slices(tmp_path: Path) -> None:
    file = tmp_path / "label.dcm"
    file.write_bytes(content(binary()))
    for source in (file, file.read_bytes(), SeriesRef((file,))):
        label = labels.load(source, IMAGE)
        np.testing.assert_array_equal(label.case.image[0], CLASSES)
        assert label.case.image.dtype == np.uint8
        assert label.names == {1: "organ 1", 2: "organ 2"}
    assert labels.read_label(file, IMAGE, {0, 1, 2}).warnings == ()
    with pytest.raises(InputError, match="unknown_class"):
        labels.read_label(file, IMAGE, {0, 1})


def test_segments_get_the_values_of_their_classes_by_name() -> None:
    """Segment 1 of one file may be segment 2 of the next."""
    data = content(binary())
    named = labels.read_label(data, IMAGE, (0, 1, 2), ("background", "organ 2", "organ 1"))
    np.testing.assert_array_equal(named.image[0], np.array([0, 2, 1])[CLASSES])
    with pytest.raises(InputError, match="unknown_class: the label has 1 structures of no class: 'organ 2'"):
        labels.read_label(data, IMAGE, (0, 1), ("background", "organ 1"))


def test_slices_without_a_frame_are_background() -> None:
    classes = CLASSES.copy()
    classes[..., [0, 2]] = 0
    np.testing.assert_array_equal(labels.load(content(binary(classes)), IMAGE).case.image[0], classes)


@settings(max_examples=40, deadline=None)
@given(axes=st.permutations(range(3)), signs=st.tuples(*[st.sampled_from([1, -1])] * 3))
def test_the_image_may_have_its_axes_in_another_order_and_direction(
    axes: list[int], signs: tuple[int, int, int]
) -> None:
    classes, affine = CLASSES.transpose(axes), AFFINE[:, [*axes, 3]].copy()
    for axis in (axis for axis in range(3) if signs[axis] < 0):
        affine[:, 3] += affine[:, axis] * (classes.shape[axis] - 1)
        affine[:, axis] *= -1
        classes = np.flip(classes, axis)
    image = replace(IMAGE, image=np.zeros((1, *classes.shape), np.int16), affine=affine)
    np.testing.assert_array_equal(labels.load(content(binary()), image).case.image[0], classes)


def test_frames_may_be_smaller_than_the_slices() -> None:
    data = header("BINARY", 1, [1])
    data.Rows, data.Columns = 2, 3
    label = labels.load(content(add_frames(data, [(np.ones((2, 3), bool), 1, (3.0, 1.0, 2.0))])), IMAGE)
    expected = np.zeros(SHAPE, np.uint8)
    expected[3:6, 1:3, 2] = 1
    np.testing.assert_array_equal(label.case.image[0], expected)


def test_fractions_count_from_half_of_the_maximum_up() -> None:
    data = header("FRACTIONAL", 8, [1])
    data.MaximumFractionalValue = 200
    pixels = np.zeros((5, 7), np.uint8)
    pixels[0] = [0, 1, 99, 100, 101, 199, 200]
    label = labels.load(content(add_frames(data, [(pixels, 1, (0.0, 0.0, 0.0))])), IMAGE)
    np.testing.assert_array_equal(label.case.image[0, :, 0, 0], [0, 0, 0, 1, 1, 1, 1])
    assert label.case.warnings == ("fractional_segmentation",)
    data.MaximumFractionalValue = 0
    assert code_of(data) == "bad_header"


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "PALETTE COLOR"])
@pytest.mark.parametrize("number", [2, 300])
def test_label_maps_hold_segment_numbers(number: int, photometric: str) -> None:
    classes = CLASSES.astype(np.uint16 if number > 255 else np.uint8)
    classes[CLASSES == 2] = number
    data = header("LABELMAP", 8 * classes.itemsize, [0, 1, number])
    data.PixelPaddingValue, data.PhotometricInterpretation = 0, photometric
    add_frames(data, [(classes[..., k].T, 0, (0.0, 0.0, float(k))) for k in range(SHAPE[2])])
    if photometric == "PALETTE COLOR":
        for name in ("Red", "Green", "Blue"):
            setattr(data, f"{name}PaletteColorLookupTableDescriptor", [4, 0, 16])
            setattr(data, f"{name}PaletteColorLookupTableData", bytes(8))
    label = labels.load(content(data), IMAGE)
    np.testing.assert_array_equal(label.case.image[0], classes)
    assert label.case.image.dtype == classes.dtype
    assert label.names == {1: "organ 1", number: f"organ {number}"}
    data.SegmentSequence = data.SegmentSequence[:2]
    assert code_of(data) == "bad_header"


def test_frames_that_are_decoded_are_limited_and_bits_are_limited_by_their_file() -> None:
    limits = Limits(max_voxels=100)
    data = header("LABELMAP", 8, [1, 2])
    add_frames(data, [(CLASSES[..., k].T, 0, (0.0, 0.0, float(k))) for k in range(SHAPE[2])])
    with pytest.raises(InputError, match="too_many_pixels"):
        labels.load(content(data), IMAGE, limits=limits)
    assert labels.load(content(binary()), IMAGE, limits=limits).counts[1] > 0


def test_segments_that_overlap_are_refused() -> None:
    full, first = np.ones((5, 7), bool), (0.0, 0.0, 1.0)
    assert (
        code_of(add_frames(header("BINARY", 1, [1, 2]), [(full, 1, first), (full, 2, first)])) == "overlapping_segments"
    )
    assert code_of(add_frames(header("BINARY", 1, [1]), [(full, 1, first), (full, 1, first)])) == "overlapping_segments"


@pytest.mark.parametrize(
    "first", [(0.0, 0.0, 0.5), (0.0, 0.0, 0.002), (0.01, 0.0, 0.0), (0.0, 0.0, 4.0), (0.0, 0.0, -1.0), (1.0, 0.0, 0.0)]
)
def test_frames_beside_the_voxels_of_the_image_are_refused(first: tuple[float, float, float]) -> None:
    data = add_frames(header("BINARY", 1, [1]), [(np.ones((5, 7), bool), 1, first)])
    assert code_of(data) == "affine_mismatch"


def test_a_deviation_of_a_thousandth_of_a_voxel_is_let_pass() -> None:
    data = add_frames(header("BINARY", 1, [1]), [(np.ones((5, 7), bool), 1, (0.0, 0.0005, 1.0008))])
    assert labels.load(content(data), IMAGE).counts == {0: 105, 1: 35}


def set_plane(orientation: list[float] | None = None, spacing: list[float] | None = None) -> Callable[[Dataset], None]:
    def edit(data: Dataset) -> None:
        shared = data.SharedFunctionalGroupsSequence[0]
        if orientation:
            shared.PlaneOrientationSequence[0].ImageOrientationPatient = orientation
        if spacing:
            shared.PixelMeasuresSequence[0].PixelSpacing = spacing

    return edit


def put(name: str, value: object) -> Callable[[Dataset], None]:
    return lambda data: setattr(data, name, value)


def remove(name: str) -> Callable[[Dataset], None]:
    return lambda data: delattr(data, name)


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (set_plane(orientation=[1, 0, 0, 0, 1, 0]), "affine_mismatch"),
        (set_plane(orientation=[*TURN[:, 0], *TURN[:, 0]]), "affine_mismatch"),
        (set_plane(spacing=[0.9, 0.71]), "affine_mismatch"),
        (set_plane(spacing=[0.0, 0.0]), "affine_mismatch"),
        (set_plane(spacing=[0.9]), "bad_header"),
        (put("SegmentationType", "VECTOR"), "bad_header"),
        (put("NumberOfFrames", 3), "bad_header"),
        (put("NumberOfFrames", 0), "bad_header"),
        (put("Rows", 0), "empty_image"),
        (put("Rows", 500), "truncated"),
        (put("Rows", 3), "trailing_data"),
        (put("PixelData", bytes(3)), "truncated"),
        (put("PixelPaddingValue", 5), "bad_header"),
        (put("SegmentSequence", []), "bad_header"),
        (put("SegmentSequence", [item(SegmentNumber=1, SegmentLabel="a")] * 2), "bad_header"),
        (put("SegmentSequence", [item(SegmentNumber=9, SegmentLabel="a")]), "bad_header"),
        (remove("SegmentSequence"), "bad_header"),
        (remove("SegmentationType"), "bad_header"),
        (remove("PerFrameFunctionalGroupsSequence"), "bad_header"),
        (remove("SharedFunctionalGroupsSequence"), "bad_header"),
        (remove("PixelData"), "no_pixel_data"),
    ],
)
def test_what_is_wrong_has_its_own_code(edit: Callable[[Dataset], None], code: str) -> None:
    data = binary()
    edit(data)
    assert code_of(data) == code


def test_packed_bits_are_read_from_little_endian_alone() -> None:
    data = pydicom.dcmread(BytesIO(content(binary())))
    for syntax in (RLELossless, ExplicitVRBigEndian):
        data.file_meta.TransferSyntaxUID = syntax
        with pytest.raises(InputError, match="unsupported_transfer_syntax"):
            seg.read(data, IMAGE, Limits())


def test_a_flat_image_takes_a_frame_of_its_shape() -> None:
    flat = Case("photo", np.zeros((3, 5, 7), np.uint8), np.eye(4))
    pixels = CLASSES[..., 0].T == 1
    data = add_frames(header("BINARY", 1, [1]), [(pixels, 1, (0.0, 0.0, 0.0))])
    np.testing.assert_array_equal(labels.load(content(data), flat).case.image, pixels[None])
    assert code_of(data, replace(flat, image=np.zeros((3, 7, 5), np.uint8))) == "shape_mismatch"
    apart = [(pixels, 1, (0.0, 0.0, 0.0)), (~pixels, 1, (0.0, 0.0, 1.0))]
    assert code_of(add_frames(header("BINARY", 1, [1]), apart), flat) == "affine_mismatch"
    assert code_of(data, replace(IMAGE, unit="px")) == "missing_affine"


@settings(max_examples=150, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_raises_nothing_but_input_errors(at: float, bit: int) -> None:
    flipped = bytearray(content(binary()))
    flipped[int(at * len(flipped))] ^= 1 << bit
    try:
        label = labels.load(bytes(flipped), IMAGE)
    except InputError:
        return
    assert label.case.image.shape == (1, *SHAPE)


def ct_slice(k: int, uid: str) -> Dataset:
    """What highdicom wants to know of an image that it segments."""
    blank = ("PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber", "StudyID")
    data = item(**dict.fromkeys((*blank, "ReferringPhysicianName", "PositionReferenceIndicator", "Manufacturer"), ""))
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(data, name, uid)
    data.SOPClassUID, data.SOPInstanceUID, data.PatientID, data.Modality = CT_STORAGE, generate_uid(), "p", "CT"
    data.Rows, data.Columns, data.SeriesNumber, data.InstanceNumber = SHAPE[1], SHAPE[0], 1, k + 1
    data.PixelSpacing, data.SliceThickness = [SPACING[1], SPACING[0]], 9.0
    data.ImageOrientationPatient = np.round([*TURN[:, 0], *TURN[:, 1]], 12).tolist()
    data.ImagePositionPatient = np.round(position((0.0, 0.0, float(k))), 9).tolist()
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.file_meta = FileMetaDataset(item(TransferSyntaxUID=ExplicitVRLittleEndian))
    return data


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_what_highdicom_writes_is_read(kind: str) -> None:
    """A writer of another hand, given the slices in falling order."""
    from highdicom import seg as writer
    from pydicom.sr.codedict import codes

    uid = generate_uid()
    slices = [ct_slice(k, uid) for k in reversed(range(SHAPE[2]))]
    pixels = CLASSES.transpose(2, 1, 0)[::-1]
    if kind == "FRACTIONAL":
        pixels = np.stack([pixels == 1, pixels == 2], axis=-1) * 0.7
    organs = [
        writer.SegmentDescription(number, f"organ {number}", codes.SCT.Organ, codes.SCT.Liver, "MANUAL")
        for number in (1, 2)
    ]
    data = writer.Segmentation(slices, pixels, kind, organs, uid, 1, generate_uid(), 1, "maker", "model", "1", "1")
    label = labels.load(content(data), IMAGE)
    np.testing.assert_array_equal(label.case.image[0], CLASSES)
    assert label.names == {1: "organ 1", 2: "organ 2"}


def test_the_segmentation_lies_on_its_ct(shared_data: Path) -> None:
    folder = shared_data / "dicom" / "ct_3slice_with_seg"
    slices = [pydicom.dcmread(file) for file in (folder / "ct").iterdir()]
    slices.sort(key=lambda data: float(data.ImagePositionPatient[2]))
    first = np.array(slices[0].ImagePositionPatient, float)
    step = (np.array(slices[-1].ImagePositionPatient, float) - first) / 2
    row_mm, column_mm = map(float, slices[0].PixelSpacing)
    across, down = np.array(slices[0].ImageOrientationPatient, float).reshape(2, 3)
    affine = np.eye(4)
    affine[:3] = np.column_stack([across * column_mm, down * row_mm, step, first])
    pixels = np.stack([data.pixel_array.T for data in slices], -1)[None]
    image = Case("ct", pixels, LPS_TO_RAS @ affine, unit="mm")
    label = labels.load(folder / "liver.dcm", image)
    assert label.names == {1: "Liver"}
    other = nrrd.read((folder / "liver_seg.nrrd").read_bytes(), "liver", Limits())
    np.testing.assert_array_equal(label.case.image != 0, other.image != 0)
    assert label.counts == {0: 679334, 1: 107098}
