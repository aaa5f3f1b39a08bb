"""The gate of the registry: a model becomes a candidate, and champion if it beats the one there is.

Asked again, after whatever broke in between, it goes on from what the registry has: one version of a run, promoted
once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medray.bundle import BundleError
from medray.config import ConfigError
from medray.pipeline.prepare import DataRefused, Prepared
from medray.pipeline.shelf import StoreError
from medray.tracking import registry
from medray.tracking.line import reason
from medray.tracking.registry import RegistryError, Standing
from medray.tracking.run import RunRecord
from medray.types import Array, InputError

Version = Any
"""MLflow's ModelVersion."""
Data = Callable[[], Prepared]
"""The data of the new run, prepared only if the champion has to be measured on them."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A version in the registry and whether it leads."""

    model: str
    champion: bool
    verdict: str
    """Why, in one line."""


def judge(record: RunRecord, name: str, bundle: Path, standing: Standing, data: Data) -> Registered:
    """Register the run's model as candidate, and as champion if it beats the one there is.

    Args:
        record: the run in MLflow.
        name: the model's.
        bundle: its folder.
        standing: what it stands with.
        data: the run's.
    """
    known = _version_of(record, name)
    number = registry.register(record, name, bundle, standing) if known is None else _candidate(record, known)
    champion = registry.find(record.client, name, registry.CHAMPION)
    model = f"{name}/{number}"
    if champion is not None:
        if str(champion.version) == number:
            return Registered(model, True, f"{model} is the new champion: {champion.tags.get('medray.promoted', '')}")
        if known is not None and _has_led(known, champion):
            return Registered(model, False, f"{model} was the champion; {name}/{champion.version} is now")
    verdict, better = _compare(record, name, standing, champion, data)
    if verdict:
        return Registered(model, False, verdict)
    registry.promote(record.client, name, number, better)
    return Registered(model, True, f"{model} is the new champion: {better}")


def _version_of(record: RunRecord, name: str) -> Version | None:
    """The version that this run has registered before."""
    found = record.client.search_model_versions(f"name = '{name}' and run_id = '{record.run_id}'")
    return min(found, key=lambda version: int(version.version), default=None)


def _candidate(record: RunRecord, known: Version) -> str:
    """The version's number; it is the candidate unless there is a newer one."""
    mlflow, name = record.client, known.name
    candidate = registry.find(mlflow, name, registry.CANDIDATE)
    if candidate is None or int(candidate.version) < int(known.version):
        mlflow.set_registered_model_alias(name, registry.CANDIDATE, str(known.version))
    return str(known.version)


def _has_led(known: Version, champion: Version) -> bool:
    """Whether the version was champion, and somebody has put another in its place since."""
    before = champion.tags.get(registry.PREVIOUS, "").split(",")
    return "medray.rolled_back" in known.tags or str(known.version) in before


def _compare(record: RunRecord, name: str, new: Standing, champion: Version | None, data: Data) -> tuple[str, str]:
    """Why the champion stays, or nothing and why the new one is better."""
    if champion is None:
        return "", "first model of this name"
    rival, problem = _rival_score(Standing.of(champion), new, partial(_measure, record, name, new, data))
    if problem:
        way = "to put the new one in its place: medray promote MODEL@candidate --reason '...'"
        return f"the champion stays: {problem}; {way}", ""
    scores = f"{new.monitor} {rival:.4f}, new {new.score:.4f}"
    if not new.beats(rival):
        return f"champion {name}/{champion.version} stays: {scores}", ""
    return "", f"{new.monitor} {new.score:.4f} is better than {rival:.4f} of {name}/{champion.version}"


def _rival_score(champion: Standing, new: Standing, measure: Callable[[], tuple[float, str]]) -> tuple[float, str]:
    """The champion's score on the new run's validation cases, or why there is none."""
    return (champion.score, "") if new.comparable(champion) else measure()


def _measure(record: RunRecord, name: str, new: Standing, data: Data) -> tuple[float, str]:
    """The present champion's metric on the new split's validation cases, read by its own road; or why not."""
    from medray.inference.predictor import Predictor

    try:
        prepared = data()
    except (ConfigError, DataRefused, StoreError, InputError, OSError) as error:
        return 0.0, f"this run's cases, to measure it on, are not there: {reason(error)}"
    try:
        folder, _ = registry.fetch(record.client, f"{name}@{registry.CHAMPION}")
    except (RegistryError, BundleError) as error:
        return 0.0, f"it cannot be measured: {reason(error)}"

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
