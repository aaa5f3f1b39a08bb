"""Columns that results are sliced by: of a table beside the data, with numbers in bands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from medray.config import ConfigError, nearest
from medray.datasets.files import some
from medray.datasets.tables import IMAGE_ALIASES, SUBJECT_ALIASES, read_table
from medray.types import CaseRef

CASE_COLUMNS = ("case", "case_id", "id", *IMAGE_ALIASES)
AGES = (18, 40, 65, 80)
"""Where age bands begin: children, younger and older adults, the old, the very old."""
DISTINCT = 10
"""A column with more different numbers than this is cut into bands."""

Columns = Mapping[str, tuple[str, ...]]


def read_columns(table: Path, refs: Sequence[CaseRef]) -> Columns:
    """Every column of a CSV table, one value per case of `refs`: '' where the table does not have the case.

    Rows belong to cases by the column case (case_id, id, image, path, ...), else to subjects by the column subject
    (patient, ...). Paths may be written as in the table or relative to the data: the last part counts where whole
    names are unknown.

    Raises:
        ConfigError: no such file, no column of cases or subjects, two rows of one case, or none of the cases is in it.
        InputError: `broken_table`.
    """
    if not table.is_file():
        raise ConfigError([f"--table: '{table}' does not exist (looked in {Path.cwd()})"])
    read = read_table(table)
    lower = [name.lower() for name in read.header]
    by_case = next((lower.index(name) for name in CASE_COLUMNS if name in lower), None)
    by_subject = next((lower.index(name) for name in SUBJECT_ALIASES if name in lower), None)
    for index, names in ((by_case, [ref.case_id for ref in refs]), (by_subject, [ref.subject for ref in refs])):
        cells = read.column(index)
        if cells is None or index is None:
            continue
        rows = _rows_of(names, cells, single=index == by_case)
        if any(row is not None for row in rows):
            return {
                name: tuple("" if row is None else read.rows[row][place].strip() for row in rows)
                for place, name in enumerate(read.header)
                if place not in (by_case, by_subject)
            }
    if by_case is None and by_subject is None:
        wanted = f"{', '.join(CASE_COLUMNS)}, or of subjects: {', '.join(SUBJECT_ALIASES)}"
        raise ConfigError(
            [f"--table: '{table.name}' has no column of cases ({wanted}); it has {some(read.header, 20)}"]
        )
    raise ConfigError([f"--table: '{table.name}' lists none of the {len(refs)} cases or their subjects"])


def _rows_of(names: Sequence[str], cells: Sequence[str], single: bool) -> list[int | None]:
    """The row of each name; by its last part where no whole name is known."""
    for short in (False, True):
        keys = [_key(cell, short) for cell in cells]
        place = {key: row for row, key in reversed(list(enumerate(keys)))}
        found = [place.get(_key(name, short)) for name in names]
        if any(row is not None for row in found):
            hit = {_key(name, short) for name in names}
            twice = [key for key, times in Counter(keys).items() if times > 1 and key in hit] if single else []
            if twice:
                raise ConfigError([f"--table: {len(twice)} cases have several rows: {some(twice)}"])
            return found
    return [None] * len(names)


def _key(name: str, short: bool) -> str:
    whole = name.replace("\\", "/").removeprefix("./")
    return whole.rsplit("/", 1)[-1] if short else whole


def pick(columns: Columns, by: Sequence[str]) -> Columns:
    """The columns `by`, numbers in bands.

    Raises:
        ConfigError: naming those that are not there.
    """
    missing = [name for name in by if name not in columns]
    if missing:
        have = ", ".join(columns) or "none; give a table with --table"
        raise ConfigError([f"--by: no column '{name}'{nearest(name, columns)}; there are: {have}" for name in missing])
    return {name: banded(name, columns[name]) for name in by}


def banded(name: str, cells: Sequence[str]) -> tuple[str, ...]:
    """The cells, or bands of them where they are many different numbers: of ages from AGES on, else quarters."""
    numbers = np.array([_number(cell) for cell in cells])
    given = np.array([cell != "" for cell in cells])
    if np.isnan(numbers[given]).any() or len(set(numbers[given].tolist())) <= DISTINCT:
        return tuple(cells)
    if name.lower().startswith("age"):
        edges = np.array(AGES, float)
        names = [f"0 to {AGES[0] - 1}", *(f"{a} to {b - 1}" for a, b in pairwise(AGES)), f"{AGES[-1]} or more"]
    else:
        edges = np.unique(np.quantile(numbers[given], [0.25, 0.5, 0.75]))
        shown = [f"{edge:.4g}" for edge in edges]
        names = [f"< {shown[0]}", *(f"{a} to < {b}" for a, b in pairwise(shown)), f"≥ {shown[-1]}"]
    places = np.searchsorted(edges, numbers, side="right")
    return tuple(names[place] if there else "" for place, there in zip(places.tolist(), given.tolist(), strict=True))


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")
