"""One MLflow run per training, written from one process by its id: no fluent state, no rank logic."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from medray.cluster import home
from medray.tracking.journal import END, Row

Client = MlflowClient
TrackingError = MlflowException
"""What MLflow raises where its server or database does not answer, or refuses."""
MAX_PARAM_CHARS = 500
BATCH = 100
"""MLflow's limit of parameters in one call."""
METRICS = 1000
"""MLflow's limit of metrics in one call."""
PAGE = 1000
PARENT = "mlflow.parentRunId"
"""MLflow's tag of a nested run."""


def tracking_uri(uri: str | None) -> str:
    """The experiment's server, else $MLFLOW_TRACKING_URI's, else the SQLite file in medray's home."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def client(uri: str | None) -> MlflowClient:
    """A client of the tracking server and its registry."""
    home().mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=tracking_uri(uri), registry_uri=tracking_uri(uri))


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run in MLflow."""

    client: MlflowClient
    run_id: str

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Parameters as text, cut to MLflow's length."""
        items = [Param(name, str(value)[:MAX_PARAM_CHARS]) for name, value in params.items()]
        for start in range(0, len(items), BATCH):
            self.client.log_batch(self.run_id, params=items[start : start + BATCH])

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0, at: float | None = None) -> None:
        """Metrics at one step; what is undefined (NaN) is left out.

        Args:
            metrics: at most METRICS of them are there together, or none is.
            step: of all.
            at: time.time() of them, by default now. MLflow keeps what it is told twice, with the same time, once.
        """
        moment = int((time.time() if at is None else at) * 1000)
        known = [Metric(name, float(v), moment, step) for name, v in metrics.items() if math.isfinite(v)]
        self._send(known)

    def log_rows(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Metrics of some epochs, each with its `epoch` as step and the end of the epoch as time.

        What is undefined (NaN) and what is a time itself (at/...) is left out. At most METRICS figures go in one call,
        so they are there, or none is; of an epoch with more of them `epoch` comes last.
        """
        self._send(
            [
                Metric(name, float(row[name]), int(row.get(END, time.time()) * 1000), int(row["epoch"]))
                for row in rows
                for name in [*figures(row), "epoch"]
            ]
        )

    def _send(self, metrics: Sequence[Metric]) -> None:
        for start in range(0, len(metrics), METRICS):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + METRICS])

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Tags of the run."""
        self.client.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in tags.items()])

    def log_folder(self, folder: Path, name: str = "") -> None:
        """Every file of `folder` as an artifact."""
        self.client.log_artifacts(self.run_id, str(folder), name or None)

    def finish(self, status: str, ended: float | None = None) -> None:
        """Close the run as FINISHED, FAILED or KILLED, at time.time() `ended`, by default now."""
        self.client.set_terminated(self.run_id, status, None if ended is None else int(ended * 1000))


def figures(row: Mapping[str, float]) -> list[str]:
    """Names of a row's metrics beside `epoch`: neither undefined nor a time."""
    return [n for n, value in row.items() if n != "epoch" and not n.startswith("at/") and math.isfinite(value)]


def batches(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Whole epochs in their order, as many at a time as MLflow takes in one call."""
    size = max(1, METRICS // max((len(figures(row)) + 1 for row in rows), default=1))
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


def start(
    mlflow: MlflowClient,
    experiment: str,
    name: str,
    run_id: str | None = None,
    parent: str | None = None,
    tags: Mapping[str, str] | None = None,
    began: float | None = None,
) -> RunRecord:
    """A new run of `experiment`, or the run `run_id` opened again.

    Args:
        mlflow: the client.
        experiment: MLflow experiment, made if it does not exist.
        name: shown in MLflow.
        run_id: a run to go on with.
        parent: run id of the study that this is a trial of.
        tags: of a new run.
        began: time.time() of the beginning of a new run, by default now.
    """
    if run_id is not None:
        mlflow.update_run(run_id, status="RUNNING")
        return RunRecord(mlflow, run_id)
    names = {"mlflow.runName": name, **({PARENT: parent} if parent else {}), **(tags or {})}
    moment = None if began is None else int(began * 1000)
    made = mlflow.create_run(_experiment_id(mlflow, experiment), start_time=moment, tags=names)
    return RunRecord(mlflow, made.info.run_id)


@dataclass(frozen=True, slots=True)
class KnownRun:
    """A run as MLflow has it."""

    record: RunRecord
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    """The newest value of each."""
    status: str
    params: Mapping[str, str]


def tagged(mlflow: MlflowClient, experiment: str, name: str, value: str) -> list[KnownRun]:
    """The runs of `experiment` whose tag `name` has this value, the oldest first."""
    found: list[KnownRun] = []
    token = None
    while True:
        page = mlflow.search_runs(
            [_experiment_id(mlflow, experiment)],
            f"tags.`{name}` = '{value}'",
            max_results=PAGE,
            order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
            page_token=token,
        )
        for run in page:
            record = RunRecord(mlflow, run.info.run_id)
            found.append(KnownRun(record, run.data.tags, run.data.metrics, run.info.status, run.data.params))
        token = page.token
        if not token:
            return found


def _experiment_id(mlflow: MlflowClient, name: str) -> str:
    """Id of the MLflow experiment; with the embedded store its artifacts lie in medray's home."""
    known = mlflow.get_experiment_by_name(name)
    if known is not None:
        return str(known.experiment_id)
    embedded = mlflow.tracking_uri.startswith("sqlite:")
    location = (home() / "artifacts" / name).as_uri() if embedded else None
    return str(mlflow.create_experiment(name, artifact_location=location))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}; the keys are those of the command line."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
