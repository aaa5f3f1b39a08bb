import csv
import io
from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from medray.config import ConfigError
from medray.pipeline.split import SplitIndices, as_csv, split
from medray.sections.data import SplitSection
from medray.types import CaseRef, Dataset, InputError, Split

QUICK = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def make(targets: list[tuple[int, ...]], subjects: list[str] | None = None, splits: str = "", **more: bool) -> Dataset:
    """Cases with these targets; splits as one letter per case ('r' train, 'v' val, 't' test)."""
    names: dict[str, Split] = {"r": "train", "v": "val", "t": "test"}
    refs = tuple(
        CaseRef(f"c{i}", Path("x"), target, subjects[i] if subjects else "", names.get(splits[i : i + 1]))
        for i, target in enumerate(targets)
    )
    classes = max((t for target in targets for t in target), default=0) + 1
    return Dataset(refs, tuple(f"k{k}" for k in range(classes)), **more)


def random_dataset(seed: int, cases: int, classes: int, per_subject: int) -> Dataset:
    """Subjects of one class each, classes of unlike size."""
    rng = np.random.default_rng(seed)
    subject = rng.integers(0, max(1, cases // per_subject), cases)
    of = rng.choice(classes, cases, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    return make([(int(of[s]),) for s in subject], [f"s{s}" for s in subject])


def subjects_of(dataset: Dataset, rows: tuple[int, ...]) -> set[str]:
    return {dataset.refs[row].subject for row in rows}


def held(dataset: Dataset, rows: tuple[int, ...]) -> Counter[int]:
    return Counter(target for row in rows for target in dataset.refs[row].target)


def assert_sound(dataset: Dataset, found: SplitIndices) -> None:
    """Disjoint, complete and by subject."""
    parts = [found.train, found.val, found.test]
    assert sorted(row for part in parts for row in part) == list(range(len(dataset.refs)))
    assert all(list(part) == sorted(part) for part in parts)
    owners = [subjects_of(dataset, part) for part in parts]
    assert sum(map(len, owners)) == len(set().union(*owners))


@QUICK
@given(
    st.integers(0, 10**6),
    st.integers(30, 150),
    st.integers(2, 4),
    st.integers(1, 4),
    st.sampled_from(["fraction", "kfold"]),
    st.sampled_from([0.0, 0.15, 0.3]),
)
def test_sound_and_each_class_everywhere(
    seed: int, cases: int, classes: int, per: int, method: str, test: float
) -> None:
    dataset = random_dataset(seed, cases, classes, per)
    cfg = SplitSection(method=method, seed=seed, test=test, folds=3)
    owners = Counter(target for _, target in {(ref.subject, ref.target[0]) for ref in dataset.refs})
    parts = (3 if method == "kfold" else 2) + (test > 0)
    if min(owners.values()) < parts:
        with pytest.raises(ConfigError, match="too few"):
            split(dataset, cfg)
        return
    found = split(dataset, cfg)
    assert_sound(dataset, found)
    for rows in (found.train, found.val, *([found.test] if test else [])):
        assert set(held(dataset, rows)) == set(owners)


@QUICK
@given(st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_the_order_of_files_does_not_matter(seed: int, random: object) -> None:
    dataset = random_dataset(seed, 90, 2, 2)
    order = list(range(90))
    random.shuffle(order)  # type: ignore[attr-defined]
    moved = Dataset(tuple(dataset.refs[row] for row in order), dataset.classes)
    cfg = SplitSection(seed=seed)
    one, two = split(dataset, cfg), split(moved, cfg)
    for name in get_args(Split):
        ids = {dataset.refs[row].case_id for row in getattr(one, name)}
        assert ids == {moved.refs[row].case_id for row in getattr(two, name)}


@QUICK
@given(st.lists(st.sets(st.integers(0, 3)), min_size=40, max_size=60), st.integers(0, 9))
def test_multilabel(labels: list[set[int]], seed: int) -> None:
    dataset = make([tuple(sorted(found)) for found in labels], multilabel=True)
    counts = held(dataset, tuple(range(len(labels))))
    assume(counts and min(counts.values()) >= 3)
    found = split(dataset, SplitSection(seed=seed))
    assert_sound(dataset, found)
    assert all(set(held(dataset, rows)) == set(counts) for rows in (found.train, found.val, found.test))


def test_multilabel_keeps_combinations() -> None:
    dataset = make([(0, 1), (0,), (1,), ()] * 40, multilabel=True)
    found = split(dataset, SplitSection(val=0.25, test=0.25))
    for rows, count in ((found.train, 20), (found.val, 10), (found.test, 10)):
        assert set(Counter(dataset.refs[row].target for row in rows).values()) == {count}


def test_seeds_differ_and_repeat() -> None:
    dataset = random_dataset(0, 100, 2, 1)
    assert split(dataset, SplitSection(seed=1)) == split(dataset, SplitSection(seed=1))
    assert split(dataset, SplitSection(seed=1)).test != split(dataset, SplitSection(seed=2)).test


def test_folds_share_the_test_and_cover_the_rest() -> None:
    dataset = random_dataset(3, 120, 2, 2)
    found = [split(dataset, SplitSection(method="kfold", folds=4, fold=fold)) for fold in range(4)]
    assert len({one.test for one in found}) == 1
    assert sorted(row for one in found for row in one.val) == sorted({*found[0].train, *found[0].val})
    for one in found:
        assert_sound(dataset, one)
    assert "fold 1 of 4" in found[1].method


def test_shares_are_met_exactly_where_they_can_be() -> None:
    found = split(make([(0,)] * 700 + [(1,)] * 300), SplitSection(val=0.2, test=0.1))
    assert [len(found.train), len(found.val), len(found.test)] == [700, 200, 100]
    assert sum(row >= 700 for row in found.test) == 30


@pytest.mark.parametrize("seed", range(4))
def test_as_well_stratified_as_scikit_learn(seed: int) -> None:
    from sklearn.model_selection import StratifiedGroupKFold

    rng = np.random.default_rng(seed)
    size = rng.geometric(0.3, 80)
    group = np.repeat(np.arange(80), size)
    label = (rng.random(len(group)) < rng.random(80)[group]).astype(int) + 2 * (rng.random(len(group)) < 0.1)
    dataset = make([(int(k),) for k in label], [f"s{g}" for g in group])

    def deviation(folds: list[np.ndarray]) -> float:
        """Mean distance of a fold's share of each class from an even one."""
        counts = np.array([np.bincount(label[fold], minlength=4) for fold in folds]) / np.bincount(label, minlength=4)
        return float(np.abs(counts - 1 / len(folds)).mean())

    cfg = SplitSection(method="kfold", test=0)
    ours = [np.array(split(dataset, cfg.model_copy(update={"fold": fold})).val) for fold in range(5)]
    theirs = [val for _, val in StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(label, label, group)]
    assert deviation(ours) <= deviation(theirs) + 0.01


def test_given_is_taken_by_itself() -> None:
    dataset = make([(0,), (1,)] * 4, splits="rrrrvvtt")
    found = split(dataset, SplitSection())
    assert (found.train, found.val, found.test) == ((0, 1, 2, 3), (4, 5), (6, 7))
    assert found.method == "given by the dataset"
    assert (
        "own split (train, val, test) is not used"
        in split(make([(0,), (1,)] * 8, splits="rrrrvvtt" * 2), SplitSection(method="fraction")).method
    )


def test_given_without_val_cuts_it_from_train() -> None:
    dataset = make([(0,), (1,)] * 30, splits="r" * 40 + "t" * 20)
    found = split(dataset, SplitSection(val=0.25))
    assert found.test == tuple(range(40, 60))
    assert len(found.val) == 10
    assert "0.25 of its train is cut off" in found.method
    assert_sound(dataset, found)


def test_given_without_test_has_none() -> None:
    found = split(make([(0,), (1,)] * 4, splits="rrrrvvvv"), SplitSection(method="given"))
    assert found.test == ()
    assert "no test" in found.method


def test_given_that_lacks_a_class_says_so() -> None:
    assert "test has no case of k1" in split(make([(0,), (1,)] * 3, splits="rrvvt" + "v"), SplitSection()).method
    with pytest.raises(InputError, match="class_not_in_train") as caught:
        split(make([(0,), (1,), (0,), (1,)], splits="rvrt"), SplitSection())
    assert "k1" in caught.value.detail


def test_given_that_tears_a_subject() -> None:
    dataset = make([(0,), (1,)] * 3, ["a", "b", "a", "b", "b", "c"], splits="rrrvvt")
    with pytest.raises(InputError, match="subject_in_two_splits") as caught:
        split(dataset, SplitSection())
    assert "1 of 3 subjects apart; one has 3 cases in train, val" in caught.value.detail
    assert "fraction" in caught.value.hint


def test_given_for_some_cases_only() -> None:
    with pytest.raises(InputError, match="2 of 4 cases have no split"):
        split(make([(0,), (1,)] * 2, splits="rv"), SplitSection())


@pytest.mark.parametrize(
    ("splits", "says"), [("", "gives no split"), ("rrrr", "gives train only"), ("ttvv", "val, test")]
)
def test_given_that_is_not_enough(splits: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        split(make([(0,), (1,)] * 2, splits=splits), SplitSection(method="given"))


def test_train_alone_is_dealt_by_fraction() -> None:
    found = split(make([(0,), (1,)] * 10, splits="r" * 20), SplitSection())
    assert found.method.startswith("fraction")
    assert found.val
    assert found.test


def test_too_few_of_a_class_names_it() -> None:
    with pytest.raises(ConfigError, match="class 'k1' has 2 subjects") as caught:
        split(make([(0,)] * 20 + [(1,)] * 2), SplitSection())
    assert "stratify=false" in str(caught.value)
    with pytest.raises(ConfigError, match="2 subjects cannot fill 3 parts"):
        split(make([(0,), (1,)]), SplitSection(stratify=False))


def test_without_stratification_subjects_stay_whole() -> None:
    dataset = random_dataset(5, 60, 3, 3)
    found = split(dataset, SplitSection(stratify=False))
    assert_sound(dataset, found)
    assert "stratified" not in found.method


def test_subjects_with_several_classes_still_fill_each_part() -> None:
    """Each class is held by three subjects, and most subjects hold two classes."""
    targets = [(0,), (1,), (1,), (2,), (2,), (0,), (0,), (1,), (2,)]
    dataset = make(targets, ["a", "a", "b", "b", "c", "c", "d", "e", "f"])
    for seed in range(10):
        found = split(dataset, SplitSection(seed=seed, val=0.3, test=0.3))
        assert_sound(dataset, found)
        assert all(len(held(dataset, rows)) == 3 for rows in (found.train, found.val, found.test))


def test_an_impossible_deal_is_refused() -> None:
    """The Fano plane: however its seven points are dealt to two parts, one of its lines lies in one part alone."""
    lines = ["abc", "ade", "afg", "bdf", "beg", "cdg", "cef"]
    dataset = make([(k,) for k, line in enumerate(lines) for _ in line], list("".join(lines)))
    with pytest.raises(ConfigError, match="no way found"):
        split(dataset, SplitSection(val=0.5, test=0))


def test_label_maps_are_dealt_by_subject_alone() -> None:
    dataset = make([()] * 20, [f"s{i // 2}" for i in range(20)])
    found = split(dataset, SplitSection(val=0.2, test=0.2))
    assert_sound(dataset, found)
    assert len(found.val) == len(found.test) == 4


def test_csv_keeps_the_split() -> None:
    dataset = make([(0, 1), (), (1,), (0,)], ["a", "b", "", "d,e"], splits="rrvt", multilabel=True)
    rows = list(csv.reader(io.StringIO(as_csv(dataset, split(dataset, SplitSection()), str.upper))))
    assert rows == [
        ["case", "subject", "split", "classes"],
        ["C0", "A", "train", "k0|k1"],
        ["C1", "B", "train", ""],
        ["C2", "", "val", "k1"],
        ["C3", "D,E", "test", "k0"],
    ]
