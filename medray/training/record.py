"""What stays of a finished training in its folder: its bundle, its figures, and what MLflow is to be told."""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from medray import bundle as bundles
from medray.bundle import ModelBundle
from medray.config import Experiment, to_yaml
from medray.inference.trust import fit, fit_interval
from medray.metrics.intervals import bootstrap
from medray.pipeline.prepare import Prepared, kind_of
from medray.pipeline.split import as_csv
from medray.tracking import pseudonyms
from medray.tracking.run import RunRecord, flatten
from medray.training import handover, illustrate, illustrate_dense
from medray.training.contract import drift_of, seen_of
from medray.training.delivery import deliver_end
from medray.training.gate import Registered
from medray.training.goal import monitor_of, monitor_sign, task_of
from medray.training.handover import Contest, End
from medray.training.provenance import environment
from medray.training.worker import Outcome

if TYPE_CHECKING:
    from medray.tasks.regression import Regression

INTERVAL_CASES = 20_000
"""Above this many cases an interval is narrower than the seed's influence, and slow to draw."""


def save_bundle(
    folder: Path, experiment: Experiment, prepared: Prepared, outcome: Outcome, trust: dict[str, Any] | None = None
) -> ModelBundle:
    """Write the model with its card, and what it has seen.

    Args:
        folder: made here.
        experiment: the run.
        prepared: its data.
        outcome: what came out.
        trust: what validation cases said of a training with the same settings, where this one had none.
    """
    task = task_of(experiment, prepared)
    seen = seen_of(experiment, prepared, outcome.weights)
    card: dict[str, Any] = {
        "classes": list(prepared.dataset.classes),
        "multilabel": prepared.dataset.multilabel,
        "outputs": task.outputs,
        "input": describe_input(experiment, prepared),
        "decision": task.decision,
        "trust": trust_of(experiment, prepared, outcome) if prepared.split.val else trust,
        "contract": None if seen is None else seen.contract.as_dict(),
        "metrics": _finite(outcome.metrics),
        "intervals": intervals(experiment, prepared, outcome),
        "cases": {name: len(prepared.rows(name)) for name in ("train", "val", "test")},
        "data": prepared.fingerprint,
        "split": prepared.split_fingerprint,
        "environment": environment(),
    }
    card["drift"] = drift_of(experiment, prepared, outcome.scores, card, seen)
    settled = experiment.model_copy(update={"task": task.settled})
    return bundles.save(folder, settled, outcome.weights, card, {} if seen is None else seen.contract.files())


def describe_input(experiment: Experiment, prepared: Prepared) -> dict[str, Any]:
    """What the network takes: channels and edges of its grid or window, and the axes of the images."""
    size = prepared.shape[1:]
    axes = 3 if experiment.preprocess.slice is not None else len(size)
    if prepared.dense:
        axes = prepared.open_cases(experiment).spatial_dims
    return {"channels": prepared.shape[0], "size": list(size), "axes": axes, "dense": prepared.dense}


def trust_of(experiment: Experiment, prepared: Prepared, outcome: Outcome) -> dict[str, Any] | None:
    """What the validation cases say of the network's answers; None for a dense task."""
    classes, multilabel = prepared.dataset.classes, prepared.dataset.multilabel
    targets = prepared.targets[prepared.rows("val")]
    match kind_of(experiment):
        case "dense":
            return None
        case "numeric":
            points = cast("Regression", task_of(experiment, prepared)).point(outcome.scores["val"])
            return fit_interval(experiment.trust, classes, points, targets).as_dict()
    return fit(experiment.trust, classes, multilabel, outcome.scores["val"], targets).as_dict()


def intervals(experiment: Experiment, prepared: Prepared, outcome: Outcome) -> dict[str, list[float]]:
    """95 % intervals of the task's own metric on val and test, drawn by subject."""
    task = task_of(experiment, prepared)
    name = task.monitor.removeprefix("val/")
    found = {}
    for split, scores in outcome.scores.items():
        rows = prepared.rows(split)
        if not 0 < len(rows) <= INTERVAL_CASES:
            continue
        subjects = [prepared.dataset.refs[row].subject for row in rows.tolist()]
        low, high = bootstrap(task.headline, scores, prepared.targets[rows], subjects)
        if np.isfinite(low):
            found[f"{split}/{name}"] = [round(low, 4), round(high, 4)]
    return found


