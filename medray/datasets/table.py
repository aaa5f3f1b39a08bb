"""A CSV table: one row per image with its label and, if known, subject, split and weight."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Literal

from medray.datasets.files import require_file, require_files
from medray.datasets.subjects import subject_notes
from medray.datasets.tables import (
    IMAGE_ALIASES,
    SUBJECT_ALIASES,
    TARGET_ALIASES,
    TargetSection,
    find_columns,
    read_numbers,
    read_table,
    read_targets,
)
from medray.sections.base import AbsolutePath
from medray.types import CaseRef, Dataset

EXPECTS = "a CSV file with a header and the columns image and label (optional: subject, split, weight)"
ALIASES = {
    "image": IMAGE_ALIASES,
    "subject": SUBJECT_ALIASES,
    **TARGET_ALIASES,
}


class Config(TargetSection):
    """Where the table is and how its columns are called."""

    name: Literal["table"] = "table"
    path: AbsolutePath
    image_column: str | None = None
    """By default image, path, file, filename, image_path or filepath; paths are relative to the CSV."""
    subject_column: str | None = None
    """By default subject, subject_id, patient or patient_id, where there is one."""
    numbers: tuple[str, ...] = ()
    """Columns of numbers, for a regression: then the table needs no label."""


def scan(cfg: Config) -> Dataset:
    """References to the images that a CSV table lists, in the table's order.

    Raises:
        ConfigError: no file, or no such column.
        InputError: `broken_table`, `missing_files`, `missing_label`, `unknown_class`, `wrong_number`, `wrong_split`,
            `wrong_weight`.
    """
    table = read_table(require_file(cfg.path, EXPECTS))
    columns = find_columns(cfg, table, ALIASES, ("image",) if cfg.numbers else ("image", "label"))
    names = table.column(columns["image"]) or []
    blank = [row for row, name in enumerate(names) if not name]
    if blank:
        raise table.refuse("broken_table", blank, "no image", "fill the cells or remove the rows")
    root = table.path.parent
    # Backslashes: tables are often written on Windows.
    ids = [os.path.normpath(name.replace("\\", "/")) for name in names]
    paths = [root / case_id for case_id in ids]
    require_files(paths, root, "images")
    told = read_targets(cfg, table, columns)
    numbers = read_numbers(table, cfg.numbers)
    subjects = table.column(columns["subject"]) or [""] * len(ids)
    refs = tuple(map(CaseRef, ids, paths, told.targets, subjects, told.splits, told.weights))
    refs = tuple(replace(ref, numbers=row) for ref, row in zip(refs, numbers, strict=True))
    mend = "add a column subject, or name yours with dataset.subject_column"
    notes = told.notes + subject_notes(refs, mend)
    return Dataset(refs, told.classes, told.multilabel, notes, quantities=cfg.numbers)
