"""What stays of classical heads: features as Parquet, figures as CSV, the best as a bundle that predicts."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import numpy as np

from medray import bundle as bundles
from medray.bundle import ModelBundle
from medray.config import Experiment
from medray.inference.classical import PRIVACY, Head, head_to_bytes
from medray.inference.features import head_answer
from medray.inference.trust import fit as fit_trust
from medray.pipeline.prepare import Prepared
from medray.tasks.task import Task
from medray.training.provenance import environment
from medray.types import Array, Split


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One classifier, measured."""

    kind: str
    settings: Mapping[str, Any]
    metrics: Mapping[str, float]
    """'val/auroc' and the like."""
    intervals: Mapping[str, tuple[float, float]]


def write_parquet(
    file: Path, features: Array, prepared: Prepared, bundle: ModelBundle, rename: Callable[[str], str]
) -> None:
    """One row per case in a split: case, subject, split, classes (joined by '|'), f0, f1, ... as float32.

    Ids appear as `rename` gives them; a subject that the dataset does not know stays empty. The schema's metadata say
    which model made the features, and of what.
    """
    import pyarrow as pa
    from pyarrow import parquet

    where = {row: name for name in get_args(Split) for row in prepared.rows(name).tolist()}
    rows = sorted(where)
    refs = [prepared.dataset.refs[row] for row in rows]
    classes = np.array(prepared.dataset.classes, object)
    columns: dict[str, Any] = {
        "case": [rename(ref.case_id) for ref in refs],
        "subject": [rename(ref.subject_id) if ref.subject_id else "" for ref in refs],
        "split": [where[row] for row in rows],
        "classes": ["|".join(classes[prepared.targets[row] > 0]) for row in rows],
        **{f"f{index}": pa.array(column) for index, column in enumerate(features[rows].T.copy())},
    }
    preprocessing = bundle.experiment.preprocess.model_dump_json().encode()
    about = {
        "medray.bundle": bundle.digest,
        "medray.preprocess": hashlib.sha256(preprocessing).hexdigest(),
        "medray.data": prepared.fingerprint,
        "medray.split": prepared.split_fingerprint,
        "medray.classes": json.dumps(prepared.dataset.classes),
    }
    parquet.write_table(pa.table(columns).replace_schema_metadata(about), file)


def write_csv(file: Path, rows: Sequence[Row]) -> None:
    """One line per classifier and figure."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["classifier", "settings", "split", "figure", "value", "low", "high"])
        for row in rows:
            settings = json.dumps(dict(row.settings))
            for name, value in row.metrics.items():
                split, _, figure = name.partition("/")
                low, high = row.intervals.get(name, ("", ""))
                writer.writerow([row.kind, settings, split, figure, value, low, high])


def save_bundle(
    folder: Path,
    base: ModelBundle,
    experiment: Experiment,
    prepared: Prepared,
    task: Task,
    row: Row,
    head: Head,
    val: Array,
) -> ModelBundle:
    """A bundle of the network of `base` whose answers are the head's.

    Args:
        folder: does not exist yet.
        base: the network, its preprocessing and its input.
        experiment: the data and splits.
        prepared: the same, prepared.
        task: what decides by the head's scores.
        row: its figures.
        head: the classifier.
        val: (n, K) its scores of the validation cases, which say how far they can be trusted.
    """
    from safetensors.torch import load_file

    classes, multilabel = prepared.dataset.classes, prepared.dataset.multilabel
    targets = prepared.targets[prepared.rows("val")]
    card = {
        "classes": list(classes),
        "multilabel": multilabel,
        "outputs": base.card["outputs"],
        "input": base.card["input"],
        "decision": task.decision,
        "trust": fit_trust(experiment.trust, classes, multilabel, val, targets).as_dict(),
        "metrics": {name: float(value) for name, value in row.metrics.items() if np.isfinite(value)},
        "intervals": {name: list(pair) for name, pair in row.intervals.items() if np.isfinite(pair).all()},
        "cases": {name: len(prepared.rows(name)) for name in get_args(Split)},
        "data": prepared.fingerprint,
        "split": prepared.split_fingerprint,
        "environment": {**environment(), "scikit-learn": version("scikit-learn")},
        "head": {
            "kind": head.kind,
            "settings": dict(head.settings),
            "features": head.features,
            "network": base.digest,
            "keeps_training_cases": head.keeps_cases,
            "privacy": PRIVACY if head.keeps_cases else "holds no features of single cases",
        },
    }
    weights = load_file(base.folder / "weights.safetensors")
    return bundles.save(
        folder, experiment, weights, card, extras=head_to_bytes(head), answer=partial(head_answer, head)
    )
