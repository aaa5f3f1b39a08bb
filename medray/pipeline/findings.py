"""What a check finds in the numbers of a survey: refusals, warnings, labels, classes and boxes, each with its mend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from medray.datasets.files import some
from medray.pipeline.survey import Survey
from medray.types import Split

IMBALANCE = 50
"""Cases of the commonest class for one of the rarest from which on a warning is due."""
BOX_SLACK_PX = 1.0
"""Tools count from 0 or from 1, and to a pixel's near or far face; more than that is a mistake."""

EXPORT_AGAIN = "copy or export the file again, or leave the case out"
MENDS = {
    "constant_image": "look at the file: all its voxels are equal; leave the case out if nothing is in it",
    "extension_mismatch": "rename the files to what they are; the content is read right all the same",
    "phi_in_header": "run medray deid on the data before it leaves your hands; a training never reads these texts",
    "affine_difference": "sform and qform differ slightly and the sform counts; after a registration that is right",
    "scaling_ignored": "the slope or offset in the header is no number; compare the intensities with other cases",
    "implausible_intensity": "compare with other cases: the sign or the number of bits in the header may be wrong",
    "shape_mismatch": "export the label on the grid of this image",
    "empty_label": "look whether the label was saved before it was drawn; if there is nothing to mark, all is well",
}
"""How warnings of the readers are dealt with, and refusals that say no mend themselves."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something odd about a dataset."""

    code: str
    """A fixed word; that of the reader where a reader refused."""
    severity: Literal["error", "warning"]
    """error: it would spoil a training."""
    detail: str
    mend: str
    cases: tuple[str, ...] = ()
    """Ids of the cases that it is about; empty where it is about all."""
    remarks: tuple[str, ...] = ()
    """One per case, or none at all."""


def refused(survey: Survey) -> Iterator[Finding]:
    """Cases that a training leaves out, by code: errors where they are more than dataset.max_bad_fraction."""
    by_code: dict[str, list[tuple[int, str, str, str]]] = {}
    for row, case in enumerate(survey.cases):
        for fault in case.faults:
            what = "label map: " if fault.of == "label" else ""
            by_code.setdefault(fault.code, []).append((row, what + fault.detail, fault.hint, fault.of))
    for code, row, detail, hint in _misfits(survey):
        by_code.setdefault(code, []).append((row, detail, hint, "image"))
    gone = {row for entries in by_code.values() for row, *_ in entries}
    total = len(survey.cases)
    spoils = len(gone) > survey.max_bad_fraction * total
    share = f"in all {len(gone)} of {total} cases are refused, {survey.max_bad_fraction:.3g} of them may be"
    for code, entries in sorted(by_code.items()):
        _, detail, hint, _ = entries[0]
        yield Finding(
            code,
            "error" if spoils else "warning",
            f"{detail}; {share}",
            hint or MENDS.get(code, EXPORT_AGAIN),
            survey.ids([row for row, *_ in entries]),
            tuple(remark for _, remark, _, _ in entries),
        )


def _misfits(survey: Survey) -> Iterator[tuple[str, int, str, str]]:
    """Images that cannot stand in one store with the others: (code, row, detail, hint)."""
    rows = survey.readable
    if not rows:
        return
    rank = Counter(len(survey.cases[row].shape) for row in rows).most_common(1)[0][0]
    channels = Counter(survey.cases[row].channels for row in rows).most_common(1)[0][0]
    for row in rows:
        case = survey.cases[row]
        if len(case.shape) != rank:
            yield "mixed_rank", row, f"{len(case.shape)}D, most cases are {rank}D", "train 2D and 3D images apart"
        elif case.channels != channels and survey.preprocess.channels == "keep":
            hint = "look why they differ, then set preprocess.channels to gray or rgb"
            yield "wrong_channels", row, f"{case.channels} channels, most cases have {channels}", hint


