"""A study in MLflow: one parent run, one nested run per trial, made from the study's folder and never the other way.

Every call brings MLflow to where the folder is: what it knows already is left, so a restart doubles and loses nothing.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

from medray.config import Experiment
from medray.pipeline.prepare import Prepared
from medray.tracking.journal import Row
from medray.tracking.run import PARENT, RunRecord, client, last_values, start, tagged
from medray.training.progress import say
from medray.training.record import open_record
from medray.tuning.trials import Trial, curve, load

EVERY_S = 2.0
STUDY = "medray.study"
"""Name of the study's folder."""
TAG = "medray.trial"
"""The trial's number."""
STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}
"""MLflow's; `medray.state` says which trials were stopped early."""


class Mirror:
    """Copies trials to MLflow, in a thread of its own while the study runs: MLflow never holds up a study."""

    def __init__(self, experiment: Experiment, folder: Path, prepared: Prepared, changed: set[int]) -> None:
        self._experiment = experiment
        self._folder = folder
        self._prepared = prepared
        self._changed = changed
        self._parent: RunRecord | None = None
        self._known = dict[int, tuple[RunRecord, int]]()
        """The run of each trial, and the last epoch that is in it."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="mlflow", daemon=True)

    def open(self) -> None:
        """Begin to copy."""
        self._thread.start()

    def close(self) -> None:
        """Copy what is left.

        Raises:
            MlflowException: MLflow does not answer.
        """
        self._stop()
        self.sync()

    def abandon(self, status: str) -> None:
        """The study was interrupted: say so, if MLflow answers."""
        self._stop()
        with contextlib.suppress(Exception):
            self.sync()
            self.parent().finish(status)

    def _stop(self) -> None:
        self._over.set()
        self._thread.join()

    def parent(self) -> RunRecord:
        """The run of the whole study: exactly one, however often the study is taken up again."""
        if self._parent is None:
            mlflow, name = client(self._experiment.tracking.uri), self._folder.name
            known = tagged(mlflow, self._experiment.name, STUDY, name)
            run_id = known[0][0].run_id if known else None
            parent = start(mlflow, self._experiment.name, name, run_id, tags={STUDY: name})
            open_record(parent, self._experiment, self._prepared)
            for record, tags in tagged(mlflow, self._experiment.name, PARENT, parent.run_id):
                if TAG in tags:
                    self._known[int(tags[TAG])] = (record, int(last_values(record).get("epoch", 0)))
            self._parent = parent
        return self._parent

    def _follow(self) -> None:
        complained = False
        while not self._over.wait(EVERY_S):
            try:
                self.sync()
            except Exception as error:
                if not complained:
                    say(f"MLflow cannot be written: {error}; the study goes on, its records are in {self._folder}")
                complained = True

    def sync(self) -> None:
        """Bring MLflow to where the changed trials are."""
        self.parent()
        for index in sorted(self._changed.copy()):
            self._changed.discard(index)
            try:
                self._copy(load(self._folder, index))
            except BaseException:
                self._changed.add(index)
                raise

    def _copy(self, trial: Trial) -> None:
        record, logged = self._known.get(trial.index) or (self._new(trial), 0)
        rows = [_shown(row) for row in curve(self._folder, trial.index).rows if row["epoch"] > logged]
        record.log_rows(rows)
        self._known[trial.index] = (record, int(rows[-1]["epoch"]) if rows else logged)
        record.log_tags({"medray.state": trial.state, **({"medray.error": trial.error} if trial.error else {})})
        if trial.ended:
            record.log_metrics({f"best/{name}" if "/" in name else name: v for name, v in trial.measured.items()})
            record.finish(STATUS[trial.state])

    def _new(self, trial: Trial) -> RunRecord:
        parent, tags = self.parent(), {TAG: str(trial.index)}
        record = start(parent.client, self._experiment.name, f"trial {trial.index}", parent=parent.run_id, tags=tags)
        record.log_params(trial.settings)
        self._known[trial.index] = (record, 0)
        return record


def _shown(row: Row) -> Row:
    return {name: value for name, value in row.items() if not name.startswith("at/")}
