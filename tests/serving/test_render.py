"""The files of an answer: what `medray predict` writes, planes as radiologists see them, nothing left on the disk."""

from __future__ import annotations

import gzip
import io
import pickle
import re
import tempfile
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from answer_phantom import CLASSES, classified, facts, kept, segmented
from series_phantom import noise, series

from medray.imaging import labels
from medray.imaging.overlay import colour_of
from medray.imaging.reader import read
from medray.imaging.writer import png_bytes, write_nifti
from medray.inference import outputs
from medray.inference.outputs import Wanted
from medray.serving import planes
from medray.serving.kept import Kept
from medray.serving.planes import slices_info
from medray.serving.render import PREVIEW, render
from medray.types import Array

TURNED = np.array([[0, 0, 1.5, 3], [-0.8, 0, 0, 5], [0, -1.0, 0, 7], [0, 0, 0, 1]])
"""Axes in the order posterior, inferior, right."""


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    (folder := tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def nifti(tmp_path: Path, image: Array, affine: Array = TURNED) -> bytes:
    write_nifti(path := tmp_path / "scan.nii.gz", image, affine)
    return path.read_bytes()


def volume(tmp_path: Path, heat: Array | None = None) -> Kept:
    source = nifti(tmp_path, noise(12, 10, 9))
    mask = np.zeros((12, 10, 9), np.uint8)
    mask[2:5, 3:6, 1:3], mask[8:11, 6:9, 5:8] = 1, 2
    return kept(source, segmented(read(source), mask), facts(), heat)


def packed_series(**elements: object) -> bytes:
    placed = {"FrameOfReferenceUID": "1.2.9", "SliceThickness": 3.0, "Modality": "CT", **elements}
    with zipfile.ZipFile(content := io.BytesIO(), "w") as archive:
        archive.writestr("export/read me.txt", "not an image")
        for number, part in enumerate(series(noise(4), RescaleSlope="1", RescaleIntercept="0", **placed)):
            archive.writestr(f"export/DOE JANE {number}.dcm", part)
    return content.getvalue()


def picture(content: bytes) -> Array:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(content)))


def test_a_mask_is_the_file_that_predict_writes(tmp_path: Path, scratch: Path) -> None:
    made = volume(tmp_path)
    (folder := tmp_path / "out").mkdir()
    outputs.write(folder, made.raw, tmp_path / "scan.nii.gz", made.answer, made.facts, Wanted(overlay=False))
    found = render(made, "mask")
    assert found.filename == "mask.nii.gz"
    assert gzip.decompress(found.content) == gzip.decompress((folder / "mask.nii.gz").read_bytes())
    assert not list(scratch.iterdir())


def test_a_zip_of_a_series_gets_a_seg_that_reads_back() -> None:
    source = packed_series()
    raw = read(source)
    mask = np.random.default_rng(0).integers(0, 3, raw.image.shape[1:]).astype(np.uint8)
    made = kept(source, segmented(raw, mask), facts())
    assert "dicom_seg" in made.available()
    found = render(made, "dicom_seg")
    assert (found.filename, found.media_type) == ("seg.dcm", "application/dicom")
    assert b"JANE" not in found.content
    again = labels.load(found.content, raw)
    np.testing.assert_array_equal(again.case.image[0], mask)
    assert tuple(again.names.values()) == CLASSES[1:]


def test_a_zip_of_one_image_is_no_dicom(tmp_path: Path) -> None:
    with zipfile.ZipFile(content := io.BytesIO(), "w") as archive:
        archive.writestr("__MACOSX/scan.nii.gz", "x")
        archive.writestr("scan.nii.gz", nifti(tmp_path, noise(5, 6, 7)))
    raw = read(content.getvalue())
    made = kept(content.getvalue(), segmented(raw, (raw.image[0] > 0).astype(np.uint8)), facts())
    assert "dicom_seg" not in made.available()
    found = nibabel.Nifti1Image.from_bytes(gzip.decompress(render(made, "mask").content))
    np.testing.assert_allclose(found.affine, TURNED)


def test_regions_of_a_picture_are_a_zip_of_masks() -> None:
    source = png_bytes(np.random.default_rng(0).integers(0, 255, (9, 8)).astype(np.uint8))
    mask = np.random.default_rng(1).random((2, 9, 8)) > 0.5
    made = kept(source, segmented(read(source), mask, ("whole", "core")), facts(2, ("whole", "core")))
    found = render(made, "mask")
    assert (found.filename, found.media_type) == ("masks.zip", "application/zip")
    assert found.content == render(made, "mask").content, "the same answer is the same bytes"
    with zipfile.ZipFile(io.BytesIO(found.content)) as archive:
        assert archive.namelist() == ["mask-1-whole.png", "mask-2-core.png"]
        np.testing.assert_array_equal(picture(archive.read("mask-2-core.png")), mask[1])


def test_planes_lie_as_radiologists_see_them(tmp_path: Path) -> None:
    made = volume(tmp_path)
    info = slices_info(made)
    assert [(axis["name"], axis["count"], axis["sides"]) for axis in info["axes"]] == [
        ("sagittal", 9, ["A", "S"]),
        ("coronal", 12, ["R", "S"]),
        ("axial", 10, ["R", "A"]),
    ]
    # Axial, through the first structure: voxels 1 and 2 to the right of the first, from 2 to 4 in the back.
    plane = picture(render(made, "slices", axis=2, index=9 - 4, layer="mask").content)
    rows, columns = info["axes"][2]["size"]
    assert plane.shape == (rows, columns, 4)
    assert columns / rows == pytest.approx(9 * 1.5 / (12 * 0.8), rel=0.1)
    # Row by the place from anterior on, column by that from the right on, in millimetres.
    row, column = round(3.5 / 12 * rows), round((9 - 2) / 9 * columns)
    assert tuple(plane[row, column]) == (*colour_of(1), 255)
    assert tuple(plane[row, columns - 1 - column]) == (0, 0, 0, 0)
    inside = (plane[..., 3] > 0).mean()
    assert inside == pytest.approx(2 * 3 / (9 * 12), rel=0.2)


