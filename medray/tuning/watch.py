"""What the driver hears from Ray Tune: it writes the trials' records, and says what a person wants to know."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ray.tune import Callback
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from medray.config import Experiment
from medray.training.progress import duration, say
from medray.tuning import trials as records
from medray.tuning.searcher import Proposals
from medray.tuning.space import choices_of
from medray.tuning.trials import WORST, Curve, Trial, describe, error_of, save

DIED = "its process was killed, or out of memory; lower train.batch_size or tune.concurrent"
SHOWN = 12
"""Rows of the table on a terminal."""


@dataclass(slots=True)
class Standing:
    """How far a trial is."""

    epoch: int = 0
    score: float = math.nan
    """Best value of the monitored metric so far."""


@dataclass(slots=True)
class Progress:
    """Where a study stands, for people: a table on a terminal, a line per event elsewhere."""

    experiment: Experiment
    monitor: str
    sign: int
    proposals: Proposals
    standings: dict[int, Standing] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    done_before: int = 0

    def know(self, trial: Trial, epochs: Curve) -> None:
        """Take in a trial of an earlier start."""
        done = int(epochs.rows[-1]["epoch"]) if epochs.rows else 0
        self.standings[trial.index] = Standing(done, records.score(trial, epochs, self.monitor, self.sign))
        self.done_before += int(trial.ended)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The table, while the study runs, on a terminal alone."""
        self.began = time.monotonic()
        if not sys.stderr.isatty():
            yield
            return
        with Live(console=Console(stderr=True), get_renderable=self.table, refresh_per_second=2):
            yield

    def best(self) -> tuple[int, float] | None:
        """The trial that leads and its score."""
        trials = self.proposals.trials
        known = [
            (index, found.score)
            for index, found in list(self.standings.items())
            if math.isfinite(found.score) and trials[index].state != "failed"
        ]
        return max(known, key=lambda pair: self.sign * pair[1], default=None)

    def summary(self) -> str:
        """The study in one line."""
        trials = list(self.proposals.trials.values())
        counts = {state: sum(trial.state == state for trial in trials) for state in ("finished", "stopped", "failed")}
        known = self.proposals.count()
        of = "" if known is None else f" of {known}"
        parts = [f"{sum(counts.values())}{of} trials done"]
        parts += [f"{count} {state}" for state, count in counts.items() if count and state != "finished"]
        if (best := self.best()) is not None:
            parts.append(f"best {self.name} {best[1]:.4f} (trial {best[0]})")
        done = sum(counts.values()) - self.done_before
        if known is not None and done and known > sum(counts.values()):
            left = (time.monotonic() - self.began) / done * (known - sum(counts.values()))
            parts.append(f"about {duration(left)} left")
        return ", ".join(parts)

    @property
    def name(self) -> str:
        """The monitored metric without its split."""
        return self.monitor.removeprefix("val/")

    def event(self, index: int, text: str) -> None:
        """A line about one trial."""
        say(f"trial {index:>3}  {text}")

    def table(self) -> Group:
        """The summary, running trials, then the best of those that ended."""
        table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
        for name in ("trial", "state", "epoch", self.name):
            width = max(len(name), 8 if name == "state" else 6)
            table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True, min_width=width)
        table.add_column("settings", overflow="ellipsis", no_wrap=True, ratio=1)
        trials = list(self.proposals.trials.values())
        running = [trial for trial in trials if trial.state == "running"]
        scored = [(trial, self.standings.get(trial.index, Standing()).score) for trial in trials if trial.ended]
        rest = [trial for trial, _ in records.ranked(scored, self.sign)]
        best = self.best()
        for trial in (running + rest)[:SHOWN]:
            found = self.standings.get(trial.index, Standing())
            style = "bold" if best is not None and trial.index == best[0] else ""
            shown = f"{found.score:.4f}" if math.isfinite(found.score) else ""
            epoch = f"{found.epoch}/{self.experiment.train.epochs}"
            table.add_row(str(trial.index), trial.state, epoch, shown, Text(describe(trial.settings)), style=style)
        return Group(Text(self.summary()), table)


