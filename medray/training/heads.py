"""From a bundle and labelled cases to their pooled features, classical classifiers on them, and a bundle of the best.

The classifiers are fitted on train, their settings and the best of them are chosen on val, and test is only measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np

from medray.bundle import ModelBundle
from medray.cluster import Mapper, home
from medray.config import ConfigError, Experiment
from medray.evaluation import provenance
from medray.imaging.preprocess import normalise
from medray.inference.classical import PRIVACY, Kind, scores
from medray.inference.features import embed
from medray.inference.fitting import Examples, Fitted, check_kinds, fit
from medray.inference.predictor import Predictor
from medray.metrics.classification import macro_auroc
from medray.metrics.intervals import bootstrap_many
from medray.pipeline.examine import experiment_of, report_folder
from medray.pipeline.prepare import Prepared, prepare
from medray.tasks.task import Task
from medray.tasks.task import build as build_task
from medray.tracking import pseudonyms
from medray.tracking.run import client, start
from medray.training.head_files import Row, save_bundle, write_csv, write_parquet
from medray.types import Array, Split

SPLITS: tuple[Split, ...] = get_args(Split)
MEASURED: tuple[Split, ...] = ("val", "test")
WITH_INTERVAL = ("auroc", "accuracy")
BUNDLE = "bundle"
MOST_CASES = 20_000
"""Above this many cases an interval is narrow, and slow to draw."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The words of the command; see medray/cli_inference.py."""

    predictor: Predictor
    name: str
    """Of the model."""
    out: Path
    """Of features, tables and the bundle; it holds none yet."""
    data: str | None = None
    settings: Sequence[str] = ()
    fit: Sequence[str] = ()
    """Names of classifiers; none: only the features are taken."""
    record: bool = True
    tracking: str | None = None


def run(asked: Asked, mapper: Mapper[Any, Any] = map) -> dict[str, Any]:
    """Take the features, fit, measure, write, record, tell a person on stderr, and return the result in numbers.

    Raises:
        ConfigError: wrong settings, data that do not fit the model, or a split that tests what it was trained on.
        DataRefused, StoreError: as in a training.
    """
    predictor = asked.predictor
    kinds = check_kinds(asked.fit) if asked.fit else ()
    experiment = experiment_for(asked.data, asked.settings, predictor.bundle)
    folder = report_folder(getattr(experiment.dataset, "path", None), experiment.name, asked.out)
    if (folder / BUNDLE).exists():
        raise ConfigError([f"--out: '{asked.out}' holds a bundle already; name another folder"])
    prepared = prepare(experiment, home() / "stores", mapper)
    held_out = check_split(prepared, predictor.bundle)
    folder.mkdir(parents=True, exist_ok=True)
    features = features_of(predictor, experiment, prepared)
    secret = pseudonyms.key()
    table = folder / "features.parquet"
    write_parquet(table, features, prepared, predictor.bundle, partial(pseudonyms.pseudonym, secret=secret))
    pseudonyms.write_map(folder / "cases.csv", [ref.case_id for ref in prepared.dataset.refs], secret)
    counts = {name: len(prepared.rows(name)) for name in SPLITS}
    result: dict[str, Any] = {
        "model": asked.name,
        "features": features.shape[1],
        "cases": counts,
        "refused": len(prepared.refused),
        "parquet": str(table),
        "held_out": held_out,
    }
    sys.stderr.write(f"{sum(counts.values())} cases, {features.shape[1]} features each: {table}\n{held_out}\n")
    return result | (_fit_all(asked, kinds, experiment, prepared, features, folder) if kinds else {})


