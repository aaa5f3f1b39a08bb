"""Cases dealt to train, val and test: whole subjects, every class everywhere, the same for any order of files."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from medray.config import ConfigError
from medray.sections.data import SplitSection
from medray.types import Array, CaseRef, Dataset, InputError, Split

TRIES = 40
"""Ways to deal subjects with several classes before giving up on having each class in each split."""


@dataclass(frozen=True, slots=True)
class SplitIndices:
    """Rows of Dataset.refs in each split, ascending."""

    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]
    method: str
    """What was done, in one line."""


def split(dataset: Dataset, cfg: SplitSection) -> SplitIndices:
    """Deal the cases of a dataset to train, val and test; a subject is never torn.

    The same settings and case ids give the same split, whatever the order of the cases.

    Raises:
        ConfigError: too few subjects of a class, or a split that the dataset does not give.
        InputError: `subject_in_two_splits`, `split_incomplete`, `class_not_in_train`.
    """
    given = {ref.split for ref in dataset.refs} - {None}
    if cfg.method == "given" and not given:
        raise ConfigError(["split.method: the dataset gives no split; use fraction or kfold"])
    if cfg.method == "given" or (cfg.method == "auto" and len(given) > 1):
        return _given(dataset, cfg)
    rows = range(len(dataset.refs))
    how = ("stratified by class, " if cfg.stratify else "") + f"grouped by subject, seed {cfg.seed}"
    ignored = f"; the dataset's own split ({_names(given)}) is not used" if given else ""
    if cfg.method == "kfold":
        folds = {f"fold {fold}": (1 - cfg.test) / cfg.folds for fold in range(cfg.folds)}
        parts = _deal(dataset, rows, {"test": cfg.test, **folds} if cfg.test else folds, cfg)
        val = parts[f"fold {cfg.fold}"]
        train = [row for name in folds if name != f"fold {cfg.fold}" for row in parts[name]]
        method = f"kfold: fold {cfg.fold} of {cfg.folds} validates, test {cfg.test:g}, {how}{ignored}"
        return _indices(train, val, parts.get("test", []), method)
    shares = {"train": 1 - cfg.val - cfg.test, "val": cfg.val}
    parts = _deal(dataset, rows, {**shares, "test": cfg.test} if cfg.test else shares, cfg)
    method = f"fraction: val {cfg.val:g}, test {cfg.test:g}, {how}{ignored}"
    return _indices(parts["train"], parts["val"], parts.get("test", []), method)


def as_csv(dataset: Dataset, indices: SplitIndices, rename: Callable[[str], str]) -> str:
    """The split as a table to keep with the run: case, subject, split, classes (joined by '|').

    Ids appear as `rename` gives them; a subject that the dataset does not know stays empty.
    """
    where = {row: name for name in get_args(Split) for row in getattr(indices, name)}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["case", "subject", "split", "classes"])
    for row, ref in enumerate(dataset.refs):
        if row in where:
            classes = "|".join(dataset.classes[target] for target in ref.target)
            subject = rename(ref.subject_id) if ref.subject_id else ""
            table.writerow([rename(ref.case_id), subject, where[row], classes])
    return text.getvalue()


def _indices(train: Sequence[int], val: Sequence[int], test: Sequence[int], method: str) -> SplitIndices:
    return SplitIndices(tuple(sorted(train)), tuple(sorted(val)), tuple(sorted(test)), method)


def _names(splits: set[Split | None]) -> str:
    return ", ".join(name for name in get_args(Split) if name in splits)


def _given(dataset: Dataset, cfg: SplitSection) -> SplitIndices:
    """The dataset's own split; where it has no val, that is cut from train."""
    _check_given(dataset)
    rows: dict[str, list[int]] = {name: [] for name in get_args(Split)}
    for row, ref in enumerate(dataset.refs):
        rows[str(ref.split)].append(row)
    if not rows["train"] or not (rows["val"] or rows["test"]):
        only = _names({ref.split for ref in dataset.refs})
        raise ConfigError([f"split.method: the dataset gives {only} only; use fraction or kfold"])
    method = "given by the dataset"
    if not rows["val"]:
        parts = _deal(dataset, rows["train"], {"train": 1 - cfg.val, "val": cfg.val}, cfg)
        rows.update(parts)
        method += f"; it has no val, so {cfg.val:g} of its train is cut off for that, seed {cfg.seed}"
    for name, chosen in rows.items():
        held = {target for row in chosen for target in dataset.refs[row].target}
        absent = [label for index, label in enumerate(dataset.classes) if index not in held]
        if absent and held and name == "train":
            hint = "nothing can be learnt of it; use split.method=fraction"
            raise InputError("class_not_in_train", f"the given train has no case of {', '.join(absent)}", hint)
        if absent and held:
            method += f"; {name} has no case of {', '.join(absent)}"
        if not chosen:
            method += f"; it has no {name}"
    return _indices(rows["train"], rows["val"], rows["test"], method)


def _check_given(dataset: Dataset) -> None:
    """Raise where the dataset's own split is partial or tears a subject."""
    without = sum(ref.split is None for ref in dataset.refs)
    if without:
        detail = f"{without} of {len(dataset.refs)} cases have no split, the others have"
        raise InputError("split_incomplete", detail, "give each case one, or use split.method=fraction")
    homes: dict[str, set[Split | None]] = {}
    for ref in dataset.refs:
        homes.setdefault(ref.subject, set()).add(ref.split)
    torn = [subject for subject, found in homes.items() if len(found) > 1]
    if torn:
        cases = sum(ref.subject == torn[0] for ref in dataset.refs)
        detail = f"the given split tears {len(torn)} of {len(homes)} subjects apart; one has {cases} cases in "
        hint = "correct the split or the subjects, or use split.method=fraction, which keeps subjects whole"
        raise InputError("subject_in_two_splits", detail + _names(homes[torn[0]]), hint)


