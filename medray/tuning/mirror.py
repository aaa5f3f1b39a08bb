"""A study in MLflow: one parent run, one nested run per trial, made from the study's folder and never the other way.

Every call brings MLflow to where the folder is: what it knows already is left, so a restart, or a server that fails in
between, doubles and loses nothing. Of an epoch that was done twice MLflow keeps the first.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from pathlib import Path

from medray.config import Experiment
from medray.pipeline.prepare import Prepared
from medray.tracking.run import PARENT, KnownRun, RunRecord, batches, client, start, tagged
from medray.training.progress import say
from medray.training.record import open_record
from medray.tuning.trials import Trial, curve, load

EVERY_S = 2.0
PATIENCE_S = 5.0
STUDY = "medray.study"
"""Name of the study's folder."""
TAG = "medray.trial"
"""The trial's number."""
STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}
"""MLflow's; `medray.state` says which trials were stopped early."""


@dataclass(slots=True)
class Copy:
    """What MLflow has of a trial."""

    record: RunRecord
    epoch: int = 0
    """The last one."""
    described: bool = False
    """Its settings."""
    measured: bool = False
    """The metrics of its best weights."""
    status: str = "RUNNING"

    @staticmethod
    def of(run: KnownRun) -> Copy:
        """As MLflow tells it."""
        epoch, measured = int(run.metrics.get("epoch", 0)), "best_epoch" in run.metrics
        return Copy(run.record, epoch, bool(run.params), measured, run.status)


class Mirror:
    """Copies trials to MLflow, in a thread of its own while the study runs: MLflow never holds up a study."""

    def __init__(self, experiment: Experiment, folder: Path, prepared: Prepared, changed: set[int]) -> None:
        self._experiment = experiment
        self._folder = folder
        self._prepared = prepared
        self._changed = changed
        self._parent: RunRecord | None = None
        self._copies = dict[int, Copy]()
        self._complained = False
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
        """The study was interrupted: say so, if MLflow answers at once."""
        self._over.set()
        self._thread.join(PATIENCE_S)
        if self._thread.is_alive() or self._complained:
            return
        with contextlib.suppress(Exception):
            self.sync()
            for found in self._copies.values():
                if found.status == "RUNNING":
                    found.record.finish(status)
            self.parent().finish(status)

    def _stop(self) -> None:
        self._over.set()
        self._thread.join()

    def parent(self) -> RunRecord:
        """The run of the whole study: exactly one, however often the study is taken up again."""
        if self._parent is None:
            mlflow, name = client(self._experiment.tracking.uri), self._folder.name
            known = tagged(mlflow, self._experiment.name, STUDY, name)
            run_id = known[0].record.run_id if known else None
            parent = start(mlflow, self._experiment.name, name, run_id, tags={STUDY: name})
            open_record(parent, self._experiment, self._prepared)
            for run in tagged(mlflow, self._experiment.name, PARENT, parent.run_id):
                if TAG in run.tags:
                    self._copies[int(run.tags[TAG])] = Copy.of(run)
            self._parent = parent
        return self._parent

    def _follow(self) -> None:
        while not self._over.wait(EVERY_S):
            try:
                self.sync()
            except Exception as error:
                if not self._complained:
                    say(f"MLflow cannot be written: {error}; the study goes on, its records are in {self._folder}")
                self._complained = True

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
        """Each step is noted as soon as it is done, so that a failure in between repeats none."""
        found = self._copies.get(trial.index) or self._new(trial)
        if trial.ended and found.status == STATUS[trial.state]:
            return
        if found.status != "RUNNING":
            found.record.client.update_run(found.record.run_id, status="RUNNING")
            found.status = "RUNNING"
        if not found.described:
            found.record.log_params(trial.settings if not trial.events else {})
            found.described = True
        for rows in batches([row for row in curve(self._folder, trial.index).rows if row["epoch"] > found.epoch]):
            found.record.log_rows(rows)
            found.epoch = int(rows[-1]["epoch"])
        found.record.log_tags(
            {"medray.state": trial.state, **({"medray.error": trial.public_error} if trial.error else {})}
        )
        if not trial.ended:
            return
        if trial.measured and not found.measured:
            measured = {f"best/{name}" if "/" in name else name: value for name, value in trial.measured.items()}
            found.record.log_metrics(measured)
            found.measured = True
        found.record.finish(STATUS[trial.state])
        found.status = STATUS[trial.state]

    def _new(self, trial: Trial) -> Copy:
        parent, tags = self.parent(), {TAG: str(trial.index)}
        record = start(parent.client, self._experiment.name, f"trial {trial.index}", parent=parent.run_id, tags=tags)
        self._copies[trial.index] = found = Copy(record)
        return found
