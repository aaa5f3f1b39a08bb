import logging
import warnings
import zipfile
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from series_phantom import MR, content, dataset, item, noise, series

from medray.imaging import labels, reader
from medray.imaging.dicom.segwrite import Segment, write_seg
from medray.imaging.overlay import colour_of
from medray.types import InputError, SeriesRef

PLACED = {"FrameOfReferenceUID": "1.2.9", "SliceThickness": 3.0}
TURN = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
OBLIQUE = np.round(np.concatenate([TURN[:, 0], TURN[:, 1]]), 10)
NORMAL = np.cross(OBLIQUE[:3], OBLIQUE[3:])
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
SEGMENTS = (Segment(1, "organ"), Segment(2, "lésion 腫瘍", (255, 0, 0)))


def write(target: Path, mask: np.ndarray, source: SeriesRef | Path | bytes, **options: object) -> pydicom.FileDataset:
    segments = options.pop("segments", SEGMENTS)
    write_seg(target, mask, segments, source, model="liver-unet v2", version="3", **options)  # type: ignore[arg-type]
    return pydicom.dcmread(target)


def saved(folder: Path, files: Sequence[bytes]) -> Path:
    folder.mkdir()
    for number, file in enumerate(files):
        (folder / f"{number:03}.dcm").write_bytes(file)
    return folder


def mask_of(source: SeriesRef | Path | bytes, values: int = 3) -> np.ndarray:
    """Noise on the grid of a source, with empty slices at both ends."""
    mask = np.random.default_rng(0).integers(0, values, reader.read(source).image.shape[1:]).astype(np.uint8)
    if mask.ndim == 3:
        mask[..., [0, -1]] = 0
    return mask


def back(target: Path, source: SeriesRef | Path | bytes) -> labels.LabelMap:
    return labels.load(target, reader.read(source))


def frames_of(files: Sequence[bytes]) -> dict[str, Dataset]:
    return {data.SOPInstanceUID: data for data in (pydicom.dcmread(BytesIO(file)) for file in files)}


def enhanced(depths: Sequence[float], times: Sequence[int], **elements: object) -> bytes:
    """Frames of one file at `depths` mm, in any order, of several volumes; the orientation is told frame by frame."""
    data = dataset(
        noise(len(depths)),
        sop_class=ENHANCED_MR,
        ImagePositionPatient=None,
        ImageOrientationPatient=None,
        PixelSpacing=None,
        **PLACED,
        **elements,
    )
    data.SharedFunctionalGroupsSequence = [
        item(PixelMeasuresSequence=[item(PixelSpacing=[0.8, 0.7], SliceThickness=3)])
    ]
    data.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[1, 2, depth])],
            PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
            FrameContentSequence=[item(TemporalPositionIndex=time)],
        )
        for depth, time in zip(depths, times, strict=True)
    ]
    return content(data)


SERIES: dict[str, Callable[[], list[bytes]]] = {
    "axial": lambda: series(noise(6), **PLACED),
    "falling": lambda: series(noise(6), step=(0, 0, -2.5), **PLACED),
    "shuffled": lambda: [series(noise(6), **PLACED)[k] for k in (3, 0, 5, 1, 4, 2)],
    "oblique": lambda: series(noise(6), step=NORMAL * 2.5, ImageOrientationPatient=OBLIQUE.tolist(), **PLACED),
    "sagittal": lambda: series(noise(6), step=(2.5, 0, 0), ImageOrientationPatient=[0, 1, 0, 0, 0, -1], **PLACED),
    "copied": lambda: [*series(noise(6), **PLACED), series(noise(6), **PLACED)[2]],
    "enhanced": lambda: [enhanced([6, 0, 3, 9], [1, 1, 1, 1])],
}


