"""Each layout is drawn and told again; what fits none or several is refused with what was seen."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from medray.config import ConfigError, load_plugin, parse
from medray.datasets import seen
from medray.datasets.auto import Config, detect
from medray.datasets.scan import scan

DICOM = b"\0" * 128 + b"DICM"


def files(root: Path, *names: str, content: bytes = b"") -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def with_json(root: Path, tree: object, name: str = "dataset.json") -> Path:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(tree))
    return root


def with_text(root: Path, name: str, text: str) -> Path:
    (root / name).write_text(text)
    return root


NNUNET = {"channel_names": {}, "file_ending": ".nii.gz"}
DECATHLON = {"modality": {}, "training": []}
COCO: dict[str, object] = {"images": [], "annotations": [], "categories": []}

DRAWN: dict[str, tuple[str, str, Callable[[Path], Path]]] = {
    "npz": ("medmnist", "ending in .npz", lambda r: files(r, "a.npz") / "a.npz"),
    "one npz": ("medmnist", "the one .npz here is a.npz", lambda r: files(r, "a.npz", "readme.md")),
    "csv": ("table", "ending in .csv", lambda r: files(r, "a.csv") / "a.csv"),
    "tsv": ("table", "ending in .tsv", lambda r: files(r, "a.tsv") / "a.tsv"),
    "one csv": (
        "table",
        "labels.csv, has a column",
        lambda r: with_text(files(r, "x/1.png"), "labels.csv", "Image;y\n"),
    ),
    "nnunet": (
        "nnunet",
        "dataset.json names channel_names, imagesTr has 2 files ending in _0000.nii.gz",
        lambda r: with_json(files(r, "imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz", "labelsTr/a.nii.gz"), NNUNET),
    ),
    "nnunet 1": ("nnunet", "names no chan", lambda r: with_json(files(r, "imagesTr/a_0000.nii.gz"), DECATHLON)),
    "decathlon": ("decathlon", "lists 'training'", lambda r: with_json(files(r, "imagesTr/a.nii.gz"), DECATHLON)),
    "its json": ("decathlon", "my.json lists", lambda r: with_json(r, DECATHLON, "my.json") / "my.json"),
    "bids": (
        "bids",
        "2 folders sub-* beside participants.tsv",
        lambda r: files(r, "participants.tsv", "sub-1/a", "sub-2/a"),
    ),
    "bids, no table": (
        "bids",
        "dataset_description",
        lambda r: files(r, "dataset_description.json", "sub-1/anat/a.nii"),
    ),
    "voc": ("voc", "Annotations/ and JPEGImages/", lambda r: files(r, "Annotations/a.xml", "JPEGImages/a.jpg")),
    "coco json": ("coco", "images, annotations, categories", lambda r: with_json(r, COCO, "x.json") / "x.json"),
    "coco": (
        "coco",
        "instances_v",
        lambda r: with_json(files(r, "v/a.jpg"), COCO, "annotations/instances_v.json"),
    ),
    "roboflow": (
        "coco",
        "_annotations",
        lambda r: with_json(files(r, "valid/a.jpg"), COCO, "valid/_annotations.json"),
    ),
    "coco beside images": (
        "coco",
        "with images",
        lambda r: with_json(files(r, "images/a.jpg"), COCO, "annotations/a.json"),
    ),
    "pairs": ("pairs", "images/ and masks/", lambda r: files(r, "images/a.png", "masks/a.png")),
    "pairs in splits": (
        "pairs",
        "test/images/ and test/labels/",
        lambda r: files(r, "test/images/a.png", "test/labels/a.png"),
    ),
    "folder": ("folder", "'a', 'b'", lambda r: files(r, "a/1.png", "b/p/2.png", "readme.txt")),
    "folder in splits": (
        "folder",
        "in each of test, train",
        lambda r: files(r, "train/a/1.png", "train/b/1.png", "test/a/1.png"),
    ),
    "dicom": (
        "dicom",
        "2 of the first 3 files are DICOM",
        lambda r: files(files(r, "a/b/1", "a/2", content=DICOM), "x.txt"),
    ),
    "dicom in folders": ("dicom", "2 of the first 2", lambda r: files(r, "a/1.dcm", "b/1.dcm", content=DICOM)),
    "dicom, labels": (
        "dicom",
        "labels in l.csv",
        lambda r: with_text(files(r, "a/1", "b/1", content=DICOM), "l.csv", "SeriesInstanceUID,label\n"),
    ),
}


@pytest.mark.parametrize("drawn", DRAWN)
def test_layouts_are_told(drawn: str, tmp_path: Path) -> None:
    layout, why, draw = DRAWN[drawn]
    found = detect(Config(path=draw(tmp_path)))
    assert found.layout == layout
    assert why in found.why
    load_plugin("datasets", layout).Config.model_validate(dict(found.settings))


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ((), "0 folders, 0 files"),
        (("a.nii", "b.nii", "c.mnc"), "0 folders, 3 files: 2 .nii, 1 .mnc"),
        (("a.npz", "b.npz"), "2 .npz"),
        (("a/1.png",), "1 folders 'a'"),
        (("a/1.png", "b/readme"), "2 folders 'a', 'b'"),
        (("images/a.png",), "'images'"),
        (("images/a.png", "labels/a.txt"), "'images', 'labels'"),
        (("sub-1/a.png", "sub-2/a.png"), "'sub-1'"),
        (("train/a.png", "test/a.png"), "'test', 'train'"),
        (("train/a/1.png", "train/b/1.png", "more/a/1.png"), "'more', 'train'"),
        ((".hidden/a.png", "._a.npz"), "0 folders, 0 files"),
    ],
)
def test_what_fits_nothing(names: tuple[str, ...], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        detect(Config(path=files(tmp_path, *names)))
    assert "no layout fits" in str(caught.value)
    assert says in str(caught.value)
    assert "medmnist" in str(caught.value)


@pytest.mark.parametrize(
    ("draw", "layouts"),
    [
        (lambda r: files(r, "a/1.png", "b/1.png", "x.npz"), ("medmnist", "folder")),
        (lambda r: with_text(files(r, "a/1.png", "b/1.png"), "t.csv", "file,label\n"), ("table", "folder")),
        (lambda r: with_text(files(r, "a", content=DICOM), "t.csv", "path,label\n"), ("table", "dicom")),
        (lambda r: files(r, "images/a.png", "masks/a.png", "Annotations/a", "JPEGImages/a"), ("voc", "pairs")),
        (lambda r: with_json(files(r, "images/a.png", "masks/a.png"), COCO, "a.json"), ("coco", "pairs")),
    ],
)
def test_what_fits_several(draw: Callable[[Path], Path], layouts: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="several layouts fit") as caught:
        detect(Config(path=draw(tmp_path)))
    assert all(f"{layout} (" in str(caught.value) for layout in layouts)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        detect(Config(path=tmp_path / "gone"))
    with pytest.raises(ConfigError, match="a file"):
        detect(Config(path=files(tmp_path, "a.txt") / "a.txt"))


def test_the_dataset_says_what_it_looked_like(tmp_path: Path) -> None:
    files(tmp_path, "a/p1_1.png", "b/p2_1.png")
    dataset = scan(Config(path=tmp_path))
    assert dataset.notes[0] == "looks like folder: every folder holds images: 'a', 'b'"
    assert len(dataset.refs) == 2
    by_name = load_plugin("datasets", "folder").Config(path=tmp_path)
    assert scan(by_name).refs == dataset.refs


def test_settings_of_the_layout_found(tmp_path: Path) -> None:
    files(tmp_path, "a/p1_1.png", "b/p2_1.png")
    given = parse(
        {
            "name": "x",
            "dataset": {"name": "auto", "path": str(tmp_path), "subject_pattern": "^(p.)"},
            "task": "classification",
            "network": "plain",
        }
    ).dataset
    assert [ref.subject_id for ref in scan(given).refs] == ["p1", "p2"]
    with pytest.raises(ConfigError) as caught:
        scan(Config(path=tmp_path, subject_patern="x", max_bad_fraction=0.5, classes=1))
    assert caught.value.mistakes == (
        "dataset.classes: folder has no such setting",
        "dataset.subject_patern: folder has no such setting; did you mean 'subject_pattern'?",
    )
    with pytest.raises(ConfigError, match="exactly one group"):
        scan(Config(path=tmp_path, subject_pattern="x"))


def test_few_files_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path, *(f"{folder}/{n}" for folder in "abc" for n in range(50)))
    opened: list[Path] = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *a, **k: opened.append(path) or real(path, *a, **k))
    with pytest.raises(ConfigError):
        detect(Config(path=tmp_path))
    assert 0 < len([path for path in opened if path.is_relative_to(tmp_path)]) <= seen.FIRST_FILES


def test_no_folder_is_listed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path, *(f"{split}/{folder}/1.png" for split in ("train", "test") for folder in "abc"))
    listed: list[Path] = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(Path(path)) or real(path))
    assert detect(Config(path=tmp_path)).layout == "folder"
    assert len(listed) == len(set(listed)) == 9


def test_many_files_are_quick(tmp_path: Path) -> None:
    """20,000 files in 20 class folders: listed once or twice, never asked for more."""
    for folder in range(20):
        (tmp_path / str(folder)).mkdir()
        for n in range(1000):
            (tmp_path / str(folder) / f"{n}.png").touch()
    start = time.perf_counter()
    assert detect(Config(path=tmp_path)).layout == "folder"
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    ("path", "layout"),
    [
        ("bccd", "voc"),
        ("hippocampus", "decathlon"),
        ("medical_mnist", "folder"),
        ("medmnist/breastmnist.npz", "medmnist"),
        ("nuclei", "pairs"),
        ("dicom", "dicom"),
        ("dicom/ct_3slice_with_seg", "dicom"),
        ("dicom/enhanced_philips", "dicom"),
        ("dicom/ge_fmri_4d", "dicom"),
        ("dicom/hippocrop_13", "dicom"),
        ("dicom/siemens_mosaic", "dicom"),
        ("dicom/t1_oblique_40", "dicom"),
    ],
)
def test_real_sets(path: str, layout: str, shared_data: Path) -> None:
    assert detect(Config(path=shared_data / path)).layout == layout


@pytest.mark.parametrize("path", [".", "medmnist", "nifti_misc", "nrrd", "SOURCES.md"])
def test_real_sets_that_are_no_dataset(path: str, shared_data: Path) -> None:
    with pytest.raises(ConfigError, match="no layout fits"):
        detect(Config(path=shared_data / path))
