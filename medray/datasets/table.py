"""A CSV table: one row per image with its label and, if known, subject, split and weight."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from medray.config import ConfigError, nearest
from medray.datasets.files import SPLIT_NAMES, require_file, require_files, some, subject_notes
from medray.sections.base import AbsolutePath, DatasetSection
from medray.types import CaseRef, Dataset, InputError, Split

EXPECTS = "a CSV file with a header and the columns image and label (optional: subject, split, weight)"
ALIASES = {
    "image": ("image", "path", "file", "filename", "image_path", "filepath"),
    "label": ("label", "labels", "class", "target"),
    "subject": ("subject", "subject_id", "patient", "patient_id"),
    "split": ("split",),
    "weight": ("weight",),
}
SEPARATOR = "|"


class Config(DatasetSection):
    """Where the table is and how its columns are called."""

    name: Literal["table"] = "table"
    path: AbsolutePath
    image_column: str | None = None
    """By default image, path, file, filename, image_path or filepath; paths are relative to the CSV."""
    label_column: str | None = None
    """By default label, labels, class or target."""
    subject_column: str | None = None
    """By default subject, subject_id, patient or patient_id, where there is one."""
    split_column: str | None = None
    """By default split, where there is one: train, val (valid, validation) or test."""
    weight_column: str | None = None
    """By default weight, where there is one: the case's weight in the loss, 0 or more."""
    classes: tuple[str, ...] | None = None
    """Names in the order of the outputs; by default those in the table, sorted (as numbers if all are)."""
    multilabel: bool | None = None
    """Whether 'a|b' means both a and b, and empty means none; by default where a label is written so."""


@dataclass(frozen=True)
class _Table:
    """The text of a CSV file: `rows[i]` begins on line `lines[i]` and has as many cells as `header`."""

    path: Path
    header: list[str]
    rows: list[list[str]]
    lines: list[int]

    def column(self, index: int | None) -> list[str] | None:
        """The stripped cells of one column."""
        return None if index is None else [row[index].strip() for row in self.rows]

    def refuse(self, code: str, wrong: Sequence[int], what: str, hint: str) -> InputError:
        """The error for some rows, naming how many and the first lines."""
        lines = ", ".join(str(self.lines[row]) for row in wrong[:3]) + (", ..." if len(wrong) > 3 else "")
        return InputError(code, f"{self.path.name}: {what} in {len(wrong)} rows (lines {lines})", hint)


def scan(cfg: Config) -> Dataset:
    """References to the images that a CSV table lists, in the table's order.

    Raises:
        ConfigError: no file, or no such column.
        InputError: `broken_table`, `missing_files`, `missing_label`, `unknown_class`, `wrong_split`, `wrong_weight`.
    """
    table = _read(require_file(cfg.path, EXPECTS))
    columns = _columns(cfg, table)
    names = table.column(columns["image"]) or []
    blank = [row for row, name in enumerate(names) if not name]
    if blank:
        raise table.refuse("broken_table", blank, "no image", "fill the cells or remove the rows")
    root = table.path.parent
    # Backslashes: tables are often written on Windows.
    ids = [os.path.normpath(name.replace("\\", "/")) for name in names]
    paths = [root / case_id for case_id in ids]
    require_files(paths, root, "images")
    classes, targets, multilabel, notes = _targets(cfg, table, table.column(columns["label"]) or [])
    subjects = table.column(columns["subject"]) or [""] * len(ids)
    splits = _splits(table, table.column(columns["split"]))
    weights = _weights(table, table.column(columns["weight"]))
    refs = tuple(map(CaseRef, ids, paths, targets, subjects, splits, weights))
    mend = "add a column subject, or name yours with dataset.subject_column"
    return Dataset(refs, classes, multilabel, notes + subject_notes(refs, mend))


