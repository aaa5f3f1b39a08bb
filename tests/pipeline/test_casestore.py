"""The store of cases with labels: what read and preprocess give, labels by class, bad cases named and left out."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_discs, draw_volumes, tiny_dense

from medray.datasets.scan import scan
from medray.imaging.geometry import grid_of, onto_label
from medray.imaging.labels import read_label
from medray.imaging.preprocess import preprocess
from medray.imaging.reader import read
from medray.imaging.writer import write_nifti, write_png
from medray.pipeline import casestore
from medray.pipeline.casestore import PLACES, Recipe, build, on_this_node, open_store, recipe_of
from medray.pipeline.shelf import StoreError
from medray.sections.data import PreprocessSection
from medray.types import IGNORED, CaseRef, Dataset

RANGE = PreprocessSection.model_validate({"intensity": {"method": "range", "low": 0, "high": 255}})
ISOTROPIC = PreprocessSection.model_validate({"spacing_mm": [2, 2, 2], "crop_foreground": True})


def dataset_of(folder: Path, name: str = "pairs") -> Dataset:
    return scan(tiny_dense(folder, dataset={"name": name, "path": str(folder)}).dataset)


def picture(folder: Path, name: str, image: np.ndarray, label: np.ndarray | None) -> CaseRef:
    """A case of two PNGs."""
    write_png(folder / f"{name}.png", image)
    if label is not None:
        write_png(folder / f"{name}_label.png", label)
    return CaseRef(name, folder / f"{name}.png", label_map=None if label is None else folder / f"{name}_label.png")


def test_rows_are_what_read_and_preprocess_give(discs: Path, tmp_path: Path) -> None:
    dataset = dataset_of(discs)
    store = build(dataset.refs, recipe_of(dataset, RANGE), tmp_path)
    for row in (0, 11, 23):
        ref = dataset.refs[row]
        assert ref.label_map is not None
        image, mask = preprocess(read(ref.source), RANGE).image, read(ref.label_map).image[0]
        assert store.image(row).dtype == np.uint8, "a lossless preprocessing keeps integers"
        np.testing.assert_array_equal(store.image(row), image)
        np.testing.assert_array_equal(store.label(row), mask == 255)
        assert store.counts[row].tolist() == [(mask == 0).sum(), (mask == 255).sum()]
        assert store.least[row] == image.min()
    assert (store.spatial_dims, store.channels, store.refused) == (2, 1, ())


def test_values_become_indices_in_the_order_of_classes_and_the_ignored_value_is_kept_apart(tmp_path: Path) -> None:
    values = np.array([[0, 7, 9], [9, 3, 0]], np.uint8)
    ref = picture(tmp_path, "a", values * 20, values)
    recipe = Recipe(RANGE, ("back", "nine", "seven"), (0, 9, 7), ignored_value=3)
    store = build([ref], recipe, tmp_path / "stores")
    np.testing.assert_array_equal(store.label(0), [[0, 2, 1], [1, IGNORED, 0]])
    assert store.counts.tolist() == [[2, 2, 1]], "what nobody labelled is of no class"


def test_volumes_keep_their_own_shapes_and_labels_move_with_them(volumes: Path, tmp_path: Path) -> None:
    dataset = dataset_of(volumes, "decathlon")
    recipe = recipe_of(dataset, ISOTROPIC)
    store = build(dataset.refs, recipe, tmp_path)
    assert len({tuple(shape) for shape in store.shapes.tolist()}) > 1
    assert store.in_mm.all()
    for row, ref in enumerate(dataset.refs):
        assert ref.label_map is not None
        raw = read(ref.source)
        case = preprocess(raw, ISOTROPIC)
        label = onto_label(read_label(ref.label_map, raw, recipe.legal_values), grid_of(case))
        np.testing.assert_array_equal(store.label(row), label)
        np.testing.assert_allclose(store.image(row), case.image)
        np.testing.assert_allclose(store.affines[row], case.affine)
        assert tuple(store.shapes[row]) == case.image.shape[1:]
        shifts = list(product((-1, 0, 1), repeat=3))
        moved = [np.roll(store.image(row)[0], shift, (0, 1, 2)) for shift in shifts]
        together = [np.corrcoef(image.ravel(), store.label(row).ravel())[0, 1] for image in moved]
        assert shifts[int(np.argmax(together))] == (0, 0, 0), "image and label lie on each other"


def test_places_are_voxels_of_their_class(volumes: Path, tmp_path: Path) -> None:
    dataset = dataset_of(volumes, "decathlon")
    refs = [*dataset.refs]
    names = ("background", "ball", "core", "nowhere")
    store = build(refs, Recipe(ISOTROPIC, names, (0, 1, 2, 5), None), tmp_path)
    for row in range(len(refs)):
        places = store.places(row)
        assert places.shape == (4, PLACES)
        for value in range(3):
            assert (store.label(row).ravel()[places[value]] == value).all()
            assert len(np.unique(places[value])) > 0.5 * min(PLACES, store.counts[row, value])
        assert (places[3] == -1).all()


def test_each_bad_case_costs_only_itself_and_says_why(tmp_path: Path) -> None:
    image, mask = np.arange(64, dtype=np.uint8).reshape(8, 8), np.zeros((8, 8), np.uint8)
    mask[2:4, 2:4] = 1
    refs = [
        picture(tmp_path, "good", image, mask),
        picture(tmp_path, "other_values", image, mask * 2),
        picture(tmp_path, "other_shape", image, mask[:7]),
        picture(tmp_path, "no_label", image, None),
        picture(tmp_path, "broken", image, mask),
        picture(tmp_path, "nothing_there", image, mask * 0),
    ]
    (tmp_path / "broken.png").write_bytes(b"no image")
    store = build(refs, Recipe(RANGE, ("back", "fore"), (0, 1), None), tmp_path / "stores")
    codes = {refusal.case_id: refusal.code for refusal in store.refused}
    assert codes.pop("broken")
    assert codes == {"other_values": "unknown_class", "other_shape": "shape_mismatch", "no_label": "no_label"}
    assert [refusal.row for refusal in store.refused] == [1, 2, 3, 4]
    assert store.counts[:, 1].tolist() == [4, 0, 0, 0, 0, 0]
    assert store.warnings["empty_label"] == 1


def test_a_label_of_another_place_is_refused(volumes: Path, tmp_path: Path) -> None:
    ref, other = dataset_of(volumes, "decathlon").refs[:2]
    case = read(ref.source)
    away = case.affine.copy()
    away[0, 3] += 40
    write_nifti(tmp_path / "away.nii", np.zeros(case.image.shape[1:], np.uint8), away)
    refs = [other, replace(ref, label_map=tmp_path / "away.nii")]
    store = build(refs, Recipe(ISOTROPIC, ("a", "b", "c"), (0, 1, 2), None), tmp_path / "stores")
    assert [(refusal.row, refusal.code) for refusal in store.refused] == [(1, "affine_mismatch")]


def test_nothing_usable_and_mixed_kinds_are_errors_that_leave_no_store(tmp_path: Path) -> None:
    grey, colour = np.zeros((8, 8), np.uint8), np.random.default_rng(0).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    grey[2] = 9
    recipe = Recipe(RANGE, ("back", "fore"), (0, 1), None)
    unlabelled = [picture(tmp_path, f"bare{index}", grey, None) for index in range(3)]
    with pytest.raises(StoreError, match="none of 3 cases can be read; the first says bare0: no_label"):
        build(unlabelled, recipe, tmp_path / "stores")
    mixed = [picture(tmp_path, "grey", grey, grey * 0), picture(tmp_path, "colour", colour, grey * 0)]
    with pytest.raises(StoreError, match=r"colour has 3 channels and 2 axes, the first 1 and 2; set preprocess.chann"):
        build(mixed, recipe, tmp_path / "stores")
    assert not [item for item in (tmp_path / "stores").iterdir() if item.is_dir()]


def test_a_store_is_built_once(discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = dataset_of(discs)
    recipe = recipe_of(dataset, RANGE)
    first = build(dataset.refs, recipe, tmp_path)
    monkeypatch.setattr(casestore, "_fill", lambda *_, **__: pytest.fail("built again"))
    assert build(dataset.refs, recipe, tmp_path).key == first.key


def test_the_key_follows_images_labels_classes_and_preprocessing(tmp_path: Path) -> None:
    folder = draw_discs(tmp_path / "discs", cases=3)
    refs = dataset_of(folder).refs
    recipe = Recipe(RANGE, ("back", "fore"), (0, 255), None)

    def key(recipe: Recipe = recipe, refs: tuple[CaseRef, ...] = refs) -> str:
        return build(refs, recipe, tmp_path / "stores").key

    first = key()
    others = [
        key(refs=refs[::-1]),
        key(replace(recipe, classes=("back", "lesion"))),
        key(replace(recipe, ignored_value=7)),
        key(replace(recipe, preprocess=PreprocessSection())),
        key(Recipe(RANGE, ("fore", "back"), (255, 0), None)),
    ]
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert key(refs=dataset_of(copy).refs) == first, "the same content elsewhere is the same store"
    assert refs[0].label_map is not None
    write_png(refs[0].label_map, np.zeros((32, 32), np.uint8))
    others.append(key())
    assert len({first, *others}) == len(others) + 1


def test_the_index_holds_what_a_person_is_erased_by(discs: Path, tmp_path: Path) -> None:
    dataset = dataset_of(discs)
    store = build(dataset.refs, recipe_of(dataset, RANGE), tmp_path)
    sources = set(json.loads((store.folder / "index.json").read_text())["sources"])
    files = [file for ref in dataset.refs for file in (ref.source, ref.label_map)]
    assert sources == {hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert not any(ref.case_id in (store.folder / "index.json").read_text() for ref in dataset.refs)


def test_another_node_copies_or_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "scratch"))
    dataset = dataset_of(draw_volumes(tmp_path / "volumes", cases=2), "decathlon")
    recipe = recipe_of(dataset, ISOTROPIC)
    store = build(dataset.refs, recipe, tmp_path / "stores")
    assert on_this_node(store.folder, dataset.refs, recipe).folder == store.folder
    index = json.loads((store.folder / "index.json").read_text())
    (store.folder / "index.json").write_text(json.dumps({**index, "host": "another"}))
    copied = on_this_node(store.folder, dataset.refs, recipe)
    assert copied.folder == tmp_path / "scratch" / "medray-stores" / store.key
    label = np.array(copied.label(1))
    shutil.rmtree(store.folder)
    shutil.rmtree(copied.folder)
    np.testing.assert_array_equal(on_this_node(store.folder, dataset.refs, recipe).label(1), label)


def test_a_half_written_store_is_not_taken_for_whole(discs: Path, tmp_path: Path) -> None:
    dataset = dataset_of(discs)
    store = build(dataset.refs, recipe_of(dataset, RANGE), tmp_path)
    (store.folder / "index.json").unlink()
    with pytest.raises(StoreError, match="no whole store"):
        open_store(store.folder, dataset.refs)
    assert build(dataset.refs, recipe_of(dataset, RANGE), tmp_path).key == store.key, "it is built again"
