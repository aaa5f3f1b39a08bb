"""What a check says: a few lines for the terminal, a row per case for programs, and a page to look at."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, get_args

import numpy as np

from medray.cluster import Mapper
from medray.imaging import reader
from medray.imaging.quality import QUALITIES
from medray.pipeline.check import Check
from medray.pipeline.findings import Finding
from medray.pipeline.pictures import Planes, Sitting, planes
from medray.pipeline.survey import Read, Survey
from medray.reports import census
from medray.reports.page import Entry, Page, Picture, Sheet
from medray.reports.tiles import colour_of, tile
from medray.types import Array, Split

LINES = 20
PER_CLASS, MOST_SAMPLES = 6, 36
PER_FINDING, MOST_FLAGGED = 6, 30
NUMBERS = ("low", "p01", "mean", "p99", "high", "foreground")


def headline(check: Check) -> str:
    """The verdict in one line."""
    if check.survey.cases and not check.survey.readable:
        return "No case can be read"
    if check.errors:
        return f"{check.errors} thing{'s' if check.errors > 1 else ''} would spoil a training"
    warnings = len(check.findings)
    return "Ready to train" + (f", with {warnings} warning{'s' if warnings > 1 else ''}" if warnings else "")


def as_text(check: Check) -> str:
    """The findings for a person, errors first, each with its mend."""
    survey = check.survey
    lines = [f"{name}: {value}" for name, value in _facts(check)]
    lines += [f"note: {note}" for note in survey.dataset.notes]
    for finding in check.findings[:LINES]:
        lines.append(f"{finding.severity:8} {finding.code}{_who(finding)}: {finding.detail}")
        lines.append(f"         mend: {finding.mend}")
    if len(check.findings) > LINES:
        lines.append(f"... and {len(check.findings) - LINES} more findings, in the report")
    return "\n".join(printable(line) for line in [*lines, headline(check)]) + "\n"


def printable(text: str) -> str:
    """`text` on one line, with what would steer a terminal spelt out."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _who(finding: Finding) -> str:
    """' (3 cases: a, b, ...)'"""
    if not finding.cases:
        return ""
    count = len(finding.cases)
    shown = ", ".join(finding.cases[:2]) + (", ..." if count > 2 else "")
    return f" ({count} case{'s' if count > 1 else ''}: {shown})"