@pytest.mark.parametrize("labelmap", [False, True])
@pytest.mark.parametrize("name", SERIES)
def test_every_voxel_comes_back_on_the_image(tmp_path: Path, name: str, labelmap: bool) -> None:
    folder = saved(tmp_path / "series", SERIES[name]())
    mask = mask_of(folder)
    write(tmp_path / "seg.dcm", mask, folder, labelmap=labelmap)
    label = back(tmp_path / "seg.dcm", folder)
    np.testing.assert_array_equal(label.case.image[0], mask)
    assert label.names == {1: "organ", 2: "lésion 腫瘍"}
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["seg.dcm"]


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), reverse=st.booleans(), omit=st.booleans())
def test_any_orientation_comes_back(
    tmp_path_factory: pytest.TempPathFactory, seed: int, reverse: bool, omit: bool
) -> None:
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    orientation = np.round(np.concatenate([turn[:, 0], turn[:, 1]]), 10)
    step = np.cross(orientation[:3], orientation[3:]) * (-1.7 if reverse else 1.7)
    folder = tmp_path_factory.mktemp("any")
    files = series(noise(5), step=step, ImageOrientationPatient=orientation.tolist(), **PLACED)
    source = saved(folder / "series", files)
    mask = mask_of(source)
    data = write(folder / "seg.dcm", mask, source, omit_empty_frames=omit)
    np.testing.assert_array_equal(back(folder / "seg.dcm", source).case.image[0], mask)
    assert data.NumberOfFrames == 2 * (3 if omit else 5)


@pytest.mark.parametrize("name", ["axial", "falling", "shuffled", "oblique"])
def test_each_frame_refers_to_the_slice_that_it_lies_on(tmp_path: Path, name: str) -> None:
    files = SERIES[name]()
    folder, instances = saved(tmp_path / "series", files), frames_of(files)
    data = write(tmp_path / "seg.dcm", mask_of(folder), folder)
    assert data.NumberOfFrames == 2 * 6
    for frame in data.PerFrameFunctionalGroupsSequence:
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        where = instances[source.ReferencedSOPInstanceUID].ImagePositionPatient
        np.testing.assert_allclose(frame.PlanePositionSequence[0].ImagePositionPatient, where, atol=1e-6)
        assert (source.ReferencedSOPClassUID, source.SpatialLocationsPreserved) == (MR, "YES")
        assert "ReferencedFrameNumber" not in source
    (referred,) = data.ReferencedSeriesSequence
    assert referred.SeriesInstanceUID == "1.2.2"
    named = [(one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID) for one in referred.ReferencedInstanceSequence]
    assert sorted(named) == [(MR, uid) for uid in sorted(instances)]
    assert [one.ReferencedSOPInstanceUID for one in data.SourceImageSequence] == [uid for _, uid in named]


@pytest.mark.parametrize("time", [0, 1])
def test_a_volume_of_an_enhanced_image_refers_to_its_frames(tmp_path: Path, time: int) -> None:
    depths, times = [6, 0, 3, 0, 3, 6], [2, 2, 1, 1, 2, 1]
    (tmp_path / "image.dcm").write_bytes(enhanced(depths, times))
    source = SeriesRef((tmp_path / "image.dcm",), time)
    mask = mask_of(source)
    data = write(tmp_path / "seg.dcm", mask, source)
    np.testing.assert_array_equal(back(tmp_path / "seg.dcm", source).case.image[0], mask)
    for frame in data.PerFrameFunctionalGroupsSequence:
        (item_,) = frame.DerivationImageSequence[0].SourceImageSequence
        place = item_.ReferencedFrameNumber - 1
        assert times[place] == time + 1
        assert depths[place] == frame.PlanePositionSequence[0].ImagePositionPatient[2]
        assert item_.ReferencedSOPClassUID == ENHANCED_MR
    (instance,) = data.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert instance.ReferencedSOPInstanceUID == "1.2.3"


