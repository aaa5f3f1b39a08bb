"""What cases are to a bundle: proven by fingerprints and content, never assumed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from bundles import described
from conftest import draw_folder, tiny

from medray.bundle import ModelBundle
from medray.datasets.scan import scan
from medray.evaluation.provenance import (
    Training,
    data_fingerprint,
    fingerprint,
    judge,
    retrace,
    split_fingerprint,
    training_data,
)
from medray.pipeline.prepare import prepare
from medray.types import Dataset


@pytest.fixture
def bundle(image_folder: Path) -> ModelBundle:
    return described(image_folder)


@pytest.fixture
def training(bundle: ModelBundle) -> Training:
    found = training_data(bundle)
    assert found is not None
    return found


def read(folder: Path) -> Dataset:
    return scan(tiny(folder).dataset)


def test_fingerprints_are_those_of_a_training(bundle: ModelBundle, home: Path) -> None:
    prepared = prepare(bundle.experiment, home / "stores")
    assert split_fingerprint(prepared.dataset, prepared.split) == prepared.split_fingerprint
    assert data_fingerprint(prepared.dataset, prepared.split, bundle) == prepared.fingerprint


def test_cases_of_the_same_names_with_other_content_are_not_believed(bundle: ModelBundle) -> None:
    altered = replace(bundle, card={**bundle.card, "data": "0" * 24})
    training = retrace(scan(bundle.experiment.dataset), altered)
    assert training is not None
    assert (training.proven, training.altered) == (True, True)
    found = judge(training.part("test"), "test", training, same=True)
    assert (found.relation, "images or labels are others" in found.statement) == ("unverified", True)


@pytest.mark.parametrize(("part", "relation"), [("test", "test"), ("val", "val"), ("train", "seen")])
def test_parts_of_the_training(training: Training, part: str, relation: str) -> None:
    found = judge(training.part(part), part, training, same=True)
    assert found.relation == relation
    assert found.sound == (relation == "test")


def test_one_training_case_among_many_is_told(training: Training) -> None:
    refs = [*training.part("test"), training.part("train")[0]]
    found = judge(refs, "all", training, same=True)
    assert found.relation == "seen"
    assert f"1 of {len(refs)} cases were in the model's training set" in found.statement


def test_another_split_than_the_training_had_is_not_believed(bundle: ModelBundle) -> None:
    altered = replace(bundle, card={**bundle.card, "split": "0" * 24})
    training = retrace(scan(bundle.experiment.dataset), altered)
    assert training is not None
    assert not training.proven
    assert training_data(altered) is None
    found = judge(training.part("test"), "test", training, same=True)
    assert (found.relation, found.sound) == ("unverified", False)


def test_cases_that_a_training_could_not_read_are_looked_for(bundle: ModelBundle) -> None:
    """The card's fingerprint and counts are without them."""
    dataset = scan(bundle.experiment.dataset)
    known = retrace(dataset, bundle)
    assert known is not None
    bad = known.part("test")[0].case_id
    counts = {**bundle.card["cases"], "test": bundle.card["cases"]["test"] - 1}
    card = {**bundle.card, "cases": counts, "split": split_fingerprint(dataset, known.indices, {bad})}
    altered = replace(bundle, card=card)
    assert not retrace(dataset, altered).proven  # type: ignore[union-attr]
    assert retrace(dataset, altered, lambda ref: ref.case_id != bad).proven  # type: ignore[union-attr]


def test_copies_of_training_images_in_other_data_are_found(training: Training, tmp_path: Path) -> None:
    other = draw_folder(tmp_path / "other", cases=10, size=20)
    refs = read(other).refs
    clean = judge(refs, "all", training, same=False)
    assert (clean.relation, clean.sound) == ("other", True)
    used = Path(str(training.part("train")[0].source))
    shutil.copy(used, other / "class0" / "anonymous.png")
    copied = judge(read(other).refs, "all", training, same=False)
    assert copied.relation == "overlap"
    assert "1 of 11 images" in copied.statement
    held = Path(str(training.part("test")[0].source))
    (other / "class0" / "anonymous.png").unlink()
    shutil.copy(held, other / "class0" / "anonymous.png")
    assert judge(read(other).refs, "all", training, same=False).relation == "other", "a test image may be tested"


def test_names_of_subjects_in_both_are_told(training: Training) -> None:
    named = replace(
        training,
        dataset=replace(training.dataset, refs=tuple(replace(r, subject_id="p1") for r in training.dataset.refs)),
    )
    other = [replace(ref, source=Path("nowhere.png"), subject_id="p1") for ref in training.part("test")]
    assert "1 subject names occur in both" in judge(other, "all", named, same=False).statement


def test_training_data_that_are_not_here(bundle: ModelBundle, tmp_path: Path) -> None:
    lost = replace(bundle, experiment=tiny(tmp_path / "gone"))
    assert training_data(lost) is None
    found = judge(scan(bundle.experiment.dataset).refs, "all", None, same=False)
    assert found.relation == "other"
    assert "not on this machine" in found.statement


def test_the_fingerprint_of_data_is_of_content_and_labels(image_folder: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(image_folder, tmp_path / "copy"))
    dataset = read(image_folder)
    same = read(copied)
    assert fingerprint(dataset.refs, dataset.classes) == fingerprint(same.refs, same.classes)
    swapped = (same.classes[1], same.classes[0])
    assert fingerprint(dataset.refs, dataset.classes) != fingerprint(same.refs, swapped)
    (copied / "class0/case000.png").write_bytes((copied / "class0/case002.png").read_bytes())
    assert fingerprint(dataset.refs, dataset.classes) != fingerprint(read(copied).refs, dataset.classes)
