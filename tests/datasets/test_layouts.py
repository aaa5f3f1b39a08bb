"""What every dataset plug-in promises, found by itself: a new file in medray/datasets must be made here to pass."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_tree import series

from medray.config import load_plugin, plugins
from medray.datasets import files
from medray.datasets.scan import scan
from medray.pipeline.hashes import files_of
from medray.sections.base import DatasetSection
from medray.types import Box, CaseRef, Dataset, InputError


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def _folder(root: Path) -> dict[str, object]:
    for name in ("b/2.png", "b/1.png", "a/1.png"):
        _touch(root / name)
    return {"path": root}


def _table(root: Path) -> dict[str, object]:
    _touch(root / "1.png")
    _touch(root / "2.png")
    (root / "t.csv").write_text("image,label\n2.png,b\n1.png,a\n")
    return {"path": root / "t.csv"}


def _medmnist(root: Path) -> dict[str, object]:
    np.savez(root / "m.npz", train_images=np.zeros((4, 8, 8), np.uint8), train_labels=np.array([[0], [1], [1], [0]]))
    return {"path": root / "m.npz"}


def _decathlon(root: Path) -> dict[str, object]:
    _touch(root / "imagesTr/1.nii.gz")
    _touch(root / "imagesTr/2.nii.gz")
    training = [{"image": f"imagesTr/{n}.nii.gz", "label": n - 1} for n in (2, 1)]
    (root / "dataset.json").write_text(json.dumps({"training": training, "labels": {"0": "a", "1": "b"}}))
    return {"path": root}


def _phantom(_: Path) -> dict[str, object]:
    return {"cases": 6, "size": 32}


def _nnunet(root: Path) -> dict[str, object]:
    for name in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "imagesTs/b_0000.nii.gz", "labelsTs/b.nii.gz"):
        _touch(root / name)
    tree = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "numTraining": 1}
    (root / "dataset.json").write_text(json.dumps({**tree, "file_ending": ".nii.gz"}))
    return {"path": root}


def _bids(root: Path) -> dict[str, object]:
    _touch(root / "sub-2/anat/sub-2_T1w.nii.gz")
    _touch(root / "sub-1/ses-1/anat/sub-1_ses-1_T1w.nii.gz")
    (root / "participants.tsv").write_text("participant_id\tgroup\nsub-1\ta\nsub-2\tb\n")
    return {"path": root}


def _coco(root: Path) -> dict[str, object]:
    _touch(root / "images/1.jpg")
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 3]}
    tree = {"images": [{"id": 1, "file_name": "1.jpg", "height": 9, "width": 9}], "annotations": [box]}
    (root / "x.json").write_text(json.dumps({**tree, "categories": [{"id": 1, "name": "cell"}]}))
    return {"path": root / "x.json"}


def _voc(root: Path) -> dict[str, object]:
    _touch(root / "JPEGImages/1.jpg")
    _touch(root / "Annotations/1.xml")
    corners = "<xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>2</ymax>"
    item = f"<object><name>cell</name><bndbox>{corners}</bndbox></object>"
    (root / "Annotations/1.xml").write_text(f"<annotation>{item}</annotation>")
    return {"path": root}


def _pairs(root: Path) -> dict[str, object]:
    for name in ("images/b.jpg", "images/a.png", "masks/b.png", "masks/a.png"):
        _touch(root / name)
    return {"path": root}


def _auto(root: Path) -> dict[str, object]:
    return {**_folder(root), "subject_pattern": "^(.)"}


def _dicom(root: Path) -> dict[str, object]:
    series(root / "b", "1.3", "p")
    series(root / "a", "1.4", "q")
    (root / "labels.csv").write_text("series,label\n1.3,x\n1.4,y\n")
    return {"path": root, "labels": root / "labels.csv"}


MAKERS: dict[str, Callable[[Path], dict[str, object]]] = {
    "auto": _auto,
    "bids": _bids,
    "coco": _coco,
    "decathlon": _decathlon,
    "dicom": _dicom,
    "folder": _folder,
    "medmnist": _medmnist,
    "nnunet": _nnunet,
    "pairs": _pairs,
    "phantom": _phantom,
    "table": _table,
    "voc": _voc,
}


def test_each_layout_is_under_this_contract() -> None:
    assert set(plugins("datasets")) == set(MAKERS)


@pytest.mark.parametrize("name", plugins("datasets"))
def test_contract(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDRAY_HOME", str(tmp_path / "home"))
    (tmp_path / "data").mkdir()
    module = load_plugin("datasets", name)
    cfg = module.Config(**MAKERS[name](tmp_path / "data"))
    assert cfg.name == name
    assert isinstance(cfg, DatasetSection)
    dataset = scan(cfg)
    assert scan(module.Config.model_validate_json(cfg.model_dump_json())) == dataset
    assert len({ref.case_id for ref in dataset.refs}) == len(dataset.refs) > 0
    for ref in dataset.refs:
        assert all(path.is_absolute() and path.is_file() for path in files_of(ref))
        assert ref.label_map is None or ref.label_map.is_file()
        assert all(target in range(len(dataset.classes)) for target in ref.target)
        assert all(box.target in range(len(dataset.classes)) for box in ref.boxes)


def test_layouts_import_nothing_heavy() -> None:
    names = ", ".join(f"medray.datasets.{name}" for name in plugins("datasets"))
    heavy = "{'torch', 'pandas', 'sklearn', 'scipy', 'PIL', 'nibabel', 'pydicom', 'monai', 'ray'}"
    code = f"import sys, {names}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _scan_of(monkeypatch: pytest.MonkeyPatch, dataset: Dataset) -> None:
    monkeypatch.setattr("medray.datasets.folder.scan", lambda _: dataset)
    scan(load_plugin("datasets", "folder").Config(path="."))


@pytest.mark.parametrize(
    ("refs", "multilabel", "code"),
    [
        ((), False, "no_cases"),
        ((CaseRef("x", Path("x"), (0,)), CaseRef("x", Path("x"), (1,))), False, "duplicate_case"),
        ((CaseRef("x", Path("x"), (0,)), CaseRef("y", Path("y"), (2,))), False, "wrong_target"),
        ((CaseRef("x", Path("x"), (0,)), CaseRef("y", Path("y"))), False, "mixed_targets"),
        ((CaseRef("x", Path("x"), (0, 1)), CaseRef("y", Path("y"), (0,))), False, "mixed_targets"),
        ((CaseRef("x", Path("x"), (0,)), CaseRef("y", Path("y"))), True, "empty_class"),
    ],
)
def test_what_no_layout_may_do(
    refs: tuple[CaseRef, ...], multilabel: bool, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError) as caught:
        _scan_of(monkeypatch, Dataset(refs, ("a", "b"), multilabel))
    assert caught.value.code == code


@pytest.mark.parametrize("label", [{"label_map": Path("y")}, {"boxes": (Box((0.0, 0.0), (1.0, 1.0), 0),)}, {}])
def test_label_maps_boxes_and_nothing_at_all_need_no_classes(
    label: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    _scan_of(monkeypatch, Dataset((CaseRef("x", Path("x"), **label), CaseRef("y", Path("y"))), ("background", "organ")))


def test_missing_lists_each_folder_once(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    paths = [tmp_path / "a", tmp_path / "b", tmp_path / "no/c"]
    assert files.missing(paths) == paths[1:]


@pytest.mark.parametrize(("name", "stem"), [("a.nii.gz", "a"), ("a.b.PNG", "a.b"), ("a.txt", "a.txt")])
def test_stem(name: str, stem: str) -> None:
    assert files.stem(name) == stem


def test_files_are_listed_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps a scan of 100,000 files to a second: no file is opened or asked for its size."""
    for name in ("a/1.png", "b/2.png"):
        _touch(tmp_path / name)
    asked: list[str] = []
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda path, *a, **k: asked.append(str(path)) or real(path, *a, **k))
    scan(load_plugin("datasets", "folder").Config(path=tmp_path))
    assert not [path for path in asked if path.endswith(".png")]
