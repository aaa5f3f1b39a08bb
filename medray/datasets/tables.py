"""Tables of labels: the text of a CSV file, its columns by their usual names, and what its cells say of the cases."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from medray.config import ConfigError, nearest
from medray.datasets.files import SPLIT_NAMES, some
from medray.sections.base import DatasetSection
from medray.types import InputError, Split

IMAGE_ALIASES = ("image", "path", "file", "filename", "image_path", "filepath")
LABEL_ALIASES = ("label", "labels", "class", "target")
SUBJECT_ALIASES = ("subject", "subject_id", "patient", "patient_id")
TARGET_ALIASES = {"label": LABEL_ALIASES, "split": ("split",), "weight": ("weight",)}
"""Role -> usual names of the columns that every table of labels may have."""
SEPARATOR = "|"


class TargetSection(DatasetSection):
    """How the targets in a table are written."""

    label_column: str | None = None
    """By default label, labels, class or target."""
    split_column: str | None = None
    """By default split, where there is one: train, val (valid, validation) or test."""
    weight_column: str | None = None
    """By default weight, where there is one: the case's weight in the loss, 0 or more."""
    classes: tuple[str, ...] | None = None
    """Names in the order of the outputs; by default those in the table, sorted (as numbers if all are)."""
    multilabel: bool | None = None
    """Whether 'a|b' means both a and b, and empty means none; by default where a label is written so."""


@dataclass(frozen=True, slots=True)
class Table:
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

    def keep(self, rows: Sequence[int]) -> Table:
        """The table with these rows alone."""
        return replace(self, rows=[self.rows[row] for row in rows], lines=[self.lines[row] for row in rows])


@dataclass(frozen=True, slots=True)
class Targets:
    """What a table says of the cases, row by row."""

    classes: tuple[str, ...]
    multilabel: bool
    targets: list[tuple[int, ...]]
    splits: list[Split | None]
    weights: list[float]
    notes: tuple[str, ...]


def read_table(path: Path) -> Table:
    """The cells of a CSV file in UTF-8, separated by comma, semicolon or tab (whichever the header has most of).

    Raises:
        InputError: `broken_table`.
    """
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
    table = Table(path, header, rows, lines)
    if uneven:
        what = f"not {len(header)} cells as in the header"
        raise table.refuse("broken_table", uneven, what, "quote cells that hold the separator")
    return table


def find_columns(
    cfg: DatasetSection, table: Table, aliases: Mapping[str, Sequence[str]], required: Collection[str]
) -> dict[str, int | None]:
    """Where the column of each role is; None for an optional one that is not there.

    Args:
        cfg: names the column of a role as `<role>_column`, if it must not be found by its usual names.
        table: its header is searched.
        aliases: role -> usual names of its column, in lower case.
        required: roles that must be there.

    Raises:
        ConfigError: with every column that is not there, or that several could be.
    """
    found: dict[str, int | None] = {}
    mistakes = []
    lower = [name.lower() for name in table.header]
    for role, usual in aliases.items():
        wanted = cast(str | None, getattr(cfg, f"{role}_column"))
        there = [alias for alias in usual if alias in lower]
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
            if role in required:
                near = next(filter(None, (nearest(alias, table.header) for alias in usual)), "")
                mistakes.append(f"no {role} column ({', '.join(usual)}){near}; {have}; name it: dataset.{role}_column")
    if mistakes:
        raise ConfigError(mistakes)
    return found


def read_targets(cfg: TargetSection, table: Table, columns: Mapping[str, int | None]) -> Targets:
    """Targets, splits and weights in a table.

    Raises:
        InputError: `missing_label`, `unknown_class`, `wrong_split`, `wrong_weight`.
    """
    labels = table.column(columns["label"])
    nothing: list[tuple[int, ...]] = [()] * len(table.rows)
    classes, targets, multilabel, notes = ((), nothing, False, ()) if labels is None else _targets(cfg, table, labels)
    splits = _splits(table, table.column(columns["split"]))
    return Targets(classes, multilabel, targets, splits, _weights(table, table.column(columns["weight"])), notes)


def read_numbers(table: Table, names: Sequence[str]) -> list[tuple[float, ...]]:
    """The cells of some columns as numbers, row by row.

    Raises:
        ConfigError: with every column that is not there.
        InputError: `wrong_number`.
    """
    absent = [name for name in names if name not in table.header]
    if absent:
        have = f"{table.path.name} has: {', '.join(table.header)}"
        raise ConfigError(
            [f"dataset.numbers: no column '{name}'{nearest(name, table.header)}; {have}" for name in absent]
        )
    columns = []
    for name in names:
        cells = table.column(table.header.index(name)) or []
        numbers = [_number(cell) for cell in cells]
        if wrong := [row for row, number in enumerate(numbers) if not math.isfinite(number)]:
            what = f"'{name}' is '{cells[wrong[0]]}'"
            raise table.refuse("wrong_number", wrong, what, "write a number with a decimal point, or remove the rows")
        columns.append(numbers)
    return [tuple(row) for row in zip(*columns, strict=True)] if columns else [()] * len(table.rows)


def _number(cell: str) -> float:
    """NaN where a cell is no number."""
    try:
        return float(cell)
    except ValueError:
        return math.nan


def _targets(
    cfg: TargetSection, table: Table, labels: Sequence[str]
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


def _splits(table: Table, cells: Sequence[str] | None) -> list[Split | None]:
    """The split of each row, None where the cell is empty."""
    if cells is None:
        return [None] * len(table.rows)
    wrong = [row for row, cell in enumerate(cells) if cell and cell.lower() not in SPLIT_NAMES]
    if wrong:
        values = some(sorted({cells[row] for row in wrong}))
        raise table.refuse("wrong_split", wrong, f"split is {values}", "write train, val or test")
    return [cast(Split | None, SPLIT_NAMES.get(cell.lower())) for cell in cells]


def _weights(table: Table, cells: Sequence[str] | None) -> list[float]:
    """The weight of each row, 1 where the cell is empty."""
    weights, wrong = [], []
    for row, cell in enumerate(cells or [""] * len(table.rows)):
        weight = _number(cell or "1")
        if not (math.isfinite(weight) and weight >= 0):
            wrong.append(row)
        weights.append(weight)
    if wrong and cells:
        raise table.refuse("wrong_weight", wrong, f"weight is '{cells[wrong[0]]}'", "write a number of 0 or more: 0.5")
    return weights