def _deal(
    dataset: Dataset, rows: Sequence[int], shares: Mapping[str, float], cfg: SplitSection
) -> dict[str, list[int]]:
    """Rows of each part, by whole subjects and in the given shares.

    Greedy as scikit-learn's StratifiedGroupKFold, for unequal parts: subjects with the most uneven counts first, each
    to where the counts stay nearest to the shares. Where that leaves a part without a class, each part gets a subject
    of each class first, rarest class first: where it costs least, then at random.
    """
    members: dict[str, list[int]] = {}
    for row in rows:
        members.setdefault(dataset.refs[row].subject, []).append(row)
    if len(members) < len(shares):
        raise ConfigError([f"split: {len(members)} subjects cannot fill {len(shares)} parts ({', '.join(shares)})"])
    # What a tie decides depends on names and seed alone, never on the order of files.
    subjects = sorted(members, key=lambda subject: _hash(subject, cfg.seed))
    groups = [[dataset.refs[row] for row in members[subject]] for subject in subjects]
    labels = _counts(groups, lambda ref: ref.target) if cfg.stratify else np.zeros((len(groups), 0))
    _check_enough(dataset, labels, list(shares))
    weight = np.array(list(shares.values()))
    counts = _columns(groups, labels, len(shares), cfg.stratify)
    for attempt in range(TRIES):
        part = _greedy(counts, labels, weight, attempt)
        if all((part == p).any() and labels[part == p].any(axis=0).all() for p in range(len(weight))):
            return {
                name: [row for group in np.flatnonzero(part == p) for row in members[subjects[group]]]
                for p, name in enumerate(shares)
            }
    raise ConfigError(["split: no way found to have each class in each part; try another split.seed or stratify=false"])


def _hash(subject: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{subject}".encode("utf-8", "surrogateescape"), digest_size=16).digest()


def _counts(groups: Sequence[Sequence[CaseRef]], keys: Callable[[CaseRef], tuple[object, ...]]) -> Array:
    """How often each group has each key (G, keys)."""
    found: Counter[object] = Counter(key for group in groups for ref in group for key in keys(ref))
    column = {key: position for position, key in enumerate(found)}
    counts = np.zeros((len(groups), len(column)))
    for index, group in enumerate(groups):
        for ref in group:
            for key in keys(ref):
                counts[index, column[key]] += 1
    return counts


def _columns(groups: Sequence[Sequence[CaseRef]], labels: Array, parts: int, stratify: bool) -> Array:
    """What the parts shall have in proportion, as shares of the whole: cases, classes, combinations of classes."""
    size = np.array([[len(group)] for group in groups], float)
    combinations = _counts(groups, lambda ref: (ref.target,)) if stratify else labels
    # A combination that is rarer than the parts cannot be shared out; its classes are.
    common = combinations[:, (combinations > 0).sum(axis=0) >= parts]
    columns = np.concatenate([size, labels, common], axis=1)
    return np.asarray(columns / columns.sum(axis=0))


def _check_enough(dataset: Dataset, labels: Array, parts: Sequence[str]) -> None:
    """Raise where a class has fewer subjects than there are parts."""
    subjects = (labels > 0).sum(axis=0)
    if (subjects < len(parts)).any():
        held: dict[int, set[str]] = {}
        for ref in dataset.refs:
            for target in ref.target:
                held.setdefault(target, set()).add(ref.subject)
        few = [
            f"split: class '{dataset.classes[target]}' has {len(names)} subjects, too few for one in each of "
            f"{len(parts)} parts ({', '.join(parts)}); add cases, leave the class out, or set split.stratify=false"
            for target, names in sorted(held.items())
            if len(names) < len(parts)
        ]
        raise ConfigError(few or [f"split: too few subjects of a class for {len(parts)} parts"])


def _greedy(counts: Array, labels: Array, shares: Array, attempt: int) -> Array:
    """The part of each group (G,), from its shares of the whole `counts` (G, columns) and its `labels` (G, classes).

    From the second attempt on, each part first gets a group of each class, rarest class and smallest group first:
    where it costs least, from the third on at random.
    """
    part = np.full(len(counts), -1)
    filled = np.zeros((len(shares), counts.shape[1]))
    rng = np.random.default_rng(attempt)

    def put(group: int, among: Array) -> None:
        # Growth of sum (filled - share)^2 / share; for single cases this is Sainte-Lague's apportionment.
        after = (filled[among] + counts[group] / 2 - shares[among, None]) * counts[group] / shares[among, None]
        part[group] = chosen = among[int(np.argmin(after.sum(axis=1)))]
        filled[chosen] += counts[group]

    by_size = np.argsort(counts[:, 0], kind="stable")
    for label in np.argsort((labels > 0).sum(axis=0), kind="stable") if attempt else ():
        holders = by_size[labels[by_size, label] > 0]
        for group in holders[part[holders] < 0]:
            empty = np.setdiff1d(np.arange(len(shares)), part[holders])
            if len(empty):
                put(group, empty if attempt == 1 else rng.choice(empty, 1))
    # The most uneven first: those that come late are small and even out what is left.
    for group in np.argsort(-counts.std(axis=1), kind="stable"):
        if part[group] < 0:
            put(group, np.arange(len(shares)))
    return part