def warned(survey: Survey) -> Iterator[Finding]:
    """The warnings that rode on the cases, one finding per word."""
    by_word: dict[str, list[int]] = {}
    for row, case in enumerate(survey.cases):
        for word in case.warnings:
            by_word.setdefault(word, []).append(row)
    for word, rows in sorted(by_word.items()):
        detail = f"the reader warns: {word.replace('_', ' ')}"
        yield Finding(word, "warning", detail, MENDS.get(word, "look at these cases"), survey.ids(rows))


def unlabelled(survey: Survey) -> Iterator[Finding]:
    """A set without any label, and cases without a label map where others have one."""
    refs = survey.dataset.refs
    if refs and not any(ref.target or ref.label_map or ref.boxes for ref in refs):
        mend = "give the layout a table of classes, label maps or boxes (see the section dataset)"
        yield Finding("no_labels", "error", "no case has a class, a label map or a box: nothing can be learnt", mend)
    rows = [row for row, ref in enumerate(refs) if ref.label_map is None and not ref.target and not ref.boxes]
    if rows and any(ref.label_map for ref in refs):
        mend = "add the label maps, or leave these cases out"
        yield Finding("missing_label", "error", "no label map, the other cases have one", mend, survey.ids(rows))


def classes(survey: Survey) -> Iterator[Finding]:
    """Classes that a split lacks, and classes that are very rare."""
    names = survey.dataset.classes
    # Value 0 of a label map is what is none of the classes.
    background = any(ref.label_map for ref in survey.dataset.refs)
    wanted = set(range(1 if background else 0, len(names)))
    held: dict[str, Counter[int]] = {}
    for row in survey.readable:
        held.setdefault(survey.places[row], Counter()).update(survey.labels(row))
    for split in get_args(Split):
        absent = [names[label] for label in sorted(wanted) if not held[split][label]] if split in held else []
        if not absent or not held[split]:
            continue
        if split == "train":
            mend = "nothing can be learnt of it: add cases, leave the class out, or use split.method=fraction"
            yield Finding("class_not_in_train", "error", f"train has no case of {some(absent, 10)}", mend)
        else:
            mend = "its figures cannot be measured there: use split.method=fraction, or add cases"
            yield Finding("class_not_in_split", "warning", f"{split} has no case of {some(absent, 10)}", mend)
    yield from _imbalance(names, sum(held.values(), Counter()), wanted)


def _imbalance(names: Sequence[str], total: Mapping[int, int], wanted: set[int]) -> Iterator[Finding]:
    counts = {label: total[label] for label in wanted if total.get(label)}
    if len(counts) < 2:
        return
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[most] >= IMBALANCE * counts[least]:
        detail = f"'{names[least]}' has {counts[least]} cases, '{names[most]}' {counts[most]}"
        mend = "weigh or sample the classes, and judge by balanced accuracy or AUROC, never by accuracy"
        yield Finding("imbalance", "warning", detail, mend)


def boxes(survey: Survey) -> Iterator[Finding]:
    """Boxes that are empty, inside out, or reach out of their image."""
    wrong: dict[int, str] = {}
    for row, ref in enumerate(survey.dataset.refs):
        shape = survey.cases[row].shape
        for number, box in enumerate(ref.boxes):
            place = f"box {number}: {list(box.low)} to {list(box.high)}"
            if len(box.low) != len(box.high) or (shape and len(box.low) != len(shape)):
                wrong.setdefault(row, f"{place} has not the {len(shape)} axes of its image")
            elif any(low >= high for low, high in zip(box.low, box.high, strict=True)):
                wrong.setdefault(row, f"{place} is empty")
            # Voxel i covers [i - 1/2, i + 1/2]. Of an image that was not read only the box itself can be judged.
            elif shape and (
                min(box.low) < -0.5 - BOX_SLACK_PX
                or any(high > edge - 0.5 + BOX_SLACK_PX for high, edge in zip(box.high, shape, strict=True))
            ):
                wrong.setdefault(row, f"{place} reaches out of {' x '.join(map(str, shape))}")
    if wrong:
        detail = f"{next(iter(wrong.values()))}"
        mend = "correct the box, or the image that it is meant for; rows come before columns"
        yield Finding("bad_box", "error", detail, mend, survey.ids(list(wrong)), tuple(wrong.values()))
