"""What a run's folder holds for MLflow beside its journal: how the run began, and how it ended.

The training writes it, whether MLflow answers or not; delivery.py reads it. No case is named in it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medray.pipeline.prepare import Prepared
from medray.training.folder import write_whole
from medray.training.provenance import environment

START = "mlflow-start.json"
END = "mlflow-end.json"
RUN_ID = "run.json"


@dataclass(frozen=True, slots=True)
class Start:
    """How a run began."""

    began: float
    """time.time()"""
    tags: Mapping[str, str]
    parent: str | None = None
    """Name of the folder of the whole that this run is a part of; it lies beside the run's."""


@dataclass(frozen=True, slots=True)
class Contest:
    """A model for the registry, and what it stands with: the fields of registry.Standing."""

    model: str
    monitor: str
    score: float
    sign: int
    data: str
    split: str


@dataclass(frozen=True, slots=True)
class End:
    """How a run ended."""

    status: str
    """MLflow's: FINISHED, FAILED or KILLED."""
    ended: float = field(default_factory=time.time)
    """time.time()"""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Final figures, all of them defined."""
    contest: Contest | None = None
    """None where no model is to be registered."""


def begin(folder: Path, prepared: Prepared | None, parent: str | None) -> None:
    """Note the start, once for a run; one that is taken up again has not ended."""
    (folder / END).unlink(missing_ok=True)
    if not (folder / START).is_file():
        save(folder / START, asdict(Start(time.time(), tags_of(prepared), parent)))


def tags_of(prepared: Prepared | None) -> dict[str, str]:
    """What a run starts from, as tags; without data where it is the whole of several runs."""
    made = {f"env.{name}": value for name, value in environment().items()}
    if prepared is None:
        return made
    return {
        "medray.data": prepared.fingerprint,
        "medray.split": prepared.split_fingerprint,
        "medray.split_method": prepared.split.method,
        "medray.refused": str(len(prepared.refused)),
        **made,
    }


def end(folder: Path, how: End) -> None:
    """Note the end; a metric that is undefined is left out, a score that is, is null."""
    tree = asdict(how)
    tree["metrics"] = {name: value for name, value in how.metrics.items() if math.isfinite(value)}
    if how.contest is not None and not math.isfinite(how.contest.score):
        tree["contest"]["score"] = None
    save(folder / END, tree)


def start_of(folder: Path) -> Start:
    """How the run in `folder` began."""
    return Start(**read(folder / START))


def end_of(folder: Path) -> End | None:
    """How it ended; None if nobody could write that down."""
    if not (folder / END).is_file():
        return None
    tree = read(folder / END)
    if (contest := tree["contest"]) is not None:
        score = math.nan if contest["score"] is None else contest["score"]
        tree["contest"] = Contest(**{**contest, "score": score})
    return End(**tree)


def read(file: Path) -> dict[str, Any]:
    """A JSON file of a run's folder."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def save(file: Path, tree: Mapping[str, Any]) -> None:
    """Write a JSON file that is there whole or as it was."""
    write_whole(file, json.dumps(tree))
