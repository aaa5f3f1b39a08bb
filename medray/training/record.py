"""What stays of a finished training: its bundle, its figures, its MLflow run, its place in the registry."""

from __future__ import annotations

import csv
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from medray import bundle as bundles
from medray.bundle import ModelBundle
from medray.config import PACKAGE, Experiment, to_yaml
from medray.inference.trust import fit, fit_interval
from medray.metrics.intervals import bootstrap
from medray.pipeline.prepare import Prepared, kind_of
from medray.pipeline.split import as_csv
from medray.tracking import pseudonyms, registry
from medray.tracking.registry import Standing
from medray.tracking.run import RunRecord, flatten
from medray.training import illustrate, illustrate_dense
from medray.training.contract import drift_of, seen_of
from medray.training.goal import monitor_of, monitor_sign, task_of
from medray.training.worker import Outcome
from medray.types import Array, InputError

if TYPE_CHECKING:
    from medray.tasks.regression import Regression

INTERVAL_CASES = 20_000
"""Above this many cases an interval is narrower than the seed's influence, and slow to draw."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A version in the registry and whether it leads."""

    model: str
    champion: bool
    verdict: str
    """Why, in one line."""


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


def environment() -> dict[str, str]:
    """Versions and code revision."""
    names = ("medray", "torch", "torchvision", "monai", "numpy", "ray", "mlflow")
    return {"python": platform.python_version(), "revision": revision(), **{name: _version(name) for name in names}}


def revision() -> str:
    """The commit of the code that runs, '+' where it was changed since; 'unknown' outside a repository."""
    git = ["git", "-C", str(PACKAGE.parent), "describe", "--always", "--dirty=+", "--exclude=*", "--abbrev=40"]
    if not (PACKAGE.parent / ".git").exists():
        return "unknown"
    try:
        found = subprocess.run(git, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return found.stdout.strip() or "unknown"


def _version(name: str) -> str:
    """Version of an installed package; medray itself may run from an uploaded folder."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def open_record(record: RunRecord, experiment: Experiment, prepared: Prepared) -> None:
    """Write down what a run starts from."""
    record.log_params(flatten(experiment.model_dump(mode="json")))
    record.log_tags(
        {
            "medray.data": prepared.fingerprint,
            "medray.split": prepared.split_fingerprint,
            "medray.split_method": prepared.split.method,
            "medray.refused": str(len(prepared.refused)),
            **{f"env.{name}": value for name, value in environment().items()},
        }
    )


def close_record(
    record: RunRecord,
    folder: Path,
    experiment: Experiment,
    prepared: Prepared,
    outcome: Outcome,
    judged: tuple[Prepared, float] | None = None,
) -> Registered | None:
    """Log final metrics, figures and files, and register the bundle that lies in `folder`.

    Args:
        record: the run in MLflow.
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
    record.log_metrics({f"best/{name}" if "/" in name else name: v for name, v in outcome.metrics.items()})
    record.log_folder(shared)
    if not experiment.tracking.register_model:
        return None
    monitor = monitor_of(experiment, prepared)
    sign = monitor_sign(monitor, experiment.train.mode)
    on, score = judged or (prepared, outcome.metrics.get(monitor, float("nan")))
    standing = Standing(monitor, score, sign, prepared.fingerprint, on.split_fingerprint)
    return _register(record, experiment.model_name, folder / "bundle", standing, prepared)


def _register(record: RunRecord, name: str, bundle: Path, standing: Standing, prepared: Prepared) -> Registered:
    """Register as candidate, and as champion if it beats the one there is."""
    champion = registry.find(record.client, name, registry.CHAMPION)
    number = registry.register(record, name, bundle, standing)
    better = "first model of this name"
    if champion is not None:
        measure = partial(_measure_champion, record, name, standing, prepared)
        rival, verdict = _rival_score(Standing.of(champion), standing, measure)
        if rival is not None and not standing.beats(rival):
            scores = f"{standing.monitor} {rival:.4f}, new {standing.score:.4f}"
            verdict = f"champion {name}/{champion.version} stays: {scores}"
        if verdict or rival is None:
            return Registered(f"{name}/{number}", False, verdict)
        better = f"{standing.monitor} {standing.score:.4f} is better than {rival:.4f} of {name}/{champion.version}"
    registry.promote(record.client, name, number, better)
    return Registered(f"{name}/{number}", True, f"{name}/{number} is the new champion: {better}")


def _rival_score(
    champion: Standing, new: Standing, measure: Callable[[], tuple[float, str]]
) -> tuple[float | None, str]:
    """The champion's score on the new run's validation cases, or None and why there is none."""
    if new.comparable(champion):
        return champion.score, ""
    score, problem = measure()
    if problem:
        way = "to put the new one in its place: medray promote MODEL@candidate --reason '...'"
        return None, f"the champion stays: {problem}; {way}"
    return score, ""


def _measure_champion(record: RunRecord, name: str, new: Standing, prepared: Prepared) -> tuple[float, str]:
    """The present champion's metric on the new split's validation cases, read by its own road; or why not."""
    from medray.inference.predictor import Predictor

    folder, _ = registry.fetch(record.client, f"{name}@{registry.CHAMPION}")
    predictor = Predictor(folder)
    metric = new.monitor.removeprefix("val/")
    if prepared.dense:
        return 0.0, "it was measured on other cases (compare the two with: medray evaluate DATA --bundle A --compare B)"
    if predictor.bundle.classes != prepared.dataset.classes:
        return 0.0, "it was trained for other classes, so the two cannot be compared"
    if metric == new.monitor or metric == "loss":
        return 0.0, f"{new.monitor} of two trainings is not comparable on other data"
    rows = prepared.rows("val")
    if not len(rows) or predictor.bundle.experiment.split.join_val:
        return 0.0, "one of the two was trained on validation cases too"
    answers = predictor.predict_all([prepared.dataset.refs[row].source for row in rows.tolist()])
    refused = [answer for answer in answers if isinstance(answer, InputError)]
    if refused:
        return 0.0, f"it refuses {len(refused)} of {len(rows)} validation cases ({refused[0]})"
    scores: Array = np.stack([answer.scores for answer in answers if not isinstance(answer, InputError)])
    return predictor.task.summarise(scores, prepared.targets[rows])[metric], ""


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