def test_it_says_whose_it_is_what_made_it_and_how_to_show_it(tmp_path: Path) -> None:
    from highdicom import seg
    from highdicom.color import CIELabColor

    told = {"PatientName": "Müller^Jörg", "SpecificCharacterSet": "ISO_IR 100", "PatientBirthDate": "19500101"}
    told |= {"StudyDate": "20200102", "StudyTime": "101112.5", "SeriesNumber": 4, "StudyDescription": "Bäuche"}
    folder = saved(tmp_path / "series", series(noise(4), PatientSex="F", AccessionNumber="A1", **PLACED, **told))
    write(tmp_path / "seg.dcm", mask_of(folder), folder)
    data = seg.segread(tmp_path / "seg.dcm")
    assert (data.PatientID, str(data.PatientName), data.PatientSex) == ("P1", "Müller^Jörg", "F")
    assert (data.PatientBirthDate, data.StudyDate, data.StudyTime) == ("19500101", "20200102", "101112.5")
    assert (data.AccessionNumber, data.StudyDescription) == ("A1", "Bäuche")
    assert (data.StudyInstanceUID, data.FrameOfReferenceUID) == ("1.2.1", "1.2.9")
    assert data.SeriesInstanceUID not in ("1.2.1", "1.2.2", "1.2.3")
    assert (data.Modality, data.SegmentationType, data.SegmentsOverlap) == ("SEG", "BINARY", "NO")
    assert (data.SeriesDescription, data.ContentLabel) == ("medray: liver-unet v2", "LIVER_UNET_V2")
    assert (data.Manufacturer, data.SeriesNumber) == ("medray", 1004)
    assert [index.DimensionIndexPointer for index in data.DimensionIndexSequence] == [0x0062000B, 0x00200032]
    measures = data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert (measures.SliceThickness, measures.SpacingBetweenSlices) == (3, 2.5)
    assert list(measures.PixelSpacing) == [0.8, 0.7]
    for number, segment, colour in ((1, SEGMENTS[0], colour_of(1)), (2, SEGMENTS[1], (255, 0, 0))):
        described = data.get_segment_description(number)
        assert described.segment_label == segment.name
        algorithm = described.algorithm_identification[0]
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("liver-unet v2", "3")
        assert described.segmented_property_type.meaning == "Tissue"
        lab = CIELabColor.from_dicom_value(described.RecommendedDisplayCIELabValue)
        np.testing.assert_allclose(lab.to_rgb(), colour, atol=1)