def open_record(record: RunRecord, experiment: Experiment, prepared: Prepared) -> None:
    """Write down what a run starts from."""
    record.log_params(flatten(experiment.model_dump(mode="json")))
    record.log_tags(handover.tags_of(prepared))


def keep_end(
    folder: Path,
    experiment: Experiment,
    prepared: Prepared,
    outcome: Outcome,
    judged: tuple[Prepared, float] | None = None,
) -> End:
    """Write figures, tables and what MLflow is to be told into the run's folder, where the bundle lies.

    Args:
        folder: the run's.
        experiment: the run.
        prepared: its data.
        outcome: what came out.
        judged: the validation cases and value of the monitored metric that the model stands with, where it was trained
            on all cases: those of a training with the same settings.
    """
    secret = pseudonyms.key()
    rename = partial(pseudonyms.pseudonym, secret=secret)
    refs = prepared.dataset.refs
    names = dict.fromkeys([*(ref.case_id for ref in refs), *(ref.subject for ref in refs)])
    pseudonyms.write_map(folder / "cases.csv", names, secret)
    shared = folder / "shared"
    if prepared.dense:
        illustrate_dense.illustrate(shared / "figures", experiment, prepared, outcome, rename, folder / "bundle")
    else:
        illustrate.illustrate(shared / "figures", experiment, prepared, outcome, rename)
    (shared / "experiment.yaml").write_text(to_yaml(experiment), encoding="utf-8")
    table = as_csv(prepared.dataset, prepared.split, rename)
    (shared / "split.csv").write_text(table, encoding="utf-8")
    _write_per_class(shared / "per_class.csv", experiment, prepared, outcome)
    _write_refused(shared / "refused.csv", prepared, rename)
    metrics = {f"best/{name}" if "/" in name else name: v for name, v in outcome.metrics.items()}
    contest = _contest(experiment, prepared, outcome, judged) if experiment.tracking.register_model else None
    end = End("FINISHED", metrics=_finite(metrics), contest=contest)
    handover.end(folder, end)
    return end


def _contest(
    experiment: Experiment, prepared: Prepared, outcome: Outcome, judged: tuple[Prepared, float] | None
) -> Contest:
    """What the model stands with."""
    monitor = monitor_of(experiment, prepared)
    on, score = judged or (prepared, outcome.metrics.get(monitor, float("nan")))
    sign = monitor_sign(monitor, experiment.train.mode)
    return Contest(experiment.model_name, monitor, score, sign, prepared.fingerprint, on.split_fingerprint)


def close_record(
    record: RunRecord,
    folder: Path,
    experiment: Experiment,
    prepared: Prepared,
    outcome: Outcome,
    judged: tuple[Prepared, float] | None = None,
) -> Registered | None:
    """Keep the end of a run in its folder (see keep_end) and tell MLflow of it at once."""
    end = keep_end(folder, experiment, prepared, outcome, judged)
    return deliver_end(record, folder, end, lambda: prepared)


def _write_per_class(file: Path, experiment: Experiment, prepared: Prepared, outcome: Outcome) -> None:
    task = task_of(experiment, prepared)
    tables = {
        split: task.per_class(scores, prepared.targets[prepared.rows(split)])
        for split, scores in outcome.scores.items()
        if len(scores)
    }
    if not tables:
        return
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["split", "class", *next(iter(next(iter(tables.values())).values()))])
        writer.writerows([split, name, *row.values()] for split, rows in tables.items() for name, row in rows.items())


def _write_refused(file: Path, prepared: Prepared, rename: Callable[[str], str]) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["case", "code", "detail", "hint"])
        writer.writerows([rename(item.case_id), item.code, item.detail, item.hint] for item in prepared.refused)


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if np.isfinite(value)}


def describe(outcome: Outcome) -> dict[str, Any]:
    """Metrics of the best weights, as the job's last line shows them."""
    return {name: round(value, 6) for name, value in _finite(outcome.metrics).items()}
