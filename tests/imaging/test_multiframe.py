"""Files with many slices: enhanced multi-frame images and Siemens mosaics, by the same geometry as plain series."""

from __future__ import annotations

import struct
import warnings
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import FileDataset
from series_phantom import content, dataset, item, noise

from medray.imaging.dicom.series import read
from medray.imaging.limits import DEFAULT_LIMITS, Limits
from medray.types import InputError

ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"


def refused(data: FileDataset, time: int | None = None, limits: Limits = DEFAULT_LIMITS) -> str:
    with pytest.raises(InputError) as caught:
        read([content(data)], limits, time)
    return caught.value.code


def enhanced(frames: np.ndarray, depths: list[float], **groups: list[Any]) -> FileDataset:
    """Frames at `depths` mm along z; `groups`: SequenceName__Keyword -> a value per frame."""
    data = dataset(
        frames,
        sop_class=ENHANCED_MR,
        ImagePositionPatient=None,
        ImageOrientationPatient=None,
        PixelSpacing=None,
        SharedFunctionalGroupsSequence=[
            item(
                PixelMeasuresSequence=[item(PixelSpacing=[0.8, 0.7], SliceThickness=99)],
                PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
            )
        ],
    )
    per_frame = [item(PlanePositionSequence=[item(ImagePositionPatient=[1, 2, depth])]) for depth in depths]
    for name, values in groups.items():
        sequence, keyword = name.split("__")
        for frame, value in zip(per_frame, values, strict=True):
            setattr(frame, sequence, [item(**{keyword: value})])
    data.PerFrameFunctionalGroupsSequence = per_frame
    return data


def test_an_enhanced_image_is_ordered_by_the_positions_of_its_frames() -> None:
    frames = noise(4)
    case = read([content(enhanced(frames, [6.0, 0.0, 2.0, 4.0]))])
    np.testing.assert_array_equal(case.image[0], frames[[1, 2, 3, 0]].transpose(2, 1, 0))
    expected = [[-0.7, 0, 0, -1], [0, -0.8, 0, -2], [0, 0, 2, 0], [0, 0, 0, 1]]
    np.testing.assert_allclose(case.affine, expected, atol=1e-12)


def test_each_frame_has_its_own_rescale() -> None:
    frames = noise(3)
    data = enhanced(frames, [0, 1, 2])
    for k, frame in enumerate(data.PerFrameFunctionalGroupsSequence):
        frame.PixelValueTransformationSequence = [item(RescaleSlope=k + 0.5, RescaleIntercept=k, RescaleType="US")]
    case = read([content(data)])
    expected = frames * np.array([0.5, 1.5, 2.5])[:, None, None] + np.arange(3)[:, None, None]
    np.testing.assert_allclose(case.image[0], expected.transpose(2, 1, 0))


@pytest.mark.parametrize(
    "group",
    [
        {"FrameContentSequence__TemporalPositionIndex": [1, 1, 2, 2]},
        {"FrameContentSequence__FrameAcquisitionNumber": [3, 3, 7, 7]},
        {
            "FrameContentSequence__FrameAcquisitionDateTime": [
                "20200101235959",
                "20200101235958",
                "20200102",
                "20200102",
            ]
        },
        {"MREchoSequence__EffectiveEchoTime": [1.5, 1.5, 3.0, 3.0]},
        {"MRDiffusionSequence__DiffusionBValue": [0.0, 0.0, 800.0, 800.0]},
        {"CardiacSynchronizationSequence__NominalCardiacTriggerDelayTime": [0.0, 1.0, 50.0, 51.0]},
    ],
    ids=lambda group: next(iter(group)),
)
def test_the_volumes_of_an_enhanced_image_are_told_apart(group: dict[str, list[Any]]) -> None:
    frames = noise(4)
    data = enhanced(frames, [0, 3, 0, 3], **group)
    assert refused(data) == "time_series"
    np.testing.assert_array_equal(read([content(data)], time=1).image[0], frames[2:].transpose(2, 1, 0))


def test_dimensions_that_are_no_places_tell_volumes_apart() -> None:
    frames = noise(4)
    index = [[1, 1, 2], [1, 2, 2], [1, 1, 1], [1, 2, 1]]
    data = enhanced(frames, [0, 3, 0, 3], FrameContentSequence__DimensionIndexValues=index)
    pointers = (0x00209056, 0x00209057, 0x00189087)
    data.DimensionIndexSequence = [item(DimensionIndexPointer=pointer) for pointer in pointers]
    np.testing.assert_array_equal(read([content(data)], time=0).image[0], frames[2:].transpose(2, 1, 0))
    data.DimensionIndexSequence = data.DimensionIndexSequence[:2]
    assert refused(data) == "duplicate_slices"


def test_each_file_may_be_a_volume() -> None:
    volumes = [noise(3, seed=seed) for seed in range(3)]
    files = []
    for number, volume in enumerate(volumes):
        data = enhanced(volume, [0, 2, 4])
        data.InstanceNumber, data.SOPInstanceUID = number + 1, f"1.2.{number}"
        files.append(content(data))
    for time, volume in enumerate(volumes):
        np.testing.assert_array_equal(read(files[::-1], time=time).image[0], volume.transpose(2, 1, 0))


