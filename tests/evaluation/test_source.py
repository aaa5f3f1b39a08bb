"""Which data are meant, and that they fit the bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundles import described
from conftest import draw_folder

from medray.config import ConfigError
from medray.evaluation.source import Labelled, as_learnt, default_part, in_order, looking_for, open_data, pick_cases
from medray.pipeline.split import SplitIndices
from medray.types import CaseRef, Dataset


def test_without_data_it_is_the_bundles_own(image_folder: Path) -> None:
    bundle = described(image_folder)
    found = open_data(None, [], bundle)
    assert found.own
    assert found.experiment == bundle.experiment
    assert found.name == image_folder.name
    assert default_part(found, same_data=False) == "test"
    moved = open_data(None, [f"dataset.path={image_folder}"], bundle)
    assert not moved.own


def test_a_path_is_all_cases_unless_they_say_which_are_test(image_folder: Path) -> None:
    found = open_data(str(image_folder), ["dataset.name=folder"], described(image_folder))
    assert default_part(found, same_data=False) == "all"
    assert default_part(found, same_data=True) == "test"
    refs = tuple(replace(ref, split="test") for ref in found.dataset.refs)
    given = replace(found, dataset=replace(found.dataset, refs=refs))
    assert default_part(given, same_data=False) == "test"


def test_other_classes_are_refused_by_both_names(image_folder: Path, tmp_path: Path) -> None:
    three = draw_folder(tmp_path / "three", cases=9, classes=3)
    with pytest.raises(
        ConfigError, match=r"class0, class1, class2; the bundle answers class0, class1.*dataset.classes"
    ):
        open_data(str(three), ["dataset.name=folder"], described(image_folder))


def test_an_empty_folder_is_a_clear_mistake(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no layout fits"):
        open_data(str(tmp_path / "empty"), [], described(image_folder))


def dataset(classes: tuple[str, ...]) -> Dataset:
    refs = tuple(CaseRef(name, Path(name), (index,)) for index, name in enumerate(classes))
    return Dataset(refs, classes)


def test_classes_are_matched_by_name() -> None:
    found = in_order(dataset(("b", "c", "a")), ("a", "b", "c"), multilabel=False)
    assert [found.classes[ref.target[0]] for ref in found.refs] == ["b", "c", "a"]
    assert found.classes == ("a", "b", "c")
    numbers = Dataset((CaseRef("x", Path("x"), numbers=(1.0, 2.0)),), ("age", "bmi"), quantities=("age", "bmi"))
    assert in_order(numbers, ("bmi", "age"), multilabel=False).refs[0].numbers == (2.0, 1.0)
    maps = in_order(replace(dataset(("bg", "x", "y")), label_values=(0, 4, 7)), ("bg", "y", "x"), multilabel=False)
    assert maps.label_values == (0, 7, 4)


def test_labels_that_may_come_together_do_not_fit_exclusive_ones() -> None:
    with pytest.raises(ConfigError, match=r"dataset.multilabel=false"):
        in_order(replace(dataset(("a", "b")), multilabel=True), ("a", "b"), multilabel=False)


def test_labels_of_another_task(image_folder: Path) -> None:
    maps = tuple(CaseRef(name, Path(name), label_map=Path(name)) for name in "ab")
    with pytest.raises(ConfigError, match=r"is a classification.*the data hold label maps"):
        as_learnt(Dataset(maps, ("bg", "liver")), described(image_folder))


def test_which_class_is_looked_for(image_folder: Path) -> None:
    bundle = described(image_folder)
    labelled = open_data(None, [], bundle)
    assert looking_for(None, labelled, bundle).dataset.classes == ("class0", "class1")
    turned = looking_for("class0", labelled, bundle).dataset
    assert turned.classes == ("class1", "class0")
    assert all(ref.case_id.startswith(turned.classes[ref.target[0]]) for ref in turned.refs)
    pointed = described(image_folder, trust={"operating_points": [{"of": "class0"}]})
    assert looking_for(None, labelled, pointed).dataset.classes == ("class1", "class0")
    with pytest.raises(ConfigError, match="did you mean 'class0'"):
        looking_for("clas0", labelled, bundle)


def test_a_part_and_a_limit(image_folder: Path) -> None:
    labelled = open_data(None, [], described(image_folder))
    indices = SplitIndices((0, 1, 2), (3,), (), "by hand")
    refs, asked, method = pick_cases(labelled, "train", indices, None)
    assert (len(refs), asked, method) == (3, 3, "by hand")
    some, asked, _ = pick_cases(labelled, "all", None, 7)
    assert (len(some), asked) == (7, 40)
    assert some == pick_cases(labelled, "all", None, 7)[0]
    assert len({ref.case_id for ref in some}) == 7
    assert not np.array_equal([ref.case_id for ref in some], [ref.case_id for ref in labelled.dataset.refs[:7]])
    with pytest.raises(ConfigError, match=r"--split test: no case is in it \(train 3, val 1, test 0\)"):
        pick_cases(labelled, "test", indices, None)
    assert isinstance(labelled, Labelled)
