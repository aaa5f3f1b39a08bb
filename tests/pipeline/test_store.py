"""The store: built once, shared, whole or absent; a bad case costs only itself."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_folder, tiny

from medray.datasets.scan import scan
from medray.imaging.preprocess import preprocess
from medray.imaging.reader import read
from medray.imaging.writer import write_png
from medray.pipeline import store as stores
from medray.pipeline.loader import Share, train_batches
from medray.pipeline.prepare import DataRefused, prepare
from medray.pipeline.shelf import StoreError
from medray.pipeline.store import build, on_this_node, open_store, store_key
from medray.sections.data import PreprocessSection
from medray.training.learner import Learner
from medray.training.world import World
from medray.types import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return draw_folder(tmp_path / "images")


def refs_of(folder: Path):
    return scan(tiny(folder).dataset).refs


RANGE = PreprocessSection.model_validate({"intensity": {"method": "range", "low": 0, "high": 255}})


def test_rows_are_what_read_and_preprocess_give(folder: Path, tmp_path: Path) -> None:
    refs = refs_of(folder)
    store = build(refs, RANGE, tmp_path / "stores")
    assert store.images.dtype == np.uint8, "a lossless preprocessing keeps integers"
    for row in (0, 7, 39):
        np.testing.assert_array_equal(store.images[row], preprocess(read(refs[row].source), RANGE).image)


def test_a_store_is_built_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refs = refs_of(folder)
    first = build(refs, RANGE, tmp_path)
    monkeypatch.setattr(stores, "_fill", lambda *_, **__: pytest.fail("built again"))
    assert build(refs, RANGE, tmp_path).folder == first.folder


def test_key_follows_content_order_and_preprocessing(folder: Path, tmp_path: Path) -> None:
    refs = refs_of(folder)
    key = store_key(refs, RANGE, tmp_path)
    assert key == store_key(refs, RANGE, tmp_path)
    assert key != store_key(refs[::-1], RANGE, tmp_path)
    assert key != store_key(refs, PreprocessSection(), tmp_path)
    write_png(refs[0].source, np.zeros((16, 16), np.uint8))
    assert key != store_key(refs, RANGE, tmp_path), "a changed file changes the key"


def test_the_same_content_elsewhere_is_the_same_store(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert store_key(refs_of(folder), RANGE, tmp_path) == store_key(refs_of(copy), RANGE, tmp_path)


def test_processes_that_build_at_once_get_one_store(folder: Path, tmp_path: Path) -> None:
    refs = refs_of(folder)
    with ThreadPoolExecutor(4) as pool:
        built = list(pool.map(lambda _: build(refs, RANGE, tmp_path), range(4)))
    assert len({store.folder for store in built}) == 1
    assert not list(tmp_path.glob("*.partial-*"))


def test_one_unreadable_image_among_100_is_left_out(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "images", cases=100)
    (folder / "class0" / "case000.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")
    prepared = prepare(tiny(folder), tmp_path / "stores")
    (refusal,) = prepared.refused
    assert "case000" in refusal.case_id
    assert refusal.row not in {*prepared.split.train, *prepared.split.val, *prepared.split.test}
    assert sum(len(prepared.rows(name)) for name in ("train", "val", "test")) == 99


def test_too_many_unreadable_images_refuse_the_run(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "images", cases=100)
    for index in (0, 2, 4):
        (folder / "class0" / f"case{index:03d}.png").write_bytes(b"no image")
    with pytest.raises(
        DataRefused, match=r"3 of 100 cases cannot be used, more than dataset.max_bad_fraction=0.01"
    ) as e:
        prepare(tiny(folder), tmp_path / "stores")
    assert len(e.value.refused) == 3


@pytest.mark.parametrize(("limit", "bad", "refused"), [(0.1, 3, False), (0.1, 4, False), (0.1, 5, True), (0, 1, True)])
def test_max_bad_fraction_is_the_share_that_may_be_unreadable(
    folder: Path, tmp_path: Path, limit: float, bad: int, refused: bool
) -> None:
    for index in range(bad):
        (folder / "class0" / f"case{2 * index:03d}.png").write_bytes(b"no image")
    experiment = tiny(folder, dataset={"name": "folder", "path": str(folder), "max_bad_fraction": limit})
    if refused:
        with pytest.raises(DataRefused, match=rf"{bad} of 40 cases .* more than dataset.max_bad_fraction={limit:g}"):
            prepare(experiment, tmp_path / "stores")
    else:
        assert len(prepare(experiment, tmp_path / "stores").refused) == bad


def test_named_columns_of_a_table_reach_split_and_weights(folder: Path, tmp_path: Path) -> None:
    """Three images of each person stay together; each case weighs in its batch what its row says."""
    images = sorted(folder.rglob("*.png"))[:36]
    rows = [f"{image},{image.parent.name},p{index // 3},{1 + index}" for index, image in enumerate(images)]
    (tmp_path / "table.csv").write_text("\n".join(["image,label,person,importance", *rows]))
    columns = {"subject_column": "person", "weight_column": "importance"}
    table = {"name": "table", "path": str(tmp_path / "table.csv")}
    experiment = tiny(folder, dataset={**table, **columns})
    prepared = prepare(experiment, tmp_path / "stores")
    for name in ("train", "val", "test"):
        people = [prepared.dataset.refs[row].subject for row in prepared.rows(name).tolist()]
        assert {people.count(person) for person in people} == {3}
    learner = Learner(experiment, prepared, World())
    np.testing.assert_array_equal(learner.feed.weights, np.arange(1, 37))
    batch = next(train_batches(learner.feed, learner.rows["train"], learner.sampling, 0, Share()))
    np.testing.assert_allclose(batch.weight, (1 + batch.index) / (1 + batch.index).sum(), rtol=1e-6)


def test_a_named_split_column_is_the_split(folder: Path, tmp_path: Path) -> None:
    images = sorted(folder.rglob("*.png"))
    parts = ["train", "train", "val", "test"]
    rows = [f"{image},{image.parent.name},{parts[index % 4]}" for index, image in enumerate(images)]
    (tmp_path / "table.csv").write_text("\n".join(["image,label,part", *rows]))
    table = {"name": "table", "path": str(tmp_path / "table.csv"), "split_column": "part"}
    prepared = prepare(tiny(folder, dataset=table, split={"method": "auto"}), tmp_path / "stores")
    assert prepared.rows("val").tolist() == list(range(2, 40, 4))
    assert prepared.rows("test").tolist() == list(range(3, 40, 4))


@pytest.mark.parametrize(
    ("image", "code", "hint"),
    [
        (np.zeros((18, 16), np.uint8), "shape_mismatch", "preprocess.size"),
        (
            np.dstack([np.arange(256, dtype=np.uint8).reshape(16, 16)] * 2 + [np.zeros((16, 16), np.uint8)]),
            "wrong_channels",
            "preprocess.channels",
        ),
    ],
)
def test_a_case_unlike_the_first_is_named_with_its_mend(
    folder: Path, tmp_path: Path, image: np.ndarray, code: str, hint: str
) -> None:
    write_png(folder / "class1" / "case001.png", image)
    (refusal,) = build(refs_of(folder), RANGE, tmp_path / "stores").refused
    assert refusal.code == code
    assert hint in refusal.hint


def test_floats_do_not_go_into_a_store_of_integers() -> None:
    with pytest.raises(InputError, match="dtype_mismatch: float32 pixels, the first case has uint8"):
        stores._check_fits(np.zeros((1, 4, 4), np.float32), np.zeros((9, 1, 4, 4), np.uint8))


def test_files_that_the_manifest_does_not_hold_refuse_the_run_by_name(folder: Path, tmp_path: Path) -> None:
    manifest = folder / "MANIFEST.sha256"
    listed = sorted(folder.rglob("*.png"))
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(folder)}" for file in listed]
    manifest.write_text("\n".join(lines))
    dataset = {"name": "folder", "path": str(folder), "manifest": str(manifest)}
    assert prepare(tiny(folder, dataset=dataset), tmp_path / "stores").refused == ()
    listed[3].write_bytes(listed[4].read_bytes())
    with pytest.raises(DataRefused, match=rf"(?s)1 files are not as MANIFEST.*{listed[3].name}: changed"):
        prepare(tiny(folder, dataset=dataset), tmp_path / "stores")


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "images", cases=4)
    for file in folder.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(StoreError, match="none of 4 cases can be read; the first says"):
        build(refs_of(folder), RANGE, tmp_path / "stores")


def test_an_interrupted_build_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    refs = refs_of(folder)

    def interrupted(_function, _items):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(refs, RANGE, tmp_path / "stores", interrupted)
    assert not [item for item in (tmp_path / "stores").iterdir() if item.is_dir()]


def test_a_half_written_store_is_not_taken_for_whole(folder: Path, tmp_path: Path) -> None:
    store = build(refs_of(folder), RANGE, tmp_path)
    (store.folder / "index.json").unlink()
    with pytest.raises(StoreError, match="no whole store"):
        open_store(store.folder, refs_of(folder))
    assert build(refs_of(folder), RANGE, tmp_path).images.shape == store.images.shape, "it is built again"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_an_error_that_says_what_to_do(folder: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=8m none {disk}") != 0:  # noqa: S605
        pytest.skip("no right to mount")
    try:
        with pytest.raises(StoreError, match=r"needs 0 MiB, \d+ MiB are free; make room, set MEDRAY_HOME"):
            build(refs_of(folder), RANGE, disk)
        assert not [item for item in disk.iterdir() if item.is_dir()]
    finally:
        os.system(f"umount {disk}")  # noqa: S605


def test_writes_to_an_open_store_do_not_reach_the_disk(folder: Path, tmp_path: Path) -> None:
    store = build(refs_of(folder), RANGE, tmp_path)
    store.images[0] = 7
    assert not (open_store(store.folder, refs_of(folder)).images[0] == 7).all()


def test_another_node_copies_or_builds(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "scratch"))
    refs = refs_of(folder)
    store = build(refs, RANGE, tmp_path / "stores")
    assert on_this_node(store.folder, refs, RANGE).folder == store.folder
    index = json.loads((store.folder / "index.json").read_text())
    (store.folder / "index.json").write_text(json.dumps({**index, "host": "another"}))
    copied = on_this_node(store.folder, refs, RANGE)
    assert copied.folder == tmp_path / "scratch" / "medray-stores" / store.key
    shutil.rmtree(store.folder)
    shutil.rmtree(copied.folder)
    np.testing.assert_array_equal(on_this_node(store.folder, refs, RANGE).images, copied.images)


def test_float16_store(folder: Path, tmp_path: Path) -> None:
    cfg = PreprocessSection.model_validate({"intensity": {"method": "zscore"}, "dtype": "float16"})
    assert build(refs_of(folder), cfg, tmp_path).images.dtype == np.float16


def test_fingerprints_follow_data_and_split(folder: Path, tmp_path: Path) -> None:
    one = prepare(tiny(folder), tmp_path)
    other = prepare(tiny(folder, split={"method": "fraction", "val": 0.2, "test": 0.2, "seed": 5}), tmp_path)
    assert one.fingerprint == other.fingerprint
    assert one.split_fingerprint != other.split_fingerprint
