"""The fingerprint: geometry in RAS+ order and after the crop, intensities of the foreground, what is left out."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medray.pipeline.fingerprint import fingerprint
from medray.types import Case, CaseRef, Dataset, InputError

CLASSES = ("background", "liver", "tumour")


def save(file: Path, voxels: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(voxels, affine), file)
    return file


def dataset(folder: Path, affines: list[np.ndarray], shape: tuple[int, ...] = (12, 10, 6)) -> Dataset:
    """Volumes with an empty margin of 2 voxels along the first axis: foreground is 100 (liver) and 300 (tumour)."""
    refs = []
    for number, affine in enumerate(affines):
        label = np.zeros(shape, np.uint8)
        label[4:8, 3:7, 1:5], label[5, 4, 2] = 1, 2
        image = np.full(shape, 10, np.int16)
        image[label == 1], image[label == 2] = 100, 300
        image[:2], image[-2:] = 0, 0
        place = save(folder / f"{number}.nii.gz", image, affine)
        refs.append(CaseRef(f"case{number}", place, label_map=save(folder / f"{number}_l.nii.gz", label, affine)))
    return Dataset(tuple(refs), CLASSES)


def test_geometry_is_that_of_ras(tmp_path: Path) -> None:
    """Axes stored as S, R, A with R and A backwards are counted as R, A, S."""
    turned = np.array([[0, -2.0, 0, 0], [0, 0, -3.0, 0], [5.0, 0, 0, 0], [0, 0, 0, 1]])
    found = fingerprint(dataset(tmp_path, [turned]))
    (case,) = found.cases
    assert case.shape == (10, 6, 12)
    assert case.cropped == (10, 6, 8)
    assert case.spacing == (2.0, 3.0, 5.0)
    assert case.removed == pytest.approx(1 - 8 / 12)
    assert case.volumes[1:] == ((64 - 1) * 30.0, 30.0)


def test_intensities_are_those_of_the_foreground(tmp_path: Path) -> None:
    found = fingerprint(dataset(tmp_path, [np.eye(4)] * 2))
    (first, _) = found.cases
    assert first.foreground is not None
    assert found.foreground is not None
    assert first.foreground.mean == pytest.approx((63 * 100 + 300) / 64)
    assert first.foreground.median == found.foreground.median == 100
    assert first.whole.low == 0
    assert first.voxels == (12 * 10 * 6 - 64, 63, 1)
    assert found.class_cases == (2, 2, 2)
    assert found.labelled
    assert not first.two_valued


def test_the_sample_is_a_sample(tmp_path: Path) -> None:
    """Of a large image some voxels are drawn, the same each time; their percentiles are near those of all."""
    image = np.random.default_rng(1).normal(100, 20, (40, 50, 40)).astype(np.float32)
    ref = CaseRef("large", save(tmp_path / "a.nii.gz", image, np.eye(4)), (0,))
    found = fingerprint(Dataset((ref,), ("a", "b")))
    assert found == fingerprint(Dataset((ref,), ("a", "b")))
    assert found.whole.high == pytest.approx(np.percentile(image, 99.5), rel=0.05)
    assert found.whole.mean == pytest.approx(100, abs=1)
    assert found.foreground is None
    assert found.class_cases == (1, 0)


def test_what_cannot_be_read_is_listed(tmp_path: Path) -> None:
    """A broken file, a label of another grid, and a picture among volumes."""
    good = dataset(tmp_path, [np.eye(4)] * 3)
    (tmp_path / "1.nii.gz").write_bytes(b"nothing")
    save(tmp_path / "2_l.nii.gz", np.zeros((3, 3, 3), np.uint8), np.eye(4))
    np.save(tmp_path / "flat.npy", np.zeros((5, 5), np.uint8))
    odd = CaseRef("flat", tmp_path / "flat.npy")
    found = fingerprint(Dataset((*good.refs, odd), CLASSES))
    assert [case.case_id for case in found.cases] == ["case0"]
    codes = {left.case_id: left.code for left in found.left_out}
    assert codes == {"case1": "unsupported_type", "case2": "shape_mismatch", "flat": "wrong_rank"}


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match="none of 1 cases can be read; the first: unsupported_type"):
        fingerprint(Dataset((CaseRef("a", tmp_path / "a.png", (0,)),), ("a", "b")))


def test_ignored_voxels_are_no_foreground(tmp_path: Path) -> None:
    label = np.array([[0, 7, 7], [1, 1, 0]], np.uint8)
    np.save(tmp_path / "l.npy", label)
    np.save(tmp_path / "i.npy", np.array([[1, 90, 90], [5, 5, 1]], np.uint8))
    ref = CaseRef("a", tmp_path / "i.npy", label_map=tmp_path / "l.npy")
    found = fingerprint(Dataset((ref,), ("background", "cell"), ignored_value=7))
    assert found.foreground is not None
    assert found.foreground.high == 5
    assert found.cases[0].voxels == (2, 2)


def test_it_is_written_as_json_and_read_anywhere(tmp_path: Path) -> None:
    """The reader is the caller's, and mapping is too."""
    calls: list[int] = []

    def read(_: object) -> Case:
        return Case("x", np.arange(12, dtype=np.uint8).reshape(1, 3, 4), np.eye(4))

    def mapper(function, items):  # type: ignore[no-untyped-def]
        calls.append(len(list(items)))
        return map(function, items)

    refs = tuple(CaseRef(str(number), tmp_path / "none", (number % 2,)) for number in range(40))
    seen: list[tuple[int, int]] = []
    found = fingerprint(Dataset(refs, ("a", "b")), mapper, read, lambda done, total: seen.append((done, total)))
    tree = json.loads(found.as_json())
    assert tree["medians"]["shape"] == [3, 4]
    assert tree["class_cases"] == [20, 20]
    assert len(tree["cases"]) == 40
    assert calls == [2]
    assert seen == [(32, 40), (40, 40)]
