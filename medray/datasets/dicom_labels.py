"""A table of labels for a tree of DICOM series: which row is meant for which series."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from medray.config import ConfigError
from medray.datasets.files import require_file
from medray.datasets.tables import TARGET_ALIASES, Table, TargetSection, find_columns, read_table

if TYPE_CHECKING:
    from medray.imaging.dicom.series import SeriesInfo

EXPECTS = "a CSV file with a column that names series, studies, folders or patients, and a column label"
KEYS = {
    "series": ("series", "series_uid", "series_instance_uid", "seriesinstanceuid"),
    "study": ("study", "study_uid", "study_instance_uid", "studyinstanceuid"),
    "folder": ("folder", "path", "directory"),
    "patient": ("patient", "patient_id", "patientid", "subject", "subject_id"),
}
"""What a row can be about -> usual names of its column; the first that is there counts."""


@dataclass(frozen=True, slots=True)
class LabelTable:
    """A table whose rows are each about one series, study, folder or patient."""

    table: Table
    columns: Mapping[str, int | None]
    key: str
    """series, study, folder or patient."""

    def rows_of(self, found: Sequence[SeriesInfo], root: Path) -> dict[str, int]:
        """SeriesInstanceUID -> its row, for each series that has one.

        Raises:
            InputError: `missing_series` for rows that no series is meant by; `broken_table` for rows about the same.
        """
        cells = self.table.column(self.columns[self.key]) or []
        names = [os.path.normpath(cell.replace("\\", "/")) if self.key == "folder" else cell for cell in cells]
        row = {name: position for position, name in enumerate(names)}
        twice = [position for position, name in enumerate(names) if row[name] != position]
        if twice:
            raise self.table.refuse("broken_table", twice, f"the same {self.key} as in a later row", "one row each")
        rows = {info.uid: row[name] for info in found for name in self._names(info, root) if name in row}
        lost = sorted(set(row.values()) - set(rows.values()))
        if lost:
            hint = f"correct the column, or dataset.{self.key}_column; folders are relative to dataset.path"
            raise self.table.refuse("missing_series", lost, f"no series of such a {self.key}", hint)
        return rows

    def _names(self, info: SeriesInfo, root: Path) -> list[str]:
        """What a row could call a series; of several the last counts."""
        if self.key != "folder":
            return [{"series": info.uid, "study": info.study_uid, "patient": info.patient_id}[self.key]]
        folder = PurePosixPath(os.path.relpath(os.path.commonpath([file.parent for file in info.files]), root))
        # The nearest folder last.
        return [str(place) for place in reversed((folder, *folder.parents))]


def open_labels(cfg: TargetSection, path: Path) -> LabelTable:
    """The table of labels.

    Raises:
        ConfigError: no file or no such column.
        InputError: `broken_table`.
    """
    table = read_table(require_file(path, EXPECTS))
    columns = find_columns(cfg, table, {**KEYS, **TARGET_ALIASES}, ("label",))
    named = [key for key in KEYS if getattr(cfg, f"{key}_column") is not None]
    there = named or [key for key in KEYS if columns[key] is not None]
    if not there:
        have = f"{table.path.name} has: {', '.join(table.header)}"
        raise ConfigError([f"dataset.labels: no column series, study, folder or patient; {have}; name it"])
    return LabelTable(table, columns, there[0])
