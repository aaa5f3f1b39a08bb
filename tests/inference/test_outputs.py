"""The files of an answer: on exactly the grid of the image, in the format of its kind, of everything that was found."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from prediction_phantom import CLASSES, segmenter
from series_phantom import noise, series

from medray.imaging import labels
from medray.imaging.reader import read
from medray.imaging.writer import write_nifti, write_png
from medray.inference import outputs
from medray.inference.about import Facts
from medray.inference.ensemble import Ensemble
from medray.inference.outputs import Wanted, dicom_text
from medray.types import Array, Case, Prediction, SeriesRef

FACTS = Facts("liver \\ v1", "ab" * 32, "segmentation", True, 3, 1, CLASSES, CLASSES[1:], CLASSES)
REGIONS = Facts(
    "regions", "cd" * 32, "segmentation", True, 2, 1, CLASSES, ("whole/ä", "whole/ö"), ("whole/ä", "whole/ö")
)


def answer(mask: Array, probabilities: Array | None = None) -> Prediction:
    return Prediction("x", CLASSES, np.zeros(0), ("organ",), mask=mask, probabilities=probabilities)


def random_mask(shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8)


def probabilities_of(mask: Array) -> Array:
    return np.stack([mask == value for value in range(3)]).astype(np.float32) * np.float32(0.7)


def test_a_nifti_mask_has_the_place_of_its_file_bit_for_bit(tmp_path: Path) -> None:
    affine = np.array([[-0.7, 0.1, 0, 12.3], [0.1, 0.9, 0, -30.1], [0, 0, 2.5, 7], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(noise(5, 6, 7), affine)
    near = np.diag([-0.7, 0.9, 2.5, 1.0])
    near[:3, 3] = affine[:3, 3]
    image.set_qform(near, code=1)
    image.set_sform(affine, code=4)
    source = tmp_path / "scan.nii.gz"
    nibabel.save(image, source)
    raw = read(source)
    mask = random_mask(raw.image.shape[1:])
    (folder := tmp_path / "out").mkdir()
    files = outputs.write(folder, raw, source, answer(mask, probabilities_of(mask)), FACTS, Wanted())
    assert set(files) == {"mask.nii.gz", "overlay.png", "probabilities.nii.gz"}
    assert all((folder / name).stat().st_size == size for name, size in files.items())
    for name in ("mask.nii.gz", "probabilities.nii.gz"):
        made, original = nibabel.load(folder / name), nibabel.load(source)
        for field in ("qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_x"):
            assert made.header[field].tobytes() == original.header[field].tobytes(), field
        assert made.shape[:3] == original.shape
    np.testing.assert_array_equal(np.asarray(nibabel.load(folder / "mask.nii.gz").dataobj), mask)


def test_a_series_gets_a_seg_that_reads_back(tmp_path: Path) -> None:
    placed = {"FrameOfReferenceUID": "1.2.9", "SliceThickness": 3.0, "Modality": "CT"}
    for number, content in enumerate(series(noise(4), RescaleSlope="1", RescaleIntercept="0", **placed)):
        (tmp_path / f"{number}").write_bytes(content)
    source = SeriesRef(tuple(sorted(tmp_path.iterdir())))
    raw = read(source)
    mask = random_mask(raw.image.shape[1:])
    (folder := tmp_path / "out").mkdir()
    files = outputs.write(folder, raw, source, answer(mask, probabilities_of(mask)), FACTS, Wanted(overlay=False))
    assert set(files) == {"seg.dcm", *(f"probabilities-{n}-{name}.nii.gz" for n, name in enumerate(CLASSES, 1))}
    found = labels.load(folder / "seg.dcm", raw)
    np.testing.assert_array_equal(found.case.image[0], mask)
    assert list(found.names.values()) == ["organ", "lesion"]
    said = pydicom.dcmread(folder / "seg.dcm")
    assert (said.PatientID, said.ManufacturerModelName) == ("P1", "liver   v1")
    share = read(folder / "probabilities-2-organ.nii.gz")
    np.testing.assert_allclose(share.affine, raw.affine, atol=1e-5)
    np.testing.assert_array_equal(share.image[0], probabilities_of(mask)[1])


def test_regions_of_a_picture_are_a_mask_each(tmp_path: Path) -> None:
    write_png(source := tmp_path / "x.png", np.random.default_rng(0).integers(0, 255, (9, 8)).astype(np.uint8))
    raw = read(source)
    mask = np.random.default_rng(1).random((2, 9, 8)) > 0.5
    (folder := tmp_path / "out").mkdir()
    files = outputs.write(folder, raw, source, answer(mask), REGIONS, Wanted())
    assert set(files) == {"mask-1-whole_.png", "mask-2-whole_.png", "overlay.png"}
    np.testing.assert_array_equal(read(folder / "mask-2-whole_.png").image[0], mask[1])


@pytest.mark.parametrize("regions", [False, True])
def test_an_array_gets_nifti_with_the_affine_of_the_case(tmp_path: Path, regions: bool) -> None:
    np.save(source := tmp_path / "x.npy", noise(5, 6, 7))
    raw = read(source)
    mask = random_mask(raw.image.shape[1:]) > 0 if regions else random_mask(raw.image.shape[1:])
    (folder := tmp_path / "out").mkdir()
    given = np.stack([mask, ~mask]) if regions else mask
    files = outputs.write(folder, raw, source, answer(given), REGIONS if regions else FACTS, Wanted(overlay=False))
    assert set(files) == ({"mask-1-whole_.nii.gz", "mask-2-whole_.nii.gz"} if regions else {"mask.nii.gz"})
    found = nibabel.load(folder / min(files))
    np.testing.assert_array_equal(np.asarray(found.dataobj), mask)
    np.testing.assert_allclose(found.affine, raw.affine)


def test_a_models_own_answer_for_a_volume(tmp_path: Path) -> None:
    """What a network says, turned axes and all, is written where the file has its voxels."""
    affine = np.array([[0, -1.0, 0, 5], [-1.0, 0, 0, 6], [0, 0, 2.0, 7], [0, 0, 0, 1]])
    write_nifti(source := tmp_path / "x.nii", noise(12, 10, 9), affine)
    model = Ensemble.load([segmenter(tmp_path / "bundle", 3).folder])
    raw = read(source)
    said = model.predict(raw)
    (folder := tmp_path / "out").mkdir()
    outputs.write(folder, raw, source, said, model.facts, Wanted())
    found = read(folder / "mask.nii.gz")
    assert set(np.unique(found.image)) == {0, 1, 2}
    np.testing.assert_array_equal(found.image[0], said.mask)
    np.testing.assert_array_equal(found.affine, raw.affine)


def test_what_has_no_mask_has_no_files(tmp_path: Path) -> None:
    said = Prediction("x", ("a", "b"), np.array([0.4, 0.6]), ("b",))
    case = Case("x", np.zeros((1, 4, 4), np.uint8), np.eye(4))
    assert outputs.write(tmp_path, case, tmp_path / "nothing", said, FACTS, Wanted()) == {}


@pytest.mark.parametrize("text", ["", "\\", "a\nb", "x" * 200, " é\t", "a\\b"])
def test_any_name_becomes_one_that_dicom_can_hold(text: str) -> None:
    found = dicom_text(text)
    assert found == found.strip()
    assert found.isprintable()
    assert "\\" not in found
    assert 1 <= len(found) <= 64
