import json
import multiprocessing
import os
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from medray.datasets import decathlon, folder, phantom_chest, phantom_volume
from medray.datasets.phantom import Config
from medray.datasets.scan import scan
from medray.types import Array, Dataset, InputError


def pixels(dataset: Dataset) -> Array:
    return np.stack([np.asarray(Image.open(ref.source)) for ref in dataset.refs])


def test_slices(home: Path) -> None:
    dataset = scan(Config(cases=36))
    assert len(dataset.refs) == 36
    assert dataset.classes == ("none", "benign", "malignant")
    assert set(Counter(ref.target for ref in dataset.refs).values()) <= set(range(6, 20))
    images = pixels(dataset)
    assert images.shape == (36, 64, 64)
    assert images.dtype == np.uint8
    assert len({image.tobytes() for image in images}) == 36
    assert all(home in Path(str(ref.source)).parents for ref in dataset.refs)


def test_half_of_the_subjects_own_two_images_of_one_class() -> None:
    dataset = scan(Config(cases=80, size=32))
    owned = Counter(ref.subject_id for ref in dataset.refs)
    assert set(owned.values()) == {1, 2}
    assert 0.35 < sum(count == 2 for count in owned.values()) / len(owned) < 0.65
    assert len({(ref.subject_id, ref.target) for ref in dataset.refs}) == len(owned)


