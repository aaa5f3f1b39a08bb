"""The MLflow record of a training while it runs. MLflow's troubles are said at once and never cost the training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from medray.config import Experiment
from medray.pipeline.prepare import Prepared
from medray.tracking.journal import Row
from medray.training.progress import say

if TYPE_CHECKING:
    from medray.tracking.run import RunRecord


class LiveRecord:
    """Opened with the first epoch, in the thread that follows the journal: its imports take seconds."""

    def __init__(self, experiment: Experiment, folder: Path, prepared: Prepared, parent: str | None = None) -> None:
        self._experiment = experiment
        self._parent = parent
        self._folder = folder
        self._prepared = prepared
        self._record: RunRecord | None = None
        self._waiting: list[Row] = []
        self._logged = 0.0
        self._complained = False

    def opened(self) -> RunRecord:
        """The record; exactly one for a run's folder, however often the run is taken up again."""
        if self._record is None:
            from medray.tracking.run import client, start
            from medray.training.record import open_record

            file = self._folder / "run.json"
            known = json.loads(file.read_text(encoding="utf-8"))["run_id"] if file.is_file() else None
            mlflow = client(self._experiment.tracking.uri)
            record = start(mlflow, self._experiment.name, self._folder.name, known, self._parent)
            file.write_text(json.dumps({"run_id": record.run_id}), encoding="utf-8")
            if known is None:
                open_record(record, self._experiment, self._prepared)
            self._record = record
        return self._record

    def epoch(self, row: Row) -> None:
        """Log an epoch's numbers; what cannot be logged now waits for the next time."""
        self._waiting.append(row)
        try:
            self.flush()
        except Exception as error:
            if not self._complained:
                say(f"MLflow cannot be written: {error}; the training goes on, its journal is in {self._folder}")
            self._complained = True

    def flush(self) -> None:
        """Log every epoch that waits, each once: a restart of workers repeats those after its checkpoint."""
        record = self.opened()
        while self._waiting:
            row = self._waiting[0]
            if row["epoch"] > self._logged:
                shown = {name: value for name, value in row.items() if not name.startswith("at/")}
                record.log_metrics(shown, step=int(row["epoch"]))
                self._logged = row["epoch"]
            self._waiting.pop(0)

    def finish(self, status: str) -> None:
        """Close the record, if there is one."""
        if self._record is not None:
            self._record.finish(status)
