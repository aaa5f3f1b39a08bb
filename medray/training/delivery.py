"""A run's folder brought to MLflow: each epoch once and in order, then its end and its model.

All that is sent lies in the folder, and MLflow is asked for what it has. So whatever fails in between, and whoever goes
on, the same call again ends where an unbroken one does. Of an epoch that was done again MLflow keeps the first.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from medray import cluster
from medray.config import Experiment, load
from medray.pipeline.prepare import DataRefused, Prepared, prepare
from medray.tracking import journal
from medray.tracking.registry import Standing
from medray.tracking.run import Client, KnownRun, RunRecord, batches, flatten, start, tagged, tracking_uri
from medray.training import gate, handover
from medray.training.folder import EXPERIMENT, RESULT
from medray.training.gate import Data, Registered
from medray.training.handover import Contest, End

RUN = "medray.run"
"""MLflow's tag with the name of the run's folder."""
PATIENCE_S = 30.0

_OPENING = threading.RLock()
"""The folds of a cross-validation look for its whole at the same time, and one of them makes it."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """What MLflow has of a run, all of it."""

    run_id: str
    tracking_uri: str
    registered: Registered | None


class Delivery:
    """Brings MLflow to where a run's folder is; after a failure MLflow is asked again for what it has.

    Args:
        folder: the run's.
        mlflow: the client.
        experiment: by default the one in the folder.
        prepared: the run's data; by default they are prepared if the champion has to be measured on them.
    """

    def __init__(
        self,
        folder: Path,
        mlflow: Client,
        experiment: Experiment | None = None,
        prepared: Prepared | None = None,
    ) -> None:
        self._folder = folder
        self._mlflow = mlflow
        self._experiment = experiment or load(folder / EXPERIMENT)
        self._prepared = prepared
        self._record: RunRecord | None = None
        self._status = ""
        self._epoch = 0
        self._position = 0
        self.changed = False
        """Whether MLflow was told anything new."""

    def catch_up(self, running: bool = True) -> RunRecord:
        """Send the epochs that MLflow does not have.

        Args:
            running: say that the run goes on, if MLflow believes it has ended.
        """
        with self._asked_again():
            record = self._opened()
            if running and self._status != "RUNNING":
                self._mlflow.update_run(record.run_id, status="RUNNING")
                self._status = "RUNNING"
            rows, position = journal.read(self._folder / journal.JOURNAL, self._position)
            for batch in batches(list(self._fresh(rows))):
                record.log_rows(batch)
                self._epoch, self.changed = int(batch[-1]["epoch"]), True
            self._position = position
        return record

    def finish(self) -> Delivered:
        """Send all that is left, to the status that the run ended with; without one it was killed."""
        record = self.catch_up(running=False)
        end = handover.end_of(self._folder)
        registered = None
        with self._asked_again():
            if end is not None and end.status == "FINISHED":
                self.changed = True
                registered = deliver_end(record, self._folder, end, self._data)
            how = end or End("KILLED", self._last_moment())
            if self._status != how.status and (end is not None or self._status == "RUNNING"):
                record.finish(how.status, how.ended)
                self._status, self.changed = how.status, True
        return Delivered(record.run_id, tracking_uri(self._experiment.tracking.uri), registered)

    def _last_moment(self) -> float:
        """When the last was heard of the run."""
        file = self._folder / journal.JOURNAL
        return (file if file.is_file() else self._folder / handover.START).stat().st_mtime

    @contextmanager
    def _asked_again(self) -> Iterator[None]:
        """Whether a request that failed was carried out only MLflow knows."""
        try:
            yield
        except BaseException:
            self._record, self._epoch, self._position = None, 0, 0
            raise

    def _fresh(self, rows: list[journal.Row]) -> Iterator[journal.Row]:
        """Of each epoch that MLflow does not have the first row."""
        last = self._epoch
        for row in rows:
            if row["epoch"] > last:
                last = int(row["epoch"])
                yield row

    def _opened(self) -> RunRecord:
        """The folder's run in MLflow: found, or made."""
        if self._record is None:
            known = self._found_or_made()
            self._epoch, self._status = int(known.metrics.get("epoch", 0)), known.status
            params = flatten(self._experiment.model_dump(mode="json"))
            if missing := {name: value for name, value in params.items() if name not in known.params}:
                known.record.log_params(missing)
                self.changed = True
            self._record = known.record
        return self._record

    def _found_or_made(self) -> KnownRun:
        mlflow, folder, name = self._mlflow, self._folder, self._experiment.name
        if not _OPENING.acquire(timeout=PATIENCE_S):
            raise TimeoutError("another fold waits for its answer")
        try:
            known = tagged(mlflow, name, RUN, folder.name)
            if known:
                found = known[0]
            else:
                note = handover.start_of(folder)
                parent = None
                if note.parent is not None:
                    whole = Delivery(folder.with_name(note.parent), mlflow, self._experiment)
                    parent = whole._found_or_made().record.run_id
                tags = {RUN: folder.name, **note.tags}
                record = start(mlflow, name, folder.name, parent=parent, tags=tags, began=note.began)
                found, self.changed = KnownRun(record, tags, {}, "RUNNING", {}), True
        finally:
            _OPENING.release()
        handover.save(folder / handover.RUN_ID, {"run_id": found.record.run_id})
        return found

    def _data(self) -> Prepared:
        """The run's data, the same ones.

        Raises:
            DataRefused: they have changed since.
        """
        if self._prepared is None:
            prepared = prepare(self._experiment, cluster.home() / "stores", cluster.parallel_map)
            noted = handover.start_of(self._folder).tags
            if (prepared.fingerprint, prepared.split_fingerprint) != (noted["medray.data"], noted["medray.split"]):
                raise DataRefused("the data or their split have changed since", ())
            self._prepared = prepared
        return self._prepared


def deliver_end(record: RunRecord, folder: Path, end: End, data: Data) -> Registered | None:
    """Send final figures and files, and register the model in the folder; what is there already is not sent twice.

    Args:
        record: the run in MLflow.
        folder: the run's.
        end: how it ended.
        data: the run's data.
    """
    known = record.client.get_run(record.run_id).data.metrics
    missing = {name: value for name, value in end.metrics.items() if name not in known}
    record.log_metrics(missing, at=end.ended)
    if (folder / "shared").is_dir():
        record.log_folder(folder / "shared")
    if end.contest is None:
        return None
    return gate.judge(record, end.contest.model, folder / "bundle", _standing(end.contest), data)


def _standing(contest: Contest) -> Standing:
    return Standing(contest.monitor, contest.score, contest.sign, contest.data, contest.split)


def settle(folder: Path, delivered: Delivered) -> None:
    """Write into the run's result, if it has one by now, that MLflow has it all."""
    file = folder / RESULT
    if file.is_file():
        handover.save(file, {**handover.read(file), **outcome_of(delivered)})


def outcome_of(delivered: Delivered | None) -> dict[str, object]:
    """What a run's result says of MLflow; None: it does not have the run, or not all of it."""
    if delivered is None:
        return {"run_id": None, "model": None, "champion": False, "tracked": False}
    found = delivered.registered
    return {
        "run_id": delivered.run_id,
        "tracking_uri": delivered.tracking_uri,
        "model": found.model if found else None,
        "champion": bool(found and found.champion),
        "tracked": True,
    }