def test_slices_of_one_subject_are_alike_but_not_equal() -> None:
    subjects = 24
    drawn = phantom_chest.draw(np.random.default_rng(0), np.zeros(subjects, int), np.arange(2 * subjects) // 2, 64)
    pairs = drawn.reshape(subjects, 2, -1).astype(float)
    near = np.abs(pairs[:, 0] - pairs[:, 1]).mean()
    far = np.abs(pairs[:, 0] - np.roll(pairs[:, 1], 1, axis=0)).mean()
    assert 5 < near < 0.9 * far, (near, far)


def test_made_once_and_the_same_again(home: Path) -> None:
    first = scan(Config(cases=12, size=32))
    before = pixels(first)
    stamp = Path(str(first.refs[0].source)).stat().st_mtime_ns
    assert scan(Config(cases=12, size=32)) == first
    assert Path(str(first.refs[0].source)).stat().st_mtime_ns == stamp
    made = Path(str(first.refs[0].source)).parents[1]
    made.rename(home / "elsewhere")
    np.testing.assert_array_equal(pixels(scan(Config(cases=12, size=32))), before)
    assert [path for path in made.parent.iterdir() if path != made] == []


def test_settings_that_change_the_drawing_have_folders_of_their_own(home: Path) -> None:
    variants = [{}, {"seed": 1}, {"size": 40}, {"classes": ("none", "malignant")}, {"kind": "volume3d"}]
    for settings in variants:
        scan(Config(cases=6, **{"size": 32, **settings}))
    assert len(list((home / "phantoms").iterdir())) == len(variants)
    scan(Config(cases=6, size=32, max_bad_fraction=0.5))
    assert len(list((home / "phantoms").iterdir())) == len(variants)


def _make(home: str) -> list[str]:
    os.environ["MEDRAY_HOME"] = home
    return [str(ref.source) for ref in scan(Config(cases=60, size=32)).refs]


@pytest.mark.slow
def test_two_processes_at_once(home: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        one, two = pool.map(_make, [str(home)] * 2, chunksize=1)
    assert one == two
    assert len(list((home / "phantoms").iterdir())) == 1


def test_the_slower_of_two_processes_takes_what_is_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder appears between the look and the renaming."""
    real = Path.replace

    def late(draft: Path, target: Path) -> Path:
        if draft.is_dir():
            (target / "none").mkdir(parents=True, exist_ok=True)
        return real(draft, target)

    monkeypatch.setattr(Path, "replace", late)
    with pytest.raises(InputError, match="missing_files"):
        scan(Config(cases=6, size=32))
    assert not [path for path in (home / "phantoms").iterdir() if path.name.startswith(".")]


def test_deleted_files_are_missed() -> None:
    gone = Path(str(scan(Config(cases=6, size=32)).refs[3].source))
    gone.unlink()
    with pytest.raises(InputError, match=r"1 of 6 phantom files \(delete the folder"):
        scan(Config(cases=6, size=32))


def test_slices_are_a_class_folder_too() -> None:
    dataset = scan(Config(cases=30, size=32))
    root = Path(str(dataset.refs[0].source)).parents[1]
    again = scan(folder.Config(path=root, subject_pattern="^(s[0-9]+)_"))
    expected = {(ref.source, ref.subject_id, dataset.classes[ref.target[0]]) for ref in dataset.refs}
    assert {(ref.source, ref.subject_id, again.classes[ref.target[0]]) for ref in again.refs} == expected


def test_volumes() -> None:
    dataset = scan(Config(kind="volume3d", cases=12))
    orders = set()
    for ref in dataset.refs:
        image, label = nibabel.load(ref.source), nibabel.load(ref.label_map)
        assert image.shape == label.shape == (32, 32, 24)
        assert image.get_data_dtype() == np.int16
        np.testing.assert_array_equal(image.affine, label.affine)
        np.testing.assert_allclose(image.header.get_zooms(), phantom_volume.SPACING_MM)
        orders.add("".join(nibabel.aff2axcodes(image.affine)))
        mask = np.asarray(label.dataobj)
        assert set(np.unique(mask)) == ({0} if ref.target == (0,) else {0, 1})
        # The chest wall is to the patient's right in whatever order the voxels are stored.
        wall = nibabel.as_closest_canonical(image).get_fdata()
        assert wall[-3:].mean() > wall[:3].mean() + 500
    assert orders == {"RAS", "LPS"}


def test_volumes_are_a_decathlon_too() -> None:
    dataset = scan(Config(kind="volume3d", cases=9))
    root = Path(str(dataset.refs[0].source)).parents[1]
    again = scan(decathlon.Config(path=root))
    assert [(r.source, r.label_map, r.subject_id) for r in again.refs] == [
        (r.source, r.label_map, r.subject_id) for r in dataset.refs
    ]
    assert json.loads((root / "dataset.json").read_text())["labels"] == {"0": "background", "1": "nodule"}


def test_a_nodule_is_round_in_millimetres() -> None:
    """Slices are thicker than pixels, so a ball spans fewer of them."""
    _, labels = phantom_volume.draw(np.random.default_rng(3), 1, 1, 64)
    spans = np.ptp(np.argwhere(labels[0]), axis=0) + 1
    edges = spans * np.array(phantom_volume.SPACING_MM)
    assert edges.max() / edges.min() < 1.15


@pytest.mark.parametrize("classes", [("none",), ("none", "none")])
def test_classes_must_differ(classes: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="two or three different"):
        Config(classes=classes)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_brightness_says_nothing_of_the_class(kind: int) -> None:
    """Mean and deviation of the slices of a class are those of all."""
    rng = np.random.default_rng(0)
    images = phantom_chest.draw(rng, np.full(60, kind), np.arange(60), 64)
    assert abs(images.mean() - 109) < 3.5
    assert abs(images.std(axis=(1, 2)).mean() - 67.5) < 2.5


@pytest.mark.slow
def test_a_linear_model_on_pixels_does_not_solve_it() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    kind = rng.permutation(np.arange(1500) % 3)
    images = np.concatenate(
        [phantom_chest.draw(rng, kind[i : i + 50], np.arange(50), 64) for i in range(0, len(kind), 50)]
    )
    flat = images.reshape(len(kind), -1).astype(np.float32)
    flat = (flat - flat.mean(1, keepdims=True)) / flat.std(1, keepdims=True)
    flat = (flat - flat[:1000].mean(0)) / (flat[:1000].std(0) + 1e-3)
    for strength in (1e-5, 1e-4, 1e-3):
        model = LogisticRegression(C=strength, max_iter=2000).fit(flat[:1000], kind[:1000])
        auroc = roc_auc_score(kind[1000:], model.predict_proba(flat[1000:]), multi_class="ovr")
        assert auroc < 0.75, (strength, auroc)