def _read(path: Path) -> _Table:
    """The cells of a CSV file in UTF-8, separated by comma, semicolon or tab (whichever the header has most of)."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        detail = f"{path.name} is not UTF-8 (byte {error.start})"
        raise InputError("broken_table", detail, "save it as 'CSV UTF-8'") from None
    first = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
    rows: list[list[str]] = []
    lines, uneven = [], []
    try:
        header = [cell.strip() for cell in next(reader, [])]
        following = reader.line_num + 1
        for row in reader:
            # A quoted cell may span lines: a row is known by the line on which it begins.
            line, following = following, reader.line_num + 1
            if any(cell.strip() for cell in row):
                uneven += [len(rows)] * (len(row) != len(header))
                rows.append(row)
                lines.append(line)
    except csv.Error as error:
        detail = f"{path.name}, line {reader.line_num}: {error}"
        raise InputError("broken_table", detail, "mend the quoting") from None
    table = _Table(path, header, rows, lines)
    if uneven:
        what = f"not {len(header)} cells as in the header"
        raise table.refuse("broken_table", uneven, what, "quote cells that hold the separator")
    return table


def _columns(cfg: Config, table: _Table) -> dict[str, int | None]:
    """Where each column is; None for an optional one that is not there."""
    found: dict[str, int | None] = {}
    mistakes = []
    lower = [name.lower() for name in table.header]
    for role, aliases in ALIASES.items():
        wanted = cast(str | None, getattr(cfg, f"{role}_column"))
        there = [alias for alias in aliases if alias in lower]
        have = f"{table.path.name} has: {', '.join(table.header) or 'no columns at all'}"
        if wanted is not None:
            if wanted not in table.header:
                mistakes.append(f"dataset.{role}_column: no column '{wanted}'{nearest(wanted, table.header)}; {have}")
            found[role] = table.header.index(wanted) if wanted in table.header else None
        elif len(there) > 1 and there[0] != role:
            mistakes.append(f"dataset.{role}_column: {some(there)} could each be it; name one; {have}")
        elif there:
            found[role] = lower.index(there[0])
        else:
            found[role] = None
            if role in ("image", "label"):
                near = next(filter(None, (nearest(alias, table.header) for alias in aliases)), "")
                mistakes.append(
                    f"no {role} column ({', '.join(aliases)}){near}; {have}; name it: dataset.{role}_column"
                )
    if mistakes:
        raise ConfigError(mistakes)
    return found


def _targets(
    cfg: Config, table: _Table, labels: Sequence[str]
) -> tuple[tuple[str, ...], list[tuple[int, ...]], bool, tuple[str, ...]]:
    """Classes, targets, whether multi-label, and notes."""
    empty = [row for row, label in enumerate(labels) if not label]
    joined = any(SEPARATOR in label for label in labels)
    multilabel = bool(joined or empty) if cfg.multilabel is None else cfg.multilabel
    if empty and not multilabel:
        hint = "fill the cells, or dataset.multilabel=true where empty means none of the classes"
        raise table.refuse("missing_label", empty, "no label", hint)
    parts = [
        tuple(dict.fromkeys(filter(None, map(str.strip, label.split(SEPARATOR))))) if multilabel else (label,)
        for label in labels
    ]
    classes = cfg.classes or tuple(sorted({name for names in parts for name in names}, key=_class_order(parts)))
    index = {name: position for position, name in enumerate(classes)}
    unknown = [row for row, names in enumerate(parts) if any(name not in index for name in names)]
    if unknown:
        strange = next(name for name in parts[unknown[0]] if name not in index)
        hint = f"dataset.classes has {some(classes, 10)}{nearest(strange, classes)}"
        raise table.refuse("unknown_class", unknown, f"unknown class such as '{strange}'", hint)
    notes: tuple[str, ...] = ()
    if cfg.multilabel is None and empty:
        notes = (
            f"{len(empty)} labels are empty, so the table is read as multi-label and they mean none of the classes "
            "(dataset.multilabel=false refuses them)",
        )
    return classes, [tuple(sorted(index[name] for name in names)) for names in parts], multilabel, notes


def _class_order(parts: Sequence[Sequence[str]]) -> type[int] | type[str]:
    """Classes 2 and 10 sort as numbers, names as words."""
    names = {name for names in parts for name in names}
    return int if all(name.isascii() and name.isdigit() for name in names) else str


def _splits(table: _Table, cells: Sequence[str] | None) -> list[Split | None]:
    """The split of each row, None where the cell is empty."""
    if cells is None:
        return [None] * len(table.rows)
    wrong = [row for row, cell in enumerate(cells) if cell and cell.lower() not in SPLIT_NAMES]
    if wrong:
        values = some(sorted({cells[row] for row in wrong}))
        raise table.refuse("wrong_split", wrong, f"split is {values}", "write train, val or test")
    return [cast(Split | None, SPLIT_NAMES.get(cell.lower())) for cell in cells]


def _weights(table: _Table, cells: Sequence[str] | None) -> list[float]:
    """The weight of each row, 1 where the cell is empty."""
    weights, wrong = [], []
    for row, cell in enumerate(cells or [""] * len(table.rows)):
        try:
            weight = float(cell or 1)
        except ValueError:
            weight = math.nan
        if not (math.isfinite(weight) and weight >= 0):
            wrong.append(row)
        weights.append(weight)
    if wrong and cells:
        raise table.refuse("wrong_weight", wrong, f"weight is '{cells[wrong[0]]}'", "write a number of 0 or more: 0.5")
    return weights
