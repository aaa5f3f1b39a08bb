"""The same patient or picture twice: torn subjects, duplicates, near duplicates, and one image with two labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from medray.pipeline import twins
from medray.pipeline.findings import Finding
from medray.pipeline.survey import Survey
from medray.types import Array

CONFLICT_MEND = "find out which label is right and delete the other file"
COPY_MEND = "keep one file of each and delete the others"
LEAK_MEND = "keep one file of each, or give the copies one subject, so that a split keeps them together"
NEAR_MEND = "look at them: copies are to be deleted; images of one patient need a subject in the dataset"


def torn(survey: Survey) -> Iterator[Finding]:
    """Subjects with cases in two splits: what is learnt of a patient would be tested on the same patient."""
    homes: dict[str, dict[str, list[int]]] = {}
    for row, ref in enumerate(survey.dataset.refs):
        if ref.subject_id and survey.places[row]:
            homes.setdefault(ref.subject_id, {}).setdefault(survey.places[row], []).append(row)
    split = [places for places in homes.values() if len(places) > 1]
    if split:
        rows = [row for places in split for held in places.values() for row in held]
        detail = f"{len(split)} of {len(homes)} subjects have cases in two splits"
        mend = "correct the split or the subjects, or use split.method=fraction, which keeps subjects whole"
        yield Finding("subject_in_two_splits", "error", detail, mend, survey.ids(rows), _whereabouts(survey, rows))


def doubles(survey: Survey) -> Iterator[Finding]:
    """Equal and alike images; each group of them is reported once, for its worst."""
    rows = [row for row in survey.readable if survey.cases[row].high > survey.cases[row].low]
    same = twins.equal({row: survey.cases[row].sha256 for row in rows})
    conflicts = [group for group in same if _labels_differ(survey, group)]
    plain = [group for group in same if group not in conflicts]
    across = [group for group in plain if _is_torn(survey, group)]
    within = [group for group in plain if group not in across]
    near = _near_groups(survey, rows, same)
    near_across = [group for group in near if _is_torn(survey, group)]
    near_within = [group for group in near if group not in near_across]
    leak = "; what is tested was seen in training"
    for code, groups, detail, mend in (
        ("label_conflict", conflicts, "the same image has two different labels", CONFLICT_MEND),
        ("duplicate_across_splits", across, f"the same image in two splits{leak}", LEAK_MEND),
        ("duplicate", within, "the same image more than once", COPY_MEND),
        ("near_duplicate_across_splits", near_across, f"almost the same image in two splits{leak}", NEAR_MEND),
        ("near_duplicate", near_within, "almost the same image more than once", NEAR_MEND),
    ):
        if groups:
            members = [row for group in groups for row in group]
            remarks = tuple(remark for group in groups for remark in _partners(survey, group))
            severity = "error" if code == "label_conflict" or code.endswith("across_splits") else "warning"
            count = f"{len(groups)} group{'s' if len(groups) > 1 else ''}: "
            yield Finding(code, severity, count + detail, mend, survey.ids(members), remarks)  # type: ignore[arg-type]


def _near_groups(survey: Survey, rows: Sequence[int], same: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Groups of images that are alike but not equal; of equal ones only the first takes part.

    Images of one subject in one split are let pass: neighbouring slices and visits are alike by nature.
    """
    copies = {row for group in same for row in group[1:]}
    kept = [row for row in rows if row not in copies]
    if len(kept) < 2:
        return []
    pictures = np.stack([np.asarray(survey.cases[row].thumbnail) for row in kept])
    return twins.joined((kept[first], kept[second]) for first, second in twins.alike(pictures, _owners(survey, kept)))


def _owners(survey: Survey, rows: Sequence[int]) -> Array:
    """A number for each subject in each split, -1 where the subject is not known."""
    numbers: dict[tuple[str, str], int] = {}
    keys = [(survey.dataset.refs[row].subject_id, survey.places[row]) for row in rows]
    return np.array([numbers.setdefault(key, len(numbers)) if key[0] else -1 for key in keys])


def _is_torn(survey: Survey, rows: Sequence[int]) -> bool:
    return len({survey.places[row] for row in rows} - {""}) > 1


def _labels_differ(survey: Survey, rows: Sequence[int]) -> bool:
    """Whether classes or label maps contradict each other; a label that could not be read says nothing."""
    refs = [survey.dataset.refs[row] for row in rows]
    maps = {survey.cases[row].label_sha256 for row in rows} - {""}
    return len({ref.target for ref in refs}) > 1 or len(maps) > 1 or len({frozenset(ref.boxes) for ref in refs}) > 1


def _partners(survey: Survey, group: Sequence[int]) -> Iterator[str]:
    """For each of a group of images which others it equals or is like, and where they are."""
    for row in group:
        others = [other for other in group if other != row]
        shown = ", ".join(survey.ids(others[:3])) + (", ..." if len(others) > 3 else "")
        yield f"{_place(survey, row)}like {shown}"


def _whereabouts(survey: Survey, rows: Sequence[int]) -> tuple[str, ...]:
    return tuple(f"subject {survey.dataset.refs[row].subject_id} in {survey.places[row]}" for row in rows)


def _place(survey: Survey, row: int) -> str:
    """'train, class a; ' where these are known."""
    names = ", ".join(survey.dataset.classes[label] for label in survey.dataset.refs[row].target[:4])
    known = [text for text in (survey.places[row], names) if text]
    return f"{', '.join(known)}; " if known else ""