def test_faults_of_a_series_are_faults_of_frames() -> None:
    frames = noise(5)
    assert refused(enhanced(frames, [0, 1, 2, 4, 5])) == "missing_slices"
    assert refused(enhanced(frames, [0, 1, 2, 3.4, 5])) == "non_uniform_spacing"
    assert refused(enhanced(frames, [0, 1, 2, 2, 3])) == "duplicate_slices"
    data = enhanced(frames, [0, 1, 2, 3, 4])
    data.PerFrameFunctionalGroupsSequence[2].PlaneOrientationSequence = [
        item(ImageOrientationPatient=[0, 1, 0, 0, 0, 1])
    ]
    assert refused(data) == "mixed_orientation"
    del data.PerFrameFunctionalGroupsSequence[4]
    assert refused(data) == "bad_header"
    data = enhanced(frames, [0, 1, 2, 3, 4])
    del data.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence
    assert refused(data) == "missing_geometry"


@pytest.mark.parametrize("count", [0, -1, 200_000, 2_000_000_000])
def test_a_count_of_frames_that_cannot_be_is_refused_at_once(count: int) -> None:
    data = dataset(noise(2), NumberOfFrames=count, Rows=1, Columns=1)
    assert refused(data) == ("bad_header" if count < 1 else "too_many_pixels")


def csa(count: int, normal: tuple[float, ...]) -> bytes:
    """Siemens' private header, version 2, with the two tags of a mosaic (layout: nibabel.org/dicom/siemens_csa)."""
    tags = [("NumberOfImagesInMosaic", "US", [str(count)]), ("SliceNormalVector", "FD", [f"{n:.8f}" for n in normal])]
    packed = b"SV10" + b"\4\3\2\1" + struct.pack("<2I", len(tags), 77)
    for name, vr, values in tags:
        packed += name.encode().ljust(64, b"\0") + struct.pack("<i4s3i", len(values), vr.encode(), 0, len(values), 77)
        for value in values:
            text = value.encode() + b"\0"
            packed += struct.pack("<4i", len(text), len(text), 77, len(text)) + text.ljust(
                -(-len(text) // 4) * 4, b"\0"
            )
    return packed


def mosaic(volume: np.ndarray, normal: tuple[float, ...] = (0.0, 0.0, 1.0), **elements: Any) -> FileDataset:
    """The slices of (slice, row, column) side by side, as many per row as needed for a square."""
    edge = int(np.ceil(np.sqrt(len(volume))))
    rows, columns = volume.shape[1:]
    picture = np.zeros((edge * rows, edge * columns), np.int16)
    for k, pixels in enumerate(volume):
        top, left = k // edge * rows, k % edge * columns
        picture[top : top + rows, left : left + columns] = pixels
    told = {"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"], "SpacingBetweenSlices": 4.0, **elements}
    data = dataset(picture, **told)
    data.private_block(0x29, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", csa(len(volume), normal))
    return data


def test_a_mosaic_is_a_volume_whose_corner_is_that_of_its_first_tile() -> None:
    volume = noise(5)
    case = read([content(mosaic(volume, ImagePositionPatient=[10, 20, 30]))])
    np.testing.assert_array_equal(case.image[0], volume.transpose(2, 1, 0))
    # The stored corner is that of a slice of three by three tiles around the same centre.
    first = np.array([10 + 0.7 * (15 - 5) / 2, 20 + 0.8 * (18 - 6) / 2, 30])
    expected = np.diag([-1.0, -1, 1, 1]) @ np.array(
        [[0.7, 0, 0, first[0]], [0, 0.8, 0, first[1]], [0, 0, 4, 30], [0, 0, 0, 1]]
    )
    np.testing.assert_allclose(case.affine, expected)


def test_a_mosaic_against_the_normal_is_turned_round() -> None:
    volume = noise(4)
    case = read([content(mosaic(volume, (0.0, 0.0, -1.0)))])
    np.testing.assert_array_equal(case.image[0], volume[::-1].transpose(2, 1, 0))
    assert case.affine[2, 3] == pytest.approx(-12)


def test_mosaics_of_one_series_are_time_points() -> None:
    volumes = [noise(4, seed=seed) for seed in range(3)]
    files = [
        content(mosaic(volume, AcquisitionNumber=seed + 1, SOPInstanceUID=f"1.2.{seed}"))
        for seed, volume in enumerate(volumes)
    ]
    for time, volume in enumerate(volumes):
        np.testing.assert_array_equal(read(files[::-1], time=time).image[0], volume.transpose(2, 1, 0))


def test_a_mosaic_without_its_private_header_is_refused() -> None:
    data = mosaic(noise(4))
    del data[0x0029, 0x1010]
    assert refused(data) == "missing_geometry"
    data = mosaic(noise(4), SpacingBetweenSlices=None)
    assert refused(data) == "missing_geometry"
    data = mosaic(noise(4))
    data[0x0029, 0x1010].value = csa(50, (0.0, 0.0, 1.0))
    assert refused(data) == "corrupt"
    data[0x0029, 0x1010].value = csa(4, (0.0, 0.0, 1.0))[:200]
    assert refused(data) == "corrupt"


def test_the_mosaic_of_nibabel_is_ours(shared_data: Any) -> None:
    file = shared_data / "dicom" / "siemens_mosaic" / "epi_pe_ap-00001.dcm"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nibabel.nicom.dicomwrappers import wrapper_from_file

        theirs = wrapper_from_file(str(file))
        affine, voxels = theirs.affine, np.asarray(theirs.get_data())
    ours = read([file])
    # Theirs is LPS+, and its first axis runs along rows, ours along columns.
    swap = np.eye(4)[[1, 0, 2, 3]]
    np.testing.assert_allclose(ours.affine, np.diag([-1.0, -1, 1, 1]) @ affine @ swap, atol=1e-9)
    np.testing.assert_array_equal(ours.image[0], voxels.transpose(1, 0, 2))
    assert ours.spacing == pytest.approx((3, 3, 12))
