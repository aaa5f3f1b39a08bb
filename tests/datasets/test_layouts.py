"""What every dataset plug-in promises, found by itself: a new file in medray/datasets must be made here to pass."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medray.config import load_plugin, plugins
from medray.datasets import files
from medray.datasets.scan import scan
from medray.sections.base import DatasetSection
from medray.types import ArrayRef, CaseRef, Dataset, InputError


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


MAKERS: dict[str, Callable[[Path], dict[str, object]]] = {
    "decathlon": _decathlon,
    "folder": _folder,
    "medmnist": _medmnist,
    "phantom": _phantom,
    "table": _table,
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
        path = ref.source.path if isinstance(ref.source, ArrayRef) else ref.source
        assert path.is_absolute()
        assert path.is_file()
        assert ref.label_map is None or ref.label_map.is_file()
        assert all(target in range(len(dataset.classes)) for target in ref.target)


def test_layouts_import_nothing_heavy() -> None:
    names = ", ".join(f"medray.datasets.{name}" for name in plugins("datasets"))
    heavy = "{'torch', 'pandas', 'sklearn', 'scipy', 'PIL', 'nibabel', 'monai', 'ray'}"
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


def test_label_maps_need_no_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    _scan_of(monkeypatch, Dataset((CaseRef("x", Path("x"), label_map=Path("y")),), ("background", "organ")))


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
