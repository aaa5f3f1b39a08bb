"""The check finds every planted fault and nothing else; a clean set has none."""

from __future__ import annotations

import csv
import io
import json
import pickle
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medray.config import Experiment, parse
from medray.imaging import reader
from medray.imaging.writer import write_nifti, write_png
from medray.pipeline import twins
from medray.pipeline.check import Check, check
from medray.pipeline.findings import Finding, boxes, classes, refused, unlabelled
from medray.pipeline.outliers import outliers
from medray.pipeline.pictures import Sitting, planes
from medray.pipeline.survey import (
    Measured,
    Survey,
    chunks,
    measure,
    measure_chunk,
    orientation_of,
    shrink,
    thumbnail,
)
from medray.pipeline.verdict import as_csv, as_page, as_text, headline
from medray.sections.data import PreprocessSection
from medray.types import Array, Box, Case, CaseRef, Dataset

SIZE = 16
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
SPLITS = ["training"] * 40 + ["validation"] * 10 + ["test"] * 10


def volume(number: int) -> Array:
    """(16, 16, 16) int16, blurred noise: no two are alike."""
    draw = np.random.default_rng(number)
    coarse = draw.normal(0, 200, (4, 4, 4)).repeat(4, 0).repeat(4, 1).repeat(4, 2)
    return (1000 + coarse + draw.normal(0, 20, coarse.shape)).astype(np.int16)


def labels(number: int) -> Array:
    found = np.zeros((SIZE, SIZE, SIZE), np.uint8)
    at = number % 8
    found[at : at + 6, 4:9, 4:9] = 1
    found[at : at + 6, 9:12, 4:9] = 2
    return found


@pytest.fixture(scope="session")
def clean_volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 volumes of 30 subjects with label maps, split by the dataset; do not change them."""
    root = tmp_path_factory.mktemp("volumes")
    tree: dict[str, Any] = {"labels": {"0": "background", "1": "organ", "2": "tumour"}}
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir()
    for number, split in enumerate(SPLITS):
        write_nifti(root / f"imagesTr/{number:02d}.nii.gz", volume(number), AFFINE)
        write_nifti(root / f"labelsTr/{number:02d}.nii.gz", labels(number), AFFINE)
        item = {"image": f"imagesTr/{number:02d}.nii.gz", "label": f"labelsTr/{number:02d}.nii.gz"}
        tree.setdefault(split, []).append({**item, "subject": f"s{number // 2}"})
    (root / "dataset.json").write_text(json.dumps(tree))
    return root


def experiment(name: str, path: Path, **sections: object) -> Experiment:
    tree = {"name": "set", "task": {"name": "classification"}, "network": {"name": "plain"}}
    return parse({**tree, "dataset": {"name": name, "path": str(path)}, **sections})


def codes(done: Check) -> dict[str, tuple[str, ...]]:
    return {finding.code: finding.cases for finding in done.findings}


def test_clean_volumes_have_no_finding(clean_volumes: Path) -> None:
    steps: list[tuple[int, int]] = []
    done = check(experiment("decathlon", clean_volumes), watch=lambda *step: steps.append(step))
    assert done.findings == ()
    assert done.errors == 0
    assert headline(done) == "Ready to train"
    assert steps[-1] == (60, 60)
    assert done.survey.cases[0].voxels == (SIZE**3 - 6 * 8 * 5, 6 * 5 * 5, 6 * 3 * 5)


def test_every_fault_in_volumes_is_found_and_nothing_else(clean_volumes: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(clean_volumes, tmp_path / "set"))

    def image(number: int) -> Path:
        return root / f"imagesTr/{number:02d}.nii.gz"

    def label(number: int) -> Path:
        return root / f"labelsTr/{number:02d}.nii.gz"

    image(0).write_bytes(image(0).read_bytes()[:-300])
    write_nifti(label(2), np.where(labels(2) == 2, 7, labels(2)).astype(np.uint8), AFFINE)
    shifted = AFFINE.copy()
    shifted[0, 3] += 10
    write_nifti(label(4), labels(4), shifted)
    broken = volume(6).astype(np.float32)
    broken[3, 3, 3] = np.nan
    write_nifti(image(6), broken, AFFINE)
    # As .nii: not the same file, but the same pixels.
    write_nifti(image(56), volume(8), AFFINE)
    write_nifti(image(52), (volume(10) * 1.1 + 20).astype(np.int16), AFFINE)
    write_nifti(image(14), volume(12), AFFINE)
    coarse = np.diag([8.0, 8.0, 16.0, 1.0])
    write_nifti(image(16), volume(16), coarse)
    write_nifti(label(16), labels(16), coarse)
    write_nifti(label(18), np.zeros_like(labels(18)), AFFINE)
    write_nifti(image(20), volume(20) * np.int16(15), AFFINE)
    write_nifti(label(22), labels(22)[:-1], AFFINE)
    write_nifti(image(24), np.full((SIZE,) * 3, 1000, np.int16), AFFINE)
    tree = json.loads((root / "dataset.json").read_text())
    tree["test"][9]["subject"] = "s13"
    (root / "dataset.json").write_text(json.dumps(tree))

    done = check(experiment("decathlon", root))
    name = "imagesTr/{:02d}".format
    assert codes(done) == {
        "truncated": (name(0),),
        "unknown_class": (name(2),),
        "affine_mismatch": (name(4),),
        "non_finite_voxels": (name(6),),
        "duplicate_across_splits": (name(8), name(56)),
        "near_duplicate_across_splits": (name(10), name(52)),
        "label_conflict": (name(12), name(14)),
        "odd_spacing": (name(16),),
        "empty_label": (name(18),),
        "odd_intensity": (name(20),),
        "shape_mismatch": (name(22),),
        "constant_image": (name(24),),
        "subject_in_two_splits": (name(26), name(27), name(59)),
    }
    severity = {finding.code: finding.severity for finding in done.findings}
    assert severity.pop("truncated") == severity["label_conflict"] == severity["subject_in_two_splits"] == "error"
    assert severity["odd_spacing"] == severity["empty_label"] == "warning"
    assert all(finding.mend and finding.detail for finding in done.findings)
    ranks = [finding.severity for finding in done.findings]
    assert ranks == sorted(ranks), "errors come first"


@pytest.fixture(scope="session")
def clean_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 grey PNGs in train, val and test with two classes and a folder per subject; do not change them."""
    root = tmp_path_factory.mktemp("pictures")
    for number, split in enumerate(SPLITS):
        folder = root / split / f"class{number % 2}" / f"p{number}"
        folder.mkdir(parents=True)
        write_png(folder / f"{number:02d}.png", picture(number))
    return root