class Watch(Callback):  # type: ignore[misc]
    """Ray Tune's messages about trials, as records in the study's folder and events for people."""

    def __init__(self, folder: Path, progress: Progress, changed: set[int]) -> None:
        self._folder = folder
        self._progress = progress
        self._trials = progress.proposals.trials
        self._changed = changed
        """Trials that MLflow does not know the latest of."""
        self._handed: dict[int, dict[str, Any]] = {}
        """Settings that a member of a population will have when it has taken over another's weights."""
        self._over = False

    def __enter__(self) -> Watch:
        """Listen."""
        return self

    def __exit__(self, *_: object) -> None:
        """Listen no more: trials whose processes end with the driver did not fail."""
        self._over = True

    def _write(self, index: int, **changes: Any) -> Trial:
        if self._over:
            return self._trials[index]
        self._trials[index] = trial = replace(self._trials[index], **changes)
        save(self._folder, trial)
        self._changed.add(index)
        return trial

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """A trial begins, or goes on."""
        index = int(str(trial))
        before = self._trials[index]
        if before.settings != trial.config["settings"]:
            # They are its own when it says whose weights it has; until then a restart goes on with the old ones.
            self._handed[index] = dict(trial.config["settings"])
        if before.state == "running":
            return
        now = self._write(index, state="running", measured={}, error="")
        if before.state == "waiting":
            self._progress.event(index, f"starts: {describe(now.settings)}")

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Any],  # noqa: ARG002
        trial: Any,
        result: Mapping[str, Any],
        **info: Any,  # noqa: ARG002
    ) -> None:
        """An epoch, or the end, of a trial."""
        index, progress = int(str(trial)), self._progress
        if "measured" in result:
            measured = {name: value for name, value in result["measured"].items() if value is not None}
            self._write(index, measured=measured)
            progress.standings[index] = Standing(result["epoch"], measured.get(progress.monitor, math.nan))
            return
        leader = progress.best()
        score = progress.sign * result["score"] if result["score"] > WORST else math.nan
        progress.standings[index] = Standing(result["epoch"], score)
        self._changed.add(index)
        if "inherited" in result:
            settings = self._handed.pop(index, self._trials[index].settings)
            donor = f"trial {result['inherited']}'s weights after epoch {result['epoch'] - 1}"
            event = f"takes over {donor}: {describe(settings)}"
            choices = choices_of(progress.proposals.space, settings)
            self._write(index, settings=settings, choices=choices, events=(*self._trials[index].events, event))
            progress.event(index, event)
        better = leader is None or (leader[0] != index and progress.sign * score > progress.sign * leader[1])
        if math.isfinite(score) and better:
            epoch = f"epoch {result['epoch']}/{progress.experiment.train.epochs}"
            progress.event(index, f"leads with {progress.name} {score:.4f} ({epoch})")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """A trial came to its end, or was stopped before it."""
        index = int(str(trial))
        finished = bool(self._trials[index].measured)
        self._write(index, state="finished" if finished else "stopped")
        found = self._progress.standings.get(index, Standing())
        how = "finished" if finished else f"stopped early after epoch {found.epoch}"
        self._progress.event(index, f"{how}: {self._progress.name} {found.score:.4f}; {self._progress.summary()}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """A trial failed; the others go on."""
        index = int(str(trial))
        error = error_of(self._folder, index, _last_words(trial))
        self._write(index, state="failed", error=error)
        self._progress.event(index, f"failed: {error}")

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps a copy that nobody reads."""
        return {}


def _last_words(trial: Any) -> str:
    """Why a trial failed that could not say so itself, as Ray tells it."""
    lines = [line.strip() for line in (trial.get_error() or "").splitlines() if line.strip()]
    if any("ActorDiedError" in line or "OutOfMemory" in line for line in lines):
        return DIED
    return lines[-1] if lines else DIED