def test_layers_of_a_plane_have_one_size_and_show_one_place(tmp_path: Path) -> None:
    heat = np.zeros((12, 10, 9), np.float32)
    heat[3, 4, 2] = 1
    made = volume(tmp_path, heat)
    sizes = set()
    for axis, about in enumerate(slices_info(made)["axes"]):
        for layer in ("image", "mask", "heat"):
            found = picture(render(made, "slices", axis=axis, index=about["start"], layer=layer).content)
            sizes.add((axis, found.shape[:2] == tuple(about["size"])))
            assert found.dtype == np.uint8
    assert sizes == {(0, True), (1, True), (2, True)}
    hot = picture(render(made, "slices", axis=0, index=2, layer="heat").content)
    rows, columns = hot.shape[:2]
    found = np.unravel_index(hot[..., 3].argmax(), (rows, columns))
    assert found[0] == pytest.approx(4.5 / 10 * rows, abs=1)
    assert found[1] == pytest.approx(3.5 / 12 * columns, abs=1)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"axis": 3, "index": 0}, "axis is 0"),
        ({"axis": 0, "index": 9}, "from 0 to 8"),
        ({"axis": 0, "index": -1}, "from 0 to 8"),
        ({"axis": 0, "index": 0, "layer": "heat"}, "no layer 'heat'"),
        ({}, "name the axis"),
    ],
)
def test_planes_that_are_not_there_are_refused(tmp_path: Path, where: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render(volume(tmp_path), "slices", **where)  # type: ignore[arg-type]


def test_a_colour_picture_is_shown_in_its_colours() -> None:
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    made = kept(png_bytes(image), classified(0.7, 0.3), facts(2, ()))
    assert slices_info(made)["axes"] == [
        {"name": "image", "count": 1, "start": 0, "size": [20, 30], "sides": ["", ""]},
    ]
    np.testing.assert_array_equal(picture(render(made, "slices").content), image)


def test_what_there_is_depends_on_the_answer(tmp_path: Path) -> None:
    made = volume(tmp_path)
    assert made.available() == ("mask", "overlay", "report", "slices", "image_preview", "mask_preview")
    assert made.nbytes == len(made.source) + made.raw.image.nbytes + 12 * 10 * 9
    again = pickle.loads(pickle.dumps(made))  # noqa: S301  # our own
    assert again.body == made.body
    for what in made.available()[:3]:
        assert render(again, what).content
    for what in ("explanation", "dicom_seg", "heat_preview", "../mask"):
        with pytest.raises(ValueError, match="the answer has no"):
            render(made, what)


def test_previews_are_small_and_at_the_same_place(tmp_path: Path) -> None:
    image = np.zeros((PREVIEW * 2, 6, 5), np.int16)
    image[200:300] = 900
    source = nifti(tmp_path, image)
    mask = (image > 0).astype(np.uint8) * 2
    made = kept(source, segmented(read(source), mask), facts(), (mask / 2).astype(np.float32))
    grids = {}
    for what, kind in (("image_preview", np.int16), ("mask_preview", np.uint8), ("heat_preview", np.uint8)):
        found = nibabel.Nifti1Image.from_bytes(gzip.decompress(render(made, what).content))
        assert found.shape == (PREVIEW, 6, 5)
        assert found.get_data_dtype() == kind
        grids[what] = found
    np.testing.assert_allclose(grids["mask_preview"].affine, grids["image_preview"].affine)
    found = np.asarray(grids["mask_preview"].dataobj)
    assert set(np.unique(found)) == {0, 2}
    middle = grids["mask_preview"].affine @ [*np.argwhere(found).mean(axis=0), 1]
    np.testing.assert_allclose(middle, TURNED @ [*np.argwhere(mask).mean(axis=0), 1], atol=1)


def test_a_preview_of_fractions_is_between_black_and_white(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    made = kept(source := nifti(tmp_path, image), segmented(read(source), np.zeros((8, 8, 8), np.uint8)), facts())
    found = nibabel.Nifti1Image.from_bytes(gzip.decompress(render(made, "image_preview").content))
    assert found.get_data_dtype() == np.uint8
    voxels = np.asarray(found.dataobj).astype(float)
    assert np.corrcoef(voxels.ravel(), image.ravel())[0, 1] > 0.99


def test_the_report_has_pictures_but_no_patient() -> None:
    source = packed_series(PatientName="DOE^JANE", PatientID="X4711")
    raw = read(source)
    heat = np.zeros(raw.image.shape[1:], np.float32)
    made = kept(source, segmented(raw, (heat > 0).astype(np.uint8)), facts(), heat)
    text, pictures = re.subn(r"data:image/png;base64,[^\"]+", "", render(made, "report").content.decode())
    assert pictures == 2
    assert "Research use only" in text
    for secret in ("JANE", "X4711", "1.2.4.0", "export"):
        assert secret not in text


def test_what_is_remembered_of_answers_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planes, "REMEMBERED", 2)
    for _ in range(4):
        slices_info(volume(tmp_path))
    assert len(planes._views) == 2