def experiment_for(data: str | None, settings: Sequence[str], bundle: ModelBundle) -> Experiment:
    """The bundle's experiment with the data that are meant; its preprocessing, and unless they are set its splits.

    Raises:
        ConfigError: wrong settings, or no such data.
    """
    own = bundle.experiment
    if data is None:
        if settings:
            raise ConfigError([f"name the data before their settings: {' '.join(settings)}"])
        return own
    found = experiment_of(data, settings)
    is_path = not data.endswith((".yaml", ".yml")) and Path(data).expanduser().exists()
    set_here = any(item.startswith("split") for item in settings)
    chosen = {"dataset": found.dataset, "split": own.split if is_path and not set_here else found.split}
    return own.model_copy(update=chosen)


def check_split(prepared: Prepared, bundle: ModelBundle) -> str:
    """What val and test of these data are to the model's own training, in one line.

    Raises:
        ConfigError: they are the data that it was trained on, dealt another way.
    """
    card = bundle.card
    if prepared.fingerprint != card.get("data"):
        refs = [prepared.dataset.refs[row] for name in MEASURED for row in prepared.rows(name).tolist()]
        return provenance.judge(refs, "val and test", provenance.training_data(bundle), same=False).statement
    if prepared.split_fingerprint != card.get("split"):
        fact = "these are the data that the model was trained on, dealt another way"
        hint = "its val and test would hold cases that it learnt; leave the split out, or set it as in the training"
        raise ConfigError([f"split: {fact}; {hint}"])
    return "The same split as in the network's training: what it was not trained on is measured."


def features_of(predictor: Predictor, experiment: Experiment, prepared: Prepared) -> Array:
    """(N, F) float32 of every case, 0 where it is in no split."""
    bundle, cfg = predictor.bundle, experiment.preprocess
    rows = np.sort(np.concatenate([prepared.rows(name) for name in SPLITS]))
    take: Callable[[int], Array]
    if prepared.dense:
        take = prepared.open_cases(experiment).image
    else:
        images = prepared.open(experiment).images
        expected = (bundle.channels, *bundle.io.size)
        if images.shape[1:] != expected:
            raise ConfigError(
                [f"dataset: images have shape {images.shape[1:]} on the network's grid, it takes {expected}"]
            )
        take = images.__getitem__
    found = embed(predictor, (normalise(np.asarray(take(row), np.float32), cfg) for row in rows.tolist()))
    features = np.zeros((len(prepared.dataset.refs), found.shape[1]), np.float32)
    features[rows] = found
    return features


def _fit_all(
    asked: Asked, kinds: Sequence[Kind], experiment: Experiment, prepared: Prepared, features: Array, folder: Path
) -> dict[str, Any]:
    """Fit and measure each, write tables and the bundle of the best."""
    task = task_for(experiment, prepared)
    parts = {name: examples(prepared, features, prepared.rows(name)) for name in SPLITS}
    multilabel = prepared.dataset.multilabel
    metric = partial(macro_auroc, multilabel=multilabel)
    fitted: dict[Kind, Fitted] = {}
    for kind in kinds:
        fitted[kind] = fit(kind, parts["train"], parts["val"], metric, multilabel, experiment.seed)
    rows = {kind: measure(task, found, parts) for kind, found in fitted.items()}
    # Of equals the first, which is the simpler; what is nowhere defined is the worst.
    best = max(kinds, key=lambda kind: (np.nan_to_num(fitted[kind].score, nan=-1.0), -kinds.index(kind)))
    head = fitted[best].head
    sys.stderr.write(as_text(list(rows.values()), best))
    report = {"chosen": best, "on": "val/auroc", "classifiers": [asdict(row) for row in rows.values()]}
    shared = folder / "heads"
    shared.mkdir(exist_ok=True)
    (shared / "heads.json").write_text(json.dumps(_plain(report), indent=2, allow_nan=False), encoding="utf-8")
    write_csv(shared / "heads.csv", list(rows.values()))
    val = scores(head, parts["val"].features)
    base = asked.predictor.bundle
    bundle = save_bundle(folder / BUNDLE, base, experiment, prepared, task, rows[best], head, val)
    if head.keeps_cases:
        sys.stderr.write(f"warning: the bundle {PRIVACY}\n")
    return {
        "chosen": best,
        "metrics": {name: round(value, 6) for name, value in _finite(rows[best].metrics).items()},
        "intervals": _plain(rows[best].intervals),
        "bundle": str(bundle.folder),
        "keeps_training_cases": head.keeps_cases,
        "run_id": _record(asked, experiment, rows, best, shared) if asked.record else None,
    }