def picture(number: int) -> Array:
    draw = np.random.default_rng(number)
    coarse = draw.uniform(20, 180, (8, 8)).repeat(5, 0).repeat(5, 1)
    return (coarse + draw.uniform(0, 30, coarse.shape)).astype(np.uint8)


def test_every_fault_in_pictures_is_found_and_nothing_else(clean_images: Path, tmp_path: Path) -> None:
    assert check(experiment("folder", clean_images)).findings == ()
    root = Path(shutil.copytree(clean_images, tmp_path / "set"))

    def file(number: int, label: int | None = None) -> Path:
        return root / SPLITS[number] / f"class{number % 2 if label is None else label}" / f"p{number}/{number:02d}.png"

    file(0).write_bytes(file(0).read_bytes()[:-40])
    write_png(file(2), np.stack([picture(2), picture(102), picture(202)], axis=-1))
    write_png(file(3), picture(1))
    write_png(file(5), picture(4))
    write_png(file(41), picture(7))
    write_png(file(8), np.clip(picture(6) * 1.15, 0, 255).astype(np.uint8))
    write_png(file(42), picture(10) // 2 + 3)
    write_png(file(12), picture(12).repeat(9, 0).repeat(9, 1))
    write_png(file(14), np.full((40, 40), 80, np.uint8))
    file(16).write_bytes(b"GIF89a" + bytes(50))
    write_png(file(18), (picture(18) * np.uint16(200)))
    (root / "test/class0/p20").mkdir()
    write_png(root / "test/class0/p20/another.png", picture(99))
    found = codes(check(experiment("folder", root)))
    paths = {number: file(number).relative_to(root).as_posix() for number in range(60)}
    assert {code: set(cases) for code, cases in found.items()} == {
        "truncated": {paths[0]},
        "wrong_channels": {paths[2]},
        "duplicate": {paths[1], paths[3]},
        "label_conflict": {paths[4], paths[5]},
        "duplicate_across_splits": {paths[7], paths[41]},
        "near_duplicate": {paths[6], paths[8]},
        "near_duplicate_across_splits": {paths[10], paths[42]},
        "odd_shape": {paths[12]},
        "constant_image": {paths[14]},
        "unsupported_type": {paths[16]},
        "odd_intensity": {paths[18]},
        "odd_dtype": {paths[18]},
        "subject_in_two_splits": {paths[20], "test/class0/p20/another.png"},
    }


def made(count: int, change: Callable[[int, Measured], Measured] | None = None, **more: Any) -> Survey:
    """A survey of `count` usual cases, each put through `change`; `more` replaces fields of the survey."""
    usual = Measured(channels=1, shape=(30, 40), spacing=(1.0, 1.0), dtype="uint8", p01=0.0, p99=200.0, high=255.0)
    cases = tuple(change(row, usual) if change else usual for row in range(count))
    refs = tuple(CaseRef(f"c{row}", Path(f"c{row}.png"), (row % 2,)) for row in range(count))
    places = tuple("train" if row < 0.7 * count else "test" for row in range(count))
    fields = {"dataset": Dataset(refs, ("a", "b")), "cases": cases, "places": places, "max_bad_fraction": 0.01}
    return Survey(**{**fields, "preprocess": PreprocessSection(), **more})


def with_refs(survey: Survey, change: Callable[[int, CaseRef], CaseRef]) -> Survey:
    refs = tuple(change(row, ref) for row, ref in enumerate(survey.dataset.refs))
    return replace(survey, dataset=replace(survey.dataset, refs=refs))


def only(found: Sequence[Finding]) -> Finding:
    assert len(found) == 1, found
    return found[0]


def test_refusals_are_errors_only_where_they_stop_a_training() -> None:
    bad = lambda row, case: measure(CaseRef("x", Path("/nowhere")), (0,)) if row == 3 else case  # noqa: E731
    few = only(list(refused(made(100, bad))))
    assert (few.code, few.severity, few.cases) == ("not_found", "warning", ("c3",))
    assert only(list(refused(made(99, bad)))).severity == "error"
    assert only(list(refused(made(20, bad, max_bad_fraction=0.1)))).severity == "warning"


def test_channels_matter_where_preprocess_keeps_them() -> None:
    colour = lambda row, case: replace(case, channels=3) if row == 5 else case  # noqa: E731
    assert only(list(refused(made(40, colour)))).code == "wrong_channels"
    survey = made(40, colour, preprocess=PreprocessSection(channels="gray"))
    assert not list(refused(survey))
    assert only(list(outliers(survey))).code == "odd_channels"
    flat = lambda row, case: replace(case, shape=(30, 40, 20)) if row == 5 else case  # noqa: E731
    assert only(list(refused(made(40, flat)))).code == "mixed_rank"


@pytest.mark.parametrize(
    ("code", "fields"),
    [
        ("odd_spacing", {"spacing": (1.0, 3.5)}),
        ("odd_spacing", {"spacing": (0.3, 0.3)}),
        ("odd_shape", {"shape": (30, 130)}),
        ("odd_intensity", {"p99": 2500.0}),
        ("odd_intensity", {"p01": 1000.0, "p99": 1200.0}),
        ("odd_dtype", {"dtype": "float32"}),
        ("odd_modality", {"modality": "CT"}),
    ],
)
def test_outliers(code: str, fields: dict[str, Any]) -> None:
    def odd(row: int, case: Measured) -> Measured:
        case = replace(case, modality="MR")
        return replace(case, **fields) if row == 7 else case

    found = only(list(outliers(made(40, odd))))
    assert (found.code, found.severity, found.cases) == (code, "warning", ("c7",))
    assert not list(outliers(made(9, odd))), "of few cases nobody can say"
    if code in ("odd_dtype", "odd_modality"):
        half = made(40, lambda row, case: odd(7 if row % 2 else 0, case))
        assert not list(outliers(half)), "what many are is not odd"


def test_a_set_that_scatters_by_nature_has_no_outliers() -> None:
    draw = np.random.default_rng(0)

    def various(_: int, case: Measured) -> Measured:
        rows, columns = np.exp(draw.normal(4, 0.7, 2))
        return replace(case, shape=(int(rows), int(columns)), p99=float(np.exp(draw.normal(5, 0.8))))

    assert not list(outliers(made(300, various)))


def test_orientation_counts_where_it_is_kept() -> None:
    turned = lambda row, case: replace(case, orientation="LPS" if row == 2 else "RAS")  # noqa: E731
    assert not list(outliers(made(40, turned)))
    raw = made(40, turned, preprocess=PreprocessSection(orientation=None))
    assert only(list(outliers(raw))).code == "odd_orientation"


def test_classes_missing_and_rare() -> None:
    train_only = with_refs(made(40), lambda row, ref: replace(ref, target=(0 if row >= 28 else row % 2,)))
    assert only(list(classes(train_only))).code == "class_not_in_split"
    test_only = with_refs(made(40), lambda row, ref: replace(ref, target=(row % 2 if row >= 28 else 0,)))
    missing = only(list(classes(test_only)))
    assert (missing.code, missing.severity) == ("class_not_in_train", "error")
    rare = with_refs(made(200), lambda row, ref: replace(ref, target=(int(row in (0, 199)),)))
    assert only(list(classes(rare))).code == "imbalance"
    assert not list(classes(made(40)))


def test_boxes() -> None:
    def marked(low: tuple[float, ...], high: tuple[float, ...]) -> Survey:
        return with_refs(made(10), lambda row, ref: replace(ref, boxes=(Box(low, high, 0),) if row == 4 else ()))

    assert not list(boxes(marked((-0.5, -0.5), (29.5, 39.5))))
    outside = [((0, 0), (29, 60)), ((-9, 0), (5, 5))]
    for low, high in [*outside, ((5, 5), (5, 9)), ((9, 0), (3, 3)), ((0, 0, 0), (1, 1, 1))]:
        found = only(list(boxes(marked(low, high))))
        assert (found.code, found.severity, found.cases) == ("bad_box", "error", ("c4",))


def test_label_maps_that_are_missing() -> None:
    survey = with_refs(made(5), lambda row, ref: replace(ref, target=(), label_map=Path("m") if row else None))
    assert only(list(unlabelled(survey))).cases == ("c0",)
    bare = with_refs(made(5), lambda _, ref: replace(ref, target=()))
    assert only(list(unlabelled(bare))).code == "no_labels"


def test_an_impossible_split_is_a_finding(image_folder: Path, clean_images: Path) -> None:
    done = check(experiment("folder", image_folder, split={"method": "given"}))
    assert "no_split" in codes(done)
    done = check(experiment("folder", clean_images, split={"method": "kfold", "folds": 50}))
    assert "too few" in {finding.code: finding.detail for finding in done.findings}["no_split"]


def test_a_layout_that_is_refused_is_the_finding(tmp_path: Path) -> None:
    (tmp_path / "class0").mkdir()
    done = check(experiment("folder", tmp_path))
    assert list(codes(done)) == ["empty_class"]
    assert headline(done) == "1 thing would spoil a training"
    assert as_csv(done).count("\n") == 1
    assert not as_page(done, "set", "next").sheets
    assert "empty_class" in as_text(done)


def test_a_file_that_the_manifest_does_not_hold_is_named(clean_images: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(clean_images, tmp_path / "images"))
    one = sorted(data.rglob("*.png"))[0]
    manifest = tmp_path / "MANIFEST"
    manifest.write_text(f"{'0' * 64}  {one.relative_to(tmp_path)}\n")
    tree = {"name": "folder", "path": str(data), "manifest": str(manifest)}
    (finding,) = check(experiment("folder", data, dataset=tree)).findings
    assert (finding.code, finding.severity) == ("altered_files", "error")
    assert "not listed" in finding.detail


def test_near_copies_of_one_subject_in_one_split_are_no_finding(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"class{number % 2}/p{number}").mkdir(parents=True)
        write_png(tmp_path / f"class{number % 2}/p{number}/a.png", picture(number))
    write_png(tmp_path / "class0/p0/b.png", picture(0) // 2 + 1)
    split = {"val": 0.2, "test": 0.2}
    assert not check(experiment("folder", tmp_path, split=split)).findings
    shutil.move(tmp_path / "class0/p0/b.png", tmp_path / "class0/p2/b.png")
    found = only(check(experiment("folder", tmp_path, split=split)).findings)
    assert found.code.startswith("near_duplicate")
    assert {case.split("/")[1] for case in found.cases} == {"p0", "p2"}


def test_thumbnails_and_hashes() -> None:
    draw = np.random.default_rng(0)
    photos = draw.uniform(0, 255, (40, 8, 8)).repeat(16, 1).repeat(16, 2) + draw.normal(0, 9, (40, 128, 128))
    small = np.stack([thumbnail(Case(str(i), photo[None], np.eye(4))) for i, photo in enumerate(photos)])
    brighter = np.stack([thumbnail(Case("x", 1.3 * photo[None, ::2, ::2] + 40, np.eye(4))) for photo in photos])
    pairs = twins.alike(np.concatenate([small, brighter]), np.full(80, -1))
    assert pairs == [(row, row + 40) for row in range(40)]
    assert twins.alike(np.concatenate([small, brighter]), np.arange(80) % 40 - 1) == [(0, 40)], "one owner each"
    assert twins.joined([(1, 2), (2, 5), (3, 4)]) == [(1, 2, 5), (3, 4)]
    assert twins.equal({0: "a", 3: "b", 7: "a"}) == [(0, 7)]
    assert not twins.alike(np.zeros((3, 64, 64), np.uint8), np.full(3, -1)), "an empty picture is like no other"


def test_shrink_is_the_mean_of_blocks_and_repeats() -> None:
    image = np.arange(12, dtype=np.int16).reshape(3, 4)
    assert shrink(image, (3, 2)).tolist() == [[0.5, 2.5], [4.5, 6.5], [8.5, 10.5]]
    assert shrink(image, (6, 4))[::2].tolist() == image.tolist()
    large = np.random.default_rng(0).integers(0, 255, (2050, 2048), dtype=np.uint8)
    blocks = [large[start * 2050 // 64 : (start + 1) * 2050 // 64].mean(axis=0) for start in range(64)]
    assert np.allclose(shrink(large, (64, 64)), np.reshape(blocks, (64, 64, 32)).mean(axis=2))


def test_the_largest_numbers_are_measured_without_overflow(tmp_path: Path) -> None:
    image = np.linspace(-3e38, 3e38, 4096).reshape(16, 16, 16).astype(np.float32)
    write_nifti(tmp_path / "image.nii", image, AFFINE)
    found = measure(CaseRef("x", tmp_path / "image.nii"), (0, 1))
    assert found.high == pytest.approx(3e38)
    assert abs(found.mean) < 1e36
    assert found.thumbnail is not None
    assert found.thumbnail.max() == 255


def test_a_label_map_of_a_set_without_classes_is_read_all_the_same(clean_volumes: Path) -> None:
    ref = CaseRef("x", clean_volumes / "imagesTr/02.nii.gz", label_map=clean_volumes / "labelsTr/02.nii.gz")
    found = measure(ref, ())
    assert (found.faults, found.voxels) == ((), ())
    assert found.label_sha256


def test_voxels_that_nobody_labelled_are_of_no_class(clean_volumes: Path, tmp_path: Path) -> None:
    root = tmp_path / "Dataset001_Ignore"
    for kind, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (root / kind).mkdir(parents=True)
        for number in range(8):
            shutil.copy(clean_volumes / kind / f"{number:02d}.nii.gz", root / kind / f"{number:02d}{ending}")
    tree = {"channel_names": {"0": "CT"}, "numTraining": 8, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps({**tree, "labels": {"background": 0, "organ": 1, "ignore": 2}}))
    done = check(experiment("nnunet", root))
    assert done.survey.labels(0) == (1,)
    rows = list(csv.DictReader(io.StringIO(as_csv(done))))
    assert set(rows[0]) >= {"voxels background", "voxels organ"}
    assert rows[0]["classes"] == "organ"
    assert as_page(done, "set", "next").sheets


def test_orientation_letters() -> None:
    affine = np.zeros((4, 4))
    affine[0, 1], affine[1, 2], affine[2, 0], affine[3, 3] = -2, 1, -1, 1
    assert orientation_of(Case("x", np.zeros((1, 2, 3, 4)), affine)) == "ILA"
    assert orientation_of(Case("x", np.zeros((1, 2, 3)), np.eye(4))) == ""


def test_every_case_is_a_row_of_the_table(clean_volumes: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(clean_volumes, tmp_path / "set"))
    (root / "imagesTr/03.nii.gz").write_bytes(b"nothing")
    done = check(experiment("decathlon", root))
    rows = list(csv.DictReader(io.StringIO(as_csv(done))))
    assert len(rows) == 60
    assert (rows[3]["code"], rows[3]["findings"], rows[3]["shape"]) == ("unsupported_type", "unsupported_type", "")
    assert (rows[4]["shape"], rows[4]["spacing"], rows[4]["orientation"]) == ("16x16x16", "1x1x2", "RAS")
    assert (rows[4]["split"], rows[4]["subject"], rows[4]["dtype"]) == ("train", "s2", "int16")
    assert rows[4]["voxels tumour"] == "90"
    assert float(rows[4]["low"]) <= float(rows[4]["p01"]) < float(rows[4]["mean"]) < float(rows[4]["p99"])
    assert len({row["sha256"] for row in rows}) == 60


def test_the_text_is_safe_for_a_terminal(clean_images: Path) -> None:
    done = check(experiment("folder", clean_images))
    evil = Finding("truncated", "error", "cut", "copy", ("a\x1b[2J\r\nb",))
    text = as_text(replace(done, findings=(evil,)))
    assert "\x1b" not in text
    assert "\r" not in text
    assert "mend: copy" in text
    assert "1 thing would spoil a training" in text


def test_cases_are_read_by_the_reader_that_is_given(clean_images: Path) -> None:
    read: list[Any] = []

    def reading(source: Any) -> Case:
        read.append(source)
        return reader.read(source)

    done = check(experiment("folder", clean_images), read=reading)
    assert len(read) == 60
    page = as_page(done, "set", "medray train", read=reading)
    assert len(read) > 60, "pictures too"
    assert page.ready
    assert {sheet.title for sheet in page.sheets} == {"Class class0", "Class class1"}
    assert [figure.caption for figure in page.figures] == ["Cases of each class", "Shape and spacing", "Intensities"]


def test_work_can_travel_to_workers(clean_images: Path) -> None:
    dataset = check(experiment("folder", clean_images)).survey.dataset
    work = list(chunks(dataset, reader.read))
    assert [len(chunk.refs) for chunk in work] == [32, 28], "small images are handed on together"
    function, chunk = pickle.loads(pickle.dumps((measure_chunk, work[0])))  # noqa: S301
    assert function(chunk)[5].sha256 == measure(dataset.refs[5], (0, 1)).sha256
    function, sitting = pickle.loads(pickle.dumps((planes, Sitting(dataset.refs[0], (0, 1), (), reader.read))))  # noqa: S301
    assert function(sitting).images[0].shape == (160, 160)


def test_planes_of_a_volume_are_upright_with_outlines(tmp_path: Path) -> None:
    image = np.zeros((10, 20, 30), np.int16)
    image[:, :, 25:] = 100  # superior
    marked = np.zeros((10, 20, 30), np.uint8)
    marked[2:8, 15:19, 3:6] = 1
    # Stored as left, inferior, anterior: the planes are the patient's all the same.
    affine = np.array([[-1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    write_nifti(tmp_path / "image.nii", np.flip(image, (0, 2)).transpose(0, 2, 1), affine)
    write_nifti(tmp_path / "label.nii", np.flip(marked, (0, 2)).transpose(0, 2, 1), affine)
    ref = CaseRef("x", tmp_path / "image.nii", label_map=tmp_path / "label.nii")
    found = planes(Sitting(ref, (0, 1), (), reader.read))
    assert found
    axial, coronal, sagittal = found.images
    assert [plane.shape for plane in found.images] == [(72, 36), (108, 36), (108, 72)]
    assert axial.max() == 0, "cut where the label is, below"
    assert coronal[:15].min() == sagittal[:15].min() == 255, "superior is up"
    assert coronal[30:].max() == 0
    rows, columns = np.nonzero(found.outlines[0])
    assert rows.max() < 20, "anterior is up"
    assert 5 < columns.min() < columns.max() < 30
    assert set(np.unique(found.outlines[0])) == {0, 1}
    assert planes(Sitting(replace(ref, source=tmp_path / "none.nii"), (0, 1), (), reader.read)) is None


def test_real_hippocampus(shared_data: Path) -> None:
    done = check(experiment("decathlon", shared_data / "hippocampus"))
    # 20 volumes have intensities some hundred times the others', which is so in the published set.
    assert list(codes(done)) == ["odd_intensity"]
    assert not done.errors
    page = as_page(done, "hippocampus", "next")
    assert "Size of each class in its label maps" in {figure.caption for figure in page.figures}
    assert {name for name, _ in page.sheets[0].legend} == {"Anterior", "Posterior"}
