"""Real series beside the checkout: what their makers wrote is what is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from medray.imaging.dicom.series import find, list_folder, read_folder
from medray.types import InputError

FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture
def folder(shared_data: Path) -> Path:
    return shared_data / "dicom"


def headers(folder: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in list_folder(folder)[0]]


def test_steps_come_from_positions_where_thickness_says_otherwise(folder: Path) -> None:
    case = read_folder(folder / "ct_3slice_with_seg" / "ct")
    assert case.image.shape == (1, 512, 512, 3)
    assert case.spacing == pytest.approx((0.810547, 0.810547, 1.0), abs=1e-9)
    assert case.modality == "CT"


@pytest.mark.parametrize("name", ["t1_oblique_40", "hippocrop_13", "ct_3slice_with_seg/ct"])
def test_every_position_and_pixel_is_where_its_file_says(folder: Path, name: str) -> None:
    case = read_folder(folder / name)
    lps = FLIP @ case.affine
    files = sorted(headers(folder / name), key=lambda data: np.linalg.solve(lps, [*data.ImagePositionPatient, 1])[2])
    assert len(files) == case.image.shape[3]
    for k, data in enumerate(files):
        np.testing.assert_allclose((lps @ [0, 0, k, 1])[:3], data.ImagePositionPatient, atol=1e-6)
        row, column = np.reshape(np.array(data.ImageOrientationPatient, float), (2, 3))
        far = np.array(data.ImagePositionPatient) + 7 * row * data.PixelSpacing[1] + 9 * column * data.PixelSpacing[0]
        np.testing.assert_allclose((lps @ [7, 9, k, 1])[:3], far, atol=1e-5)
        values = data.pixel_array * float(data.get("RescaleSlope", 1)) + float(data.get("RescaleIntercept", 0))
        np.testing.assert_array_equal(case.image[0, :, :, k], values.T)
    assert np.linalg.det(lps[:3, :3]) > 0


def test_fmri_is_ten_volumes_of_fifteen_slices(folder: Path) -> None:
    fmri = folder / "ge_fmri_4d"
    with pytest.raises(InputError, match="10 volumes") as caught:
        read_folder(fmri)
    assert caught.value.code == "time_series"
    info = next(iter(find(fmri.iterdir())))
    assert (info.times, len(info.files)) == (10, 150)
    files = headers(fmri)
    for time in (0, 7):
        case = read_folder(fmri, time=time)
        assert case.image.shape == (1, 64, 64, 15)
        assert case.spacing == pytest.approx((3.75, 3.75, 5.0), abs=1e-4)
        group = sorted(
            (data for data in files if (data.InstanceNumber - 1) // 15 == time), key=lambda d: d.SliceLocation
        )
        np.testing.assert_array_equal(case.image[0].transpose(2, 1, 0), [data.pixel_array for data in group])


def test_an_enhanced_field_map_is_two_volumes(folder: Path) -> None:
    with pytest.raises(InputError, match="2 volumes"):
        read_folder(folder / "enhanced_philips")
    case = read_folder(folder / "enhanced_philips", time=1)
    assert case.image.shape == (1, 64, 64, 32)
    assert case.spacing == pytest.approx((4, 4, 4), abs=1e-6)
    data = headers(folder / "enhanced_philips")[0]
    for k in (0, 31):
        frame = next(
            frame
            for frame in data.PerFrameFunctionalGroupsSequence
            if frame.FrameContentSequence[0].InStackPositionNumber == k + 1
        )
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose((FLIP @ case.affine @ [0, 0, k, 1])[:3], position, atol=1e-6)


def test_a_seg_says_which_series_it_belongs_to(folder: Path) -> None:
    found = {info.modality: info for info in find(path for path in (folder / "ct_3slice_with_seg").rglob("*.dcm"))}
    assert found["SEG"].refers_to == found["CT"].uid
    assert read_folder(folder / "ct_3slice_with_seg").image.shape[-1] == 3