def task_for(experiment: Experiment, prepared: Prepared) -> Task:
    """The classification of these data.

    Raises:
        ConfigError: the model's task is none.
    """
    if experiment.task.name != "classification":
        raise ConfigError([f"--fit: needs a class per case; the model is a {experiment.task.name}. Leave --fit empty"])
    targets = prepared.targets[prepared.rows("train")]
    return build_task(experiment.task, prepared.dataset.classes, prepared.dataset.multilabel, targets)


def examples(prepared: Prepared, features: Array, rows: Array) -> Examples:
    """The cases of some rows."""
    subjects = tuple(prepared.dataset.refs[row].subject for row in rows.tolist())
    return Examples(features[rows], prepared.targets[rows], subjects)


def measure(task: Task, fitted: Fitted, parts: Mapping[Split, Examples]) -> Row:
    """The figures of a classifier on val and test, with 95 % intervals drawn by subject."""
    metrics: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for name in MEASURED:
        part = parts[name]
        if not len(part.features):
            continue
        found, targets = scores(fitted.head, part.features), part.targets
        metrics |= {f"{name}/{figure}": value for figure, value in task.summarise(found, targets).items()}
        if len(found) <= MOST_CASES:

            def statistic(rows: Array, found: Array = found, targets: Array = targets) -> dict[str, float]:
                figures = task.summarise(found[rows], targets[rows])
                return {figure: figures[figure] for figure in WITH_INTERVAL}

            drawn = bootstrap_many(statistic, part.subjects)
            intervals |= {f"{name}/{figure}": (round(low, 4), round(high, 4)) for figure, (low, high) in drawn.items()}
    return Row(fitted.head.kind, dict(fitted.head.settings), metrics, intervals)


def as_text(rows: Sequence[Row], best: str) -> str:
    """A table for a person."""
    lines = [f"{'classifier':11} " + "".join(f"{f'{s} {m}':26}" for s in MEASURED for m in WITH_INTERVAL) + "settings"]
    for row in rows:
        cells = "".join(f"{_cell(row, f'{split}/{figure}'):26}" for split in MEASURED for figure in WITH_INTERVAL)
        settings = " ".join(f"{name}={value}" for name, value in row.settings.items())
        lines.append(f"{row.kind:11} {cells}{settings}{'   chosen on val' if row.kind == best else ''}")
    return "\n".join(lines) + "\n"


def _cell(row: Row, name: str) -> str:
    if name not in row.metrics:
        return "-"
    low, high = row.intervals.get(name, (float("nan"), float("nan")))
    return f"{row.metrics[name]:.3f} [{low:.3f}, {high:.3f}]"


def _record(asked: Asked, experiment: Experiment, rows: Mapping[Kind, Row], best: Kind, files: Path) -> str:
    """A run 'features-MODEL' beside the model's trainings; its id."""
    record = start(client(asked.tracking or experiment.tracking.uri), experiment.name, f"features-{asked.name}")
    digest = asked.predictor.bundle.digest
    record.log_tags({"medray.kind": "features", "medray.model": asked.name, "medray.digest": digest})
    record.log_params(
        {"chosen": best, **{f"{kind}.{k}": v for kind, row in rows.items() for k, v in row.settings.items()}}
    )
    record.log_metrics({f"{kind}/{name}": value for kind, row in rows.items() for name, value in row.metrics.items()})
    record.log_folder(files)
    record.finish("FINISHED")
    return record.run_id


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if np.isfinite(value)}


def _plain(value: Any) -> Any:
    """The same for JSON: what is not defined is null."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
