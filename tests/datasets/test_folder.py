import os
from pathlib import Path

import pytest

from medray.config import ConfigError, parse
from medray.datasets.folder import Config
from medray.datasets.scan import scan
from medray.types import InputError


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def refuse(root: Path, code: str, **settings: object) -> InputError:
    with pytest.raises(InputError) as caught:
        scan(Config(path=root, **settings))
    assert caught.value.code == code
    return caught.value


def test_a_class_per_folder(tmp_path: Path) -> None:
    dataset = scan(Config(path=make(tmp_path, "b/2.png", "b/1.JPG", "a/x.nii.gz", "c/y.dcm")))
    assert dataset.classes == ("a", "b", "c")
    assert [(ref.case_id, ref.target) for ref in dataset.refs] == [
        ("a/x.nii.gz", (0,)),
        ("b/1.JPG", (1,)),
        ("b/2.png", (1,)),
        ("c/y.dcm", (2,)),
    ]
    assert all(ref.split is None and ref.source == tmp_path / ref.case_id for ref in dataset.refs)
    assert any("every file counts as a subject of its own" in note for note in dataset.notes)


def test_splits_above_the_classes(tmp_path: Path) -> None:
    make(tmp_path, "Train/a/1.png", "Train/b/2.png", "valid/a/3.png", "valid/b/4.png", "test/a/5.png", "test/b/6.png")
    assert {ref.case_id: ref.split for ref in scan(Config(path=tmp_path)).refs} == {
        "Train/a/1.png": "train",
        "Train/b/2.png": "train",
        "valid/a/3.png": "val",
        "valid/b/4.png": "val",
        "test/a/5.png": "test",
        "test/b/6.png": "test",
    }


def test_the_folder_below_the_class_is_the_subject(tmp_path: Path) -> None:
    """Studies of one patient stay one subject."""
    dataset = scan(Config(path=make(tmp_path, "a/p1/s1/1.png", "a/p1/s2/1.png", "a/p2/1.png", "b/p3/1.png")))
    assert [ref.subject_id for ref in dataset.refs] == ["p1", "p1", "p2", "p3"]
    assert dataset.notes == ()


def test_some_cases_without_subject_are_counted(tmp_path: Path) -> None:
    notes = scan(Config(path=make(tmp_path, "a/p1/1.png", "b/2.png"))).notes
    assert any("1 of 2 cases have no subject" in note for note in notes)


def test_subject_pattern(tmp_path: Path) -> None:
    make(tmp_path, "a/P07_1.png", "b/P07_2.png", "b/P11_1.png")
    dataset = scan(Config(path=tmp_path, subject_pattern=r"^(P\d+)_"))
    assert [ref.subject_id for ref in dataset.refs] == ["P07", "P07", "P11"]
    assert "3 of 3" in refuse(tmp_path, "subject_pattern", subject_pattern="(Q)").detail


@pytest.mark.parametrize(("pattern", "says"), [("(a", "not a regular expression"), ("a", "exactly one group")])
def test_wrong_pattern(tmp_path: Path, pattern: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Config(path=tmp_path, subject_pattern=pattern)


def test_junk_is_ignored_and_counted(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "a/._1.png", "a/Thumbs.db", "b/2.png", "b/notes.txt", ".git/x.png", "loose.png")
    dataset = scan(Config(path=tmp_path))
    assert len(dataset.refs) == 2
    notes = " ".join(dataset.notes)
    assert "4 files or folders" in notes
    assert "1 .txt" in notes
    assert "3 hidden" in notes
    assert "'loose.png'" in notes


def test_missing_path_says_where_and_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"does not exist; expected a folder with one folder") as caught:
        scan(Config(path=Path("nowhere")))
    assert str(tmp_path / "nowhere") in str(caught.value)
    make(tmp_path, "file.png")
    with pytest.raises(ConfigError, match="not a folder"):
        scan(Config(path=tmp_path / "file.png"))
    with pytest.raises(ConfigError, match="1 images lie in it directly"):
        scan(Config(path=tmp_path))


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "data/a/1.png", "data/b/1.png")
    monkeypatch.chdir(tmp_path)
    assert scan(Config(path=Path("data"))).refs[0].source == tmp_path / "data/a/1.png"


def test_empty_class_folder_is_named(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "sarcoma").mkdir()
    assert "'sarcoma'" in refuse(tmp_path, "empty_class").detail


def test_one_class_is_too_few(tmp_path: Path) -> None:
    assert "'a'" in refuse(make(tmp_path, "a/1.png"), "too_few_classes").detail


def test_layouts_are_not_mixed(tmp_path: Path) -> None:
    make(tmp_path / "x", "train/a/1.png", "benign/1.png")
    assert "'train' look like splits, but 'benign'" in refuse(tmp_path / "x", "mixed_layout").detail
    make(tmp_path / "y", "val/a/1.png", "valid/a/1.png")
    assert "two folders" in refuse(tmp_path / "y", "mixed_layout").detail
    (tmp_path / "z/train").mkdir(parents=True)
    assert "'train'" in refuse(tmp_path / "z", "empty_class").detail


def test_a_link_back_up_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "b/p/1.png")
    (tmp_path / "b/p/up").symlink_to(tmp_path / "b", target_is_directory=True)
    refuse(tmp_path, "folder_loop")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folder(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "b").chmod(0)
    refuse(tmp_path, "unreadable_folder")
    (tmp_path / "b").chmod(0o755)


def test_an_experiment_names_it() -> None:
    tree = {"name": "x", "task": "classification", "network": "plain"}
    with pytest.raises(ConfigError, match=r"did you mean 'folder'\?"):
        parse({**tree, "dataset": {"name": "foldr", "path": "."}})