def test_what_a_source_tells_wrongly_is_left_out_and_never_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd = {"PatientName": "Jane Doe", "PatientSex": "female", "PatientBirthDate": "unknown", "StudyTime": "noon"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = saved(tmp_path / "series", series(noise(4), **PLACED, **odd))
    with caplog.at_level(logging.DEBUG):
        data = write(tmp_path / "seg.dcm", mask_of(folder), folder)
    assert (data.PatientName, data.PatientSex, data.PatientBirthDate, data.StudyTime) == ("Jane Doe", "", "", "")
    assert "Doe" not in caplog.text


def test_bytes_and_archives_are_sources(tmp_path: Path) -> None:
    files = series(noise(4), **PLACED)
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number, file in enumerate(files):
            archive.writestr(f"series/{number}.dcm", file)
        archive.writestr("readme.txt", "no image")
    mask = mask_of(packed.getvalue())
    (tmp_path / "upload.zip").write_bytes(packed.getvalue())
    for source in (packed.getvalue(), tmp_path / "upload.zip"):
        write(tmp_path / "seg.dcm", mask, source)
        np.testing.assert_array_equal(back(tmp_path / "seg.dcm", source).case.image[0], mask)
    write(tmp_path / "seg.dcm", mask_of(single := enhanced([0, 3, 6], [1, 1, 1])), single)
    np.testing.assert_array_equal(back(tmp_path / "seg.dcm", single).case.image[0], mask_of(single))


@pytest.mark.parametrize(
    "elements", [{"FrameOfReferenceUID": "1.2.9"}, {"ImagePositionPatient": None, "Modality": "DX"}]
)
def test_one_image_takes_a_mask_of_rows_and_columns(tmp_path: Path, elements: dict[str, object]) -> None:
    data = dataset(noise(1)[0], **elements)
    (tmp_path / "image.dcm").write_bytes(content(data))
    mask = mask_of(tmp_path / "image.dcm")
    assert mask.shape == (6, 5)
    written = write(tmp_path / "seg.dcm", mask, tmp_path / "image.dcm")
    np.testing.assert_array_equal(back(tmp_path / "seg.dcm", tmp_path / "image.dcm").case.image[0], mask)
    assert list(written.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing) == [0.8, 0.7]


def test_values_get_numbers_in_their_order_or_stay_in_a_label_map(tmp_path: Path) -> None:
    folder = saved(tmp_path / "series", series(noise(4), **PLACED))
    mask = np.array([0, 3, 300], np.int64)[mask_of(folder)]
    segments = (Segment(300, "large"), Segment(3, "small"), Segment(7, "absent"))
    write(tmp_path / "seg.dcm", mask, folder, segments=segments)
    label = back(tmp_path / "seg.dcm", folder)
    assert label.names == {1: "small", 2: "absent", 3: "large"}
    named = labels.by_name(label, {segment.name: segment.value for segment in segments})
    np.testing.assert_array_equal(named.case.image[0], mask)
    write(tmp_path / "seg.dcm", mask, folder, segments=segments, labelmap=True)
    label = back(tmp_path / "seg.dcm", folder)
    assert label.names == {3: "small", 7: "absent", 300: "large"}
    np.testing.assert_array_equal(label.case.image[0], mask)


def test_regions_may_overlap(tmp_path: Path) -> None:
    from highdicom import seg

    folder = saved(tmp_path / "series", series(noise(4), **PLACED))
    mask = mask_of(folder)
    regions = np.stack([mask > 0, mask == 2])
    data = write(tmp_path / "seg.dcm", regions, folder)
    assert data.SegmentsOverlap == "YES"
    found = seg.segread(tmp_path / "seg.dcm").get_volume().array
    np.testing.assert_array_equal(np.sort(found.sum(axis=(1, 2)), axis=0), np.sort(regions.sum(axis=(1, 2)).T, axis=0))
    flat = tmp_path / "flat.dcm"
    flat.write_bytes(content(dataset(noise(1)[0], **PLACED)))
    data = write(tmp_path / "seg.dcm", regions[..., 1].transpose(0, 2, 1), flat)
    np.testing.assert_array_equal(data.pixel_array, regions[..., 1].transpose(0, 2, 1))


def test_a_mask_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "series", series(noise(4), **PLACED))
    mask, target = mask_of(folder), tmp_path / "seg.dcm"
    for wrong, match in (
        (mask[1:], r"the mask is \(4, 6, 4\), its source \(5, 6, 4\)"),
        (mask + 1, r"the mask holds \[3\], and its segments are \[1, 2\]"),
        (mask * 0.5, "a mask holds whole numbers"),
        (np.stack([mask] * 2), r"regions \(R, \*S\) bool"),
        (np.stack([mask > 0] * 3), r"3 regions"),
    ):
        with pytest.raises(ValueError, match=match):
            write(target, wrong, folder)
    with pytest.raises(ValueError, match="a model's version"):
        write_seg(target, mask, SEGMENTS, folder, model="m", version="")
    with pytest.raises(ValueError, match="different values"):
        write(target, mask, folder, segments=(SEGMENTS[0], SEGMENTS[0]))
    assert not target.exists()


def test_a_volume_without_frame_of_reference_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "series", series(noise(4)))
    with pytest.raises(InputError, match="FrameOfReferenceUID") as caught:
        write(tmp_path / "seg.dcm", mask_of(folder), folder)
    assert caught.value.code == "missing_geometry"


@pytest.mark.parametrize(("value", "name"), [(0, "a"), (70_000, "a"), (1, ""), (1, "a\\b"), (1, "a\n"), (1, "a" * 65)])
def test_a_segment_that_dicom_cannot_hold_is_refused(value: int, name: str) -> None:
    with pytest.raises(ValueError, match="a segment's"):
        Segment(value, name)


@pytest.mark.parametrize(
    ("name", "time"),
    [
        ("ct_3slice_with_seg/ct", None),
        ("t1_oblique_40", None),
        ("hippocrop_13", None),
        ("enhanced_philips", 1),
        pytest.param("ge_fmri_4d", 3, marks=pytest.mark.slow),
        ("siemens_mosaic", 0),
    ],
)
def test_real_images_take_a_segmentation(tmp_path: Path, shared_data: Path, name: str, time: int | None) -> None:
    files = tuple(sorted(path for path in (shared_data / "dicom" / name).rglob("*.dcm")))
    source = SeriesRef(files[:1] if name == "siemens_mosaic" else files, time)
    mask = mask_of(source)
    write(tmp_path / "seg.dcm", mask, source)
    np.testing.assert_array_equal(back(tmp_path / "seg.dcm", source).case.image[0], mask)
