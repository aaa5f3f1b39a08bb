"""The trials of a study as they lie in its folder: one folder each, with settings, state, rows and a checkpoint.

This is the truth that a restart, the terminal, the ranking, the figures and MLflow go by. The driver writes the
records; a trial's own process writes its journal and its checkpoint.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from medray.tracking import journal
from medray.tracking.journal import JOURNAL, Row
from medray.training.folder import TRIALS as TRIALS
from medray.training.folder import write_whole

State = Literal["waiting", "running", "finished", "stopped", "failed"]
RECORD = "trial.json"
SPEAKS_FREELY = ("NonFiniteLoss", "ConfigError", "OutOfMemory")
"""Errors whose messages tell of settings and memory alone."""
MEASURED = "measured/"
WORST = -1e30
"""Score of a trial without any defined value; finite, since quantiles of scores are taken."""
ERROR = "error.txt"
"""Written by the trial's process before it fails."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial."""

    index: int
    settings: dict[str, Any]
    """Dotted keys that differ from the experiment; of a population those that it has now."""
    choices: dict[str, float | str]
    """The decisions behind the settings; empty for the experiment as it is, where that lies outside the space."""
    state: State = "waiting"
    error: str = ""
    measured: dict[str, float] = field(default_factory=dict)
    """Metrics of the best epoch's weights, measured again at the end."""
    events: tuple[str, ...] = ()
    """What happened on the way, such as whose weights were taken over."""

    @property
    def as_it_is(self) -> bool:
        """Whether it is the experiment without a change."""
        return not self.settings

    @property
    def public_error(self) -> str:
        """The error as it may leave this machine: a message that can name cases or paths is its kind alone."""
        kind = self.error.partition(":")[0]
        return self.error if kind in SPEAKS_FREELY or ":" not in self.error.partition(";")[0] else kind

    @property
    def short_of_disk(self) -> bool:
        """Whether it failed for want of room on a disk: with room made it goes on."""
        return self.state == "failed" and self.error.startswith("StorageError: ")

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ("finished", "stopped", "failed")


@dataclass(frozen=True, slots=True)
class Curve:
    """The epochs of a trial."""

    rows: tuple[Row, ...] = ()
    """One per epoch in their order; of an epoch that was done twice the later."""
    spent: int = 0
    """Epochs that were trained, those done twice counted twice."""

    def value(self, metric: str, sign: int) -> float:
        """The best value of a metric; NaN if there is none."""
        values = [row[metric] for row in self.rows if math.isfinite(row.get(metric, math.nan))]
        return max(values, key=lambda value: sign * value, default=math.nan)


def folder_of(study: Path, index: int) -> Path:
    """Where the trial lies."""
    return study / TRIALS / f"{index:04d}"


def save(study: Path, trial: Trial) -> None:
    """Write the trial's record, whole or not at all."""
    folder = folder_of(study, trial.index)
    folder.mkdir(parents=True, exist_ok=True)
    record = asdict(replace(trial, measured=journal.plain(trial.measured)))  # type: ignore[arg-type]
    write_whole(folder / RECORD, json.dumps(record, indent=1))


def error_of(study: Path, index: int, otherwise: str) -> str:
    """Why the trial failed, by its own word if it had time for one."""
    file = folder_of(study, index) / ERROR
    return file.read_text(encoding="utf-8") if file.is_file() else otherwise


def load(study: Path, index: int) -> Trial:
    """The trial as it was written last."""
    record = json.loads((folder_of(study, index) / RECORD).read_text(encoding="utf-8"))
    record["measured"] = journal.from_plain(record["measured"])
    return Trial(**{**record, "events": tuple(record["events"])})


def load_all(study: Path) -> dict[int, Trial]:
    """All trials by their number, in the order in which they were drawn."""
    numbers = sorted(int(file.parent.name) for file in (study / TRIALS).glob(f"*/{RECORD}"))
    return {number: load(study, number) for number in numbers}


def curve(study: Path, index: int) -> Curve:
    """The epochs that the trial's journal holds."""
    file = folder_of(study, index) / JOURNAL
    return Curve(tuple(journal.epochs(file)), len(journal.read(file)[0]))


def score(trial: Trial, epochs: Curve, monitor: str, sign: int) -> float:
    """What the trial is ranked by: of a finished one the value of its weights, else the best epoch's. NaN if none."""
    return trial.measured.get(monitor, math.nan) if trial.state == "finished" else epochs.value(monitor, sign)


def ranked(trials: Iterable[tuple[Trial, float]], sign: int) -> list[tuple[Trial, float]]:
    """Trials with their scores, best first: those that came to their end, those that did not, failed ones."""
    order: dict[State, int] = {"finished": 0, "stopped": 1, "running": 1, "waiting": 2, "failed": 3}

    def place(pair: tuple[Trial, float]) -> tuple[int, float, int]:
        # Of equal ones of a population the one that others took over from.
        trial, value = pair
        return order[trial.state], -sign * value if math.isfinite(value) else math.inf, len(trial.events)

    return sorted(trials, key=place)


def measured_of(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """The metrics in a trial's last report, None in any other; Tune hands them to schedulers and searchers unnested."""
    return {key.removeprefix(MEASURED): value for key, value in result.items() if key.startswith(MEASURED)} or None


def describe(settings: dict[str, Any]) -> str:
    """Settings in one line."""
    return ", ".join(f"{key}={_text(value)}" for key, value in settings.items()) or "the experiment as it is"


def _text(value: Any) -> str:
    """A value as the command line takes it, numbers rounded."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_text(part)}" for key, part in value.items()) + "}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
