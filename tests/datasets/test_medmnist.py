from pathlib import Path

import numpy as np
import pytest

from medray.datasets.medmnist import Config
from medray.datasets.scan import scan
from medray.types import ArrayRef, InputError

REAL = Path(__file__).parents[3] / "shared/data/medmnist"


def save(root: Path, labels: int = 1, **replaced: np.ndarray | None) -> Path:
    arrays: dict[str, np.ndarray] = {}
    for split, count in {"train": 6, "val": 2, "test": 4}.items():
        arrays[f"{split}_images"] = np.zeros((count, 4, 4, 4), np.uint8)
        target = np.arange(count)[:, None] % 2 if labels == 1 else np.eye(labels, dtype=int)[np.arange(count) % labels]
        arrays[f"{split}_labels"] = target.astype(np.uint8)
    path = root / "toy.npz"
    np.savez(path, **{name: array for name, array in {**arrays, **replaced}.items() if array is not None})
    return path


def test_official_splits(tmp_path: Path) -> None:
    dataset = scan(Config(path=save(tmp_path), classes=("no", "yes")))
    assert [ref.split for ref in dataset.refs] == ["train"] * 6 + ["val"] * 2 + ["test"] * 4
    assert dataset.refs[7].source == ArrayRef(tmp_path / "toy.npz", "val_images", 1)
    assert dataset.refs[7].case_id == "toy/val/000001"
    assert dataset.refs[7].target == (1,)
    assert dataset.classes == ("no", "yes")
    assert scan(Config(path=save(tmp_path))).classes == ("0", "1")


def test_multilabel(tmp_path: Path) -> None:
    none = np.zeros((2, 3), np.uint8)
    dataset = scan(Config(path=save(tmp_path, 3, val_labels=none)))
    assert dataset.multilabel
    assert dataset.classes == ("0", "1", "2")
    assert [ref.target for ref in dataset.refs[4:8]] == [(1,), (2,), (), ()]


@pytest.mark.parametrize(
    ("replaced", "code", "says"),
    [
        ({"val_labels": None}, "missing_members", "'val_labels'"),
        ({"val_labels": np.zeros((3, 1), int)}, "wrong_labels", "(3, 1)"),
        ({"val_labels": np.zeros((2, 1))}, "wrong_labels", "float64"),
        ({"val_labels": np.array([[None], [1]])}, "wrong_labels", "object"),
        ({"val_labels": np.zeros((2, 3), int)}, "wrong_labels", "[1, 3]"),
        ({"val_labels": np.array([[-1], [0]])}, "wrong_labels", "-1"),
        ({"val_labels": np.array([[3], [0]])}, "empty_class", "'2'"),
    ],
)
def test_wrong_archives(tmp_path: Path, replaced: dict[str, np.ndarray | None], code: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        scan(Config(path=save(tmp_path, **replaced)))
    assert caught.value.code == code
    assert says in caught.value.detail


def test_labels_beyond_the_named_classes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"need 2 classes, dataset\.classes has 1"):
        scan(Config(path=save(tmp_path), classes=("no",)))


def test_broken_archives(tmp_path: Path) -> None:
    path = save(tmp_path)
    content = path.read_bytes()
    for broken in (b"", b"no archive", content[: len(content) // 2]):
        path.write_bytes(broken)
        with pytest.raises(InputError, match="broken_archive"):
            scan(Config(path=path))


def test_other_arrays_are_noted(tmp_path: Path) -> None:
    assert any("'masks'" in note for note in scan(Config(path=save(tmp_path, masks=np.zeros(3)))).notes)
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(InputError, match="it has 'x'"):
        scan(Config(path=tmp_path / "other.npz"))


@pytest.mark.skipif(not REAL.is_dir(), reason="no real data here")
@pytest.mark.parametrize(("name", "counts"), [("breastmnist", (546, 78, 156)), ("adrenalmnist3d_dev", (950, 119, 119))])
def test_real_archives(name: str, counts: tuple[int, ...]) -> None:
    dataset = scan(Config(path=REAL / f"{name}.npz"))
    assert tuple(sum(ref.split == split for ref in dataset.refs) for split in ("train", "val", "test")) == counts
    assert dataset.classes == ("0", "1")