def as_csv(check: Check) -> str:
    """One row per case: where it belongs, what was found, and what was measured."""
    survey = check.survey
    found: dict[str, list[str]] = {}
    for finding in check.findings:
        for case_id in finding.cases:
            found.setdefault(case_id, []).append(finding.code)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    measures = ("modality", "channels", "shape", "spacing", "unit", "orientation", "dtype", *NUMBERS, *QUALITIES)
    labels = [f"voxels {name}" for name in survey.dataset.classes] if _has_maps(survey) else []
    table.writerow(
        ["case", "subject", "split", "classes", "code", "findings", "warnings", *measures, *labels, "sha256"]
    )
    for row, (ref, case) in enumerate(zip(survey.dataset.refs, survey.cases, strict=True)):
        names = "|".join(survey.dataset.classes[label] for label in survey.labels(row))
        code = "|".join(fault.code for fault in case.faults)
        marks = "|".join(dict.fromkeys(found.get(ref.case_id, ())))
        cells = [ref.case_id, ref.subject_id, survey.places[row], names, code, marks, "|".join(case.warnings)]
        values = {**asdict(case), **case.quality} if case.readable else {}
        cells += [_cell(values.get(name, "")) for name in measures]
        cells += [str(count) for count in survey.voxels(row) or [""] * len(labels)] if labels else []
        table.writerow([*cells, case.sha256])
    return text.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(f"{edge:.6g}" for edge in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _facts(check: Check) -> list[tuple[str, str]]:
    """What the dataset is, in a few lines."""
    survey = check.survey
    read = [survey.cases[row] for row in survey.readable]
    refs = survey.dataset.refs
    subjects = {ref.subject_id for ref in refs} - {""}
    per_s = f"{len(refs) / max(1e-9, check.seconds):.0f} cases/s"
    facts = [("cases", f"{len(refs)}, {len(read)} readable, in {check.seconds:.1f} s ({per_s})")]
    facts.append(("subjects", str(len(subjects)) if subjects else "not named: each case counts as one"))
    names = survey.dataset.classes
    listed = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    facts.append(("classes", f"{len(names)}: {listed}" if names else "none named"))
    counts = Counter(place for place in survey.places if place)
    sizes = ", ".join(f"{counts[name]} {name}" for name in get_args(Split) if counts[name])
    facts.append(("split", f"{sizes} ({check.method})" if sizes else check.method))
    if read:
        facts.append(
            (
                "images",
                _kinds([f"{len(case.shape)}D {case.modality} {case.dtype}".replace(" OT ", " ") for case in read]),
            )
        )
        shapes = np.array([sorted(case.shape) for case in read if len(case.shape) == len(read[0].shape)])
        middle = " x ".join(f"{edge:g}" for edge in np.median(shapes, axis=0))
        facts.append(("shape", f"median {middle}, from {_times(shapes.min(axis=0))} to {_times(shapes.max(axis=0))}"))
        facts += [("quality", _quality([case.quality for case in read if case.quality]))]
    if any(case.orientation for case in read):
        facts.append(("orientation", _kinds([case.orientation for case in read])))
    return facts


def _quality(measured: Sequence[Mapping[str, float]]) -> str:
    """Median of each measure, and its percentiles 5 and 95."""
    said = []
    for name in QUALITIES if measured else ():
        low, middle, high = np.percentile([case[name] for case in measured], [5, 50, 95])
        said.append(f"{name} {middle:.2g} ({low:.2g} to {high:.2g})")
    return ", ".join(said) or "not measured"


def _times(shape: Any) -> str:
    return " x ".join(str(int(edge)) for edge in shape)


def _kinds(words: list[str]) -> str:
    """The words with their counts, commonest first."""
    counts = Counter(words)
    shown = ", ".join(f"{word} ({count})" for word, count in counts.most_common(4))
    return shown + (", ..." if len(counts) > 4 else "")


def as_page(check: Check, title: str, command: str, mapper: Mapper[Any, Any] = map, read: Read = reader.read) -> Page:
    """The report: pictures are read again, some for each class and some for each finding.

    Args:
        check: what was found.
        title: names the dataset.
        command: what to do next.
        mapper: as for `check`.
        read: as for `check`.
    """
    entries = []
    for finding in check.findings:
        remarks = finding.remarks or ("",) * len(finding.cases)
        cases = tuple(zip(finding.cases, remarks, strict=True))
        entries.append(Entry(finding.severity, finding.code, finding.detail, finding.mend, cases))
    return Page(
        title=title,
        verdict=headline(check),
        ready=not check.errors and bool(check.survey.readable),
        next=command,
        facts=tuple(_facts(check)),
        entries=tuple(entries),
        figures=tuple(_figures(check.survey)),
        sheets=tuple(_sheets(check, mapper, read)),
        notes=check.survey.dataset.notes,
    )


def _figures(survey: Survey) -> Iterator[Picture]:
    """Classes per split, sizes, intensities, label volumes."""
    names = survey.dataset.classes
    present = {survey.places[row] for row in survey.readable}
    counts = {name: [0] * len(names) for name in (*get_args(Split), "") if name in present}
    for row in survey.readable:
        column = counts[survey.places[row]]
        for label in survey.labels(row):
            column[label] += 1
    first = 1 if _has_maps(survey) else 0  # 0 is the background, which every case has
    counts = {split: column[first:] for split, column in counts.items()}
    if any(any(column) for column in counts.values()):
        yield Picture(census.class_bars(counts, names[first:]), "Cases of each class")
    cases = [survey.cases[row] for row in survey.readable]
    if not cases:
        return
    rank = Counter(len(case.shape) for case in cases).most_common(1)[0][0]
    alike = [case for case in cases if len(case.shape) == rank]
    measured = [case.spacing for case in alike] if any(case.unit == "mm" for case in alike) else None
    yield Picture(census.edges([case.shape for case in alike], measured, "mm"), "Shape and spacing")
    columns = ([case.p01 for case in cases], [case.mean for case in cases], [case.p99 for case in cases])
    yield Picture(census.intensities(*columns), "Intensities")
    labelled = [case.voxels[first : len(names)] for case in cases if case.voxels]
    if labelled and len(names) <= census.MOST_CLASSES:
        yield Picture(census.label_volumes(labelled, names[first:]), "Size of each class in its label maps")


def _sheets(check: Check, mapper: Mapper[Any, Any], read: Read) -> Iterator[Sheet]:
    """Flagged cases, finding by finding, then samples of each class."""
    survey, refs = check.survey, check.survey.dataset.refs
    row_of = {ref.case_id: row for row, ref in enumerate(refs)}
    chosen: list[tuple[str, list[tuple[int, str]]]] = []
    room = MOST_FLAGGED
    for finding in check.findings:
        remarks = finding.remarks or ("",) * len(finding.cases)
        flagged = [(row_of[case], remark) for case, remark in zip(finding.cases, remarks, strict=True)]
        # Of what most cases have, the samples show enough.
        shown = [pair for pair in flagged if survey.cases[pair[0]].readable][: min(PER_FINDING, room)]
        if shown and len(flagged) < len(refs) / 2:
            chosen.append((f"Flagged: {finding.code}", shown))
            room -= len(shown)
    chosen += [(title, [(row, survey.places[row]) for row in rows]) for title, rows in _samples(survey)]
    rows = list(dict.fromkeys(row for _, pairs in chosen for row, _ in pairs))
    values, names = survey.dataset.legal_values, survey.dataset.classes
    taken = dict(zip(rows, mapper(planes, [Sitting(refs[row], values, names, read) for row in rows]), strict=True))
    for title, pairs in chosen:
        pictures = [_picture(refs[row].case_id, remark, found) for row, remark in pairs if (found := taken[row])]
        if pictures:
            yield Sheet(title, tuple(pictures), _legend(survey))


def _picture(case_id: str, remark: str, found: Planes) -> Picture:
    return Picture(tile(found.images, found.outlines), case_id, remark)


def _samples(survey: Survey) -> Iterator[tuple[str, list[int]]]:
    """(heading, rows): cases of each class, evenly over the set; of all cases where they carry no class."""
    groups: dict[str, list[int]] = {}
    for row in survey.readable:
        for label in survey.dataset.refs[row].target[:1]:
            groups.setdefault(f"Class {survey.dataset.classes[label]}", []).append(row)
    groups = dict(sorted(groups.items())) or ({"Cases": survey.readable} if survey.readable else {})
    each = max(1, min(PER_CLASS, MOST_SAMPLES // max(1, len(groups)))) if len(groups) != 1 else 2 * PER_CLASS
    for title, rows in list(groups.items())[:MOST_SAMPLES]:
        places: Array = np.unique(np.linspace(0, len(rows) - 1, min(each, len(rows))).round().astype(int))
        yield title, [rows[place] for place in places]


def _legend(survey: Survey) -> tuple[tuple[str, str], ...]:
    """Names and colours of what is drawn over the images."""
    names = list(enumerate(survey.dataset.classes))[:12]
    if _has_maps(survey):
        return tuple((name, colour_of(label)) for label, name in names[1:])
    if any(ref.boxes for ref in survey.dataset.refs):
        return tuple((name, colour_of(label + 1)) for label, name in names)
    return ()


def _has_maps(survey: Survey) -> bool:
    return any(ref.label_map for ref in survey.dataset.refs)
