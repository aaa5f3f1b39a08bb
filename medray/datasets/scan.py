"""The door to every dataset layout: references to its cases, checked for what no layout may do."""

from __future__ import annotations

from collections import Counter

from medray.config import load_plugin
from medray.datasets.files import some
from medray.remote import here
from medray.sections.base import DatasetSection
from medray.types import Dataset, InputError


def scan(cfg: DatasetSection) -> Dataset:
    """References to the cases of a dataset, in a fixed order; no pixel is read.

    Raises:
        ConfigError: wrong settings, or nothing at the path; a URL cannot be read.
        InputError: wrong content: `no_cases`, `duplicate_case`, `mixed_targets`, `wrong_target`, `too_few_classes`,
            `empty_class`, or a code of the layout.
    """
    cfg = here(cfg)
    dataset: Dataset = load_plugin("datasets", cfg.name).scan(cfg)
    _check_cases(dataset)
    if not _is_unlabelled(dataset):
        _check_targets(dataset)
        _check_classes(dataset)
    return dataset


def _is_unlabelled(dataset: Dataset) -> bool:
    """Whether no case carries a class: they have label maps or boxes instead, or nothing."""
    return not dataset.multilabel and not any(ref.target for ref in dataset.refs)


def _check_cases(dataset: Dataset) -> None:
    """Raise on no cases and on a case id that occurs twice."""
    if not dataset.refs:
        raise InputError("no_cases", "the dataset has no case", "check dataset.path and what the layout expects")
    times = Counter(ref.case_id for ref in dataset.refs)
    twice = [case_id for case_id, count in times.items() if count > 1]
    if twice:
        detail = f"{len(twice)} cases occur more than once: {some(twice)}"
        raise InputError("duplicate_case", detail, "list each image once; several labels of one image: 'a|b'")


def _check_targets(dataset: Dataset) -> None:
    """Raise on targets that do not fit the classes."""
    wrong = [ref.case_id for ref in dataset.refs if not all(0 <= t < len(dataset.classes) for t in ref.target)]
    if wrong:
        detail = f"{len(wrong)} cases have a class beyond the {len(dataset.classes)} known: {some(wrong)}"
        raise InputError("wrong_target", detail, "name all classes")
    if not dataset.multilabel:
        odd = [ref.case_id for ref in dataset.refs if len(ref.target) != 1]
        if odd:
            detail = f"{len(odd)} of {len(dataset.refs)} cases do not have exactly one class: {some(odd)}"
            raise InputError("mixed_targets", detail, "give each case one class, or make the dataset multi-label")


def _check_classes(dataset: Dataset) -> None:
    """Raise on fewer than two exclusive classes and on a class without cases."""
    if len(dataset.classes) < (1 if dataset.multilabel else 2):
        found = some(dataset.classes) or "none"
        raise InputError("too_few_classes", f"nothing to tell apart: the only class is {found}", "add a second class")
    held = Counter(target for ref in dataset.refs for target in ref.target)
    empty = [name for index, name in enumerate(dataset.classes) if not held[index]]
    if empty:
        raise InputError(
            "empty_class",
            f"{len(empty)} of {len(dataset.classes)} classes have no case: {some(empty)}",
            "add cases or remove the class",
        )
