from pathlib import Path

import pytest
from layouts import refused
from pydantic import ValidationError

from medray.config import ConfigError
from medray.datasets.pairs import Config
from medray.datasets.scan import scan


def write(root: Path, *files: str) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def refuse(root: Path, code: str, **settings: object) -> str:
    return refused(Config(path=root, **settings), code)


def test_pairs_by_name(tmp_path: Path) -> None:
    """At any depth, whatever the endings."""
    dataset = scan(Config(path=write(tmp_path, "images/b.jpg", "images/x/a.png", "masks/x/a.nii.gz", "masks/b.png")))
    found = [(ref.case_id, ref.source, ref.label_map) for ref in dataset.refs]
    assert found == [
        ("b", tmp_path / "images/b.jpg", tmp_path / "masks/b.png"),
        ("x/a", tmp_path / "images/x/a.png", tmp_path / "masks/x/a.nii.gz"),
    ]
    assert dataset.classes == ("background", "foreground")
    assert dataset.legal_values == (0, 255)
    assert "in the masks 0 is background, 255 is foreground (dataset.values)" in dataset.notes


@pytest.mark.parametrize("folder", ["mask", "labels", "annotations", "segmentations"])
def test_other_names_of_the_masks(tmp_path: Path, folder: str) -> None:
    assert len(scan(Config(path=write(tmp_path, "images/a.png", f"{folder}/a.png"))).refs) == 1


def test_folders_can_be_named(tmp_path: Path) -> None:
    write(tmp_path, "scans/a.png", "masks/a.png", "labels/a.png")
    with pytest.raises(ConfigError, match=r"images' does not exist"):
        scan(Config(path=tmp_path))
    with pytest.raises(ConfigError, match="'masks', 'labels' could each hold the masks"):
        scan(Config(path=tmp_path, images="scans"))
    assert scan(Config(path=tmp_path, images="scans", masks="labels")).refs[0].label_map == tmp_path / "labels/a.png"
    with pytest.raises(ConfigError, match=r"gone' does not exist"):
        scan(Config(path=tmp_path, images="scans", masks="gone"))


def test_suffixes_of_masks(tmp_path: Path) -> None:
    write(tmp_path, "images/a.png", "images/b.png", "masks/a_mask.png", "masks/b_mask.png")
    dataset = scan(Config(path=tmp_path))
    assert [ref.case_id for ref in dataset.refs] == ["a", "b"]
    assert "the masks' names end in '_mask' (dataset.mask_suffix)" in dataset.notes
    assert "2 images without a mask" in refuse(tmp_path, "missing_partner", mask_suffix="")
    assert "2 masks do not end in '_x'" in refuse(tmp_path, "missing_partner", mask_suffix="_x")
    write(tmp_path, "images/c.png", "masks/c_odd.png")
    assert "images without a mask" in refuse(tmp_path, "missing_partner")


def test_partners_that_are_missing_are_listed(tmp_path: Path) -> None:
    write(tmp_path, "images/a.png", "images/b.png", "masks/b.png", "masks/c.png")
    assert "1 images without a mask: 'a'; 1 masks without an image: 'c'" in refuse(tmp_path, "missing_partner")


def test_one_name_with_two_endings(tmp_path: Path) -> None:
    write(tmp_path, "images/a.png", "images/a.jpg", "masks/a.png")
    assert "'a'" in refuse(tmp_path, "duplicate_case")


def test_splits_above(tmp_path: Path) -> None:
    write(tmp_path, "train/images/a.png", "train/masks/a.png", "val/images/a.png", "val/masks/a.png")
    found = [(ref.case_id, ref.split) for ref in scan(Config(path=tmp_path)).refs]
    assert found == [("train/a", "train"), ("val/a", "val")]


def test_classes_and_subjects(tmp_path: Path) -> None:
    write(tmp_path, "images/p1_a.png", "masks/p1_a.png")
    dataset = scan(Config(path=tmp_path, values={"nothing": 0, "nucleus": 3}, subject_pattern="^(p.)_"))
    assert dataset.classes == ("nothing", "nucleus")
    assert any("3 is nucleus" in note for note in dataset.notes)
    assert dataset.refs[0].subject_id == "p1"


@pytest.mark.parametrize("values", [{"a": 0}, {"a": 0, "b": 0}, {"a": 0, "b": -1}, {"a": 0, "b": 0.5}])
def test_values_that_cannot_be(tmp_path: Path, values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Config(path=tmp_path, values=values)


def test_real_nuclei(shared_data: Path) -> None:
    dataset = scan(Config(path=shared_data / "nuclei"))
    assert len(dataset.refs) == 250
