"""A training of one worker in this process: on a laptop it needs no cluster and starts in half the time."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medray.cluster import Allotment
from medray.config import Experiment
from medray.pipeline.prepare import Prepared
from medray.tracking import journal
from medray.training.checkpoint import sync_files
from medray.training.progress import show_steps
from medray.training.worker import CHECKPOINT_EVERY_S, Outcome, collect, work
from medray.training.world import World, device_of, set_threads

CHECKPOINT = "checkpoint"


@dataclass(frozen=True, slots=True)
class FolderReporter:
    """Keeps a run in its folder: the journal, and the last whole checkpoint."""

    folder: Path
    checkpoint_every_s: float = CHECKPOINT_EVERY_S

    def report(self, row: Mapping[str, float | None], place: Path | None) -> None:
        """Append the row; put the checkpoint in the place of the one before."""
        self.keep(place)
        journal.append(self.folder / "journal.jsonl", row)

    def finish(self, metrics: Mapping[str, float], place: Path | None) -> None:  # noqa: ARG002
        """Keep the last checkpoint, which holds the metrics too."""
        self.keep(place)

    def keep(self, place: Path | None) -> None:
        """Put a checkpoint, if there is one, in the place of the one before."""
        if place is None:
            return
        partial, fresh, whole = (self.folder / f"{CHECKPOINT}{part}" for part in (".partial", ".new", ""))
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(place, partial)
        sync_files(partial)
        if not whole.is_dir() and fresh.is_dir():
            fresh.rename(whole)
        partial.rename(fresh)
        shutil.rmtree(whole, ignore_errors=True)
        fresh.rename(whole)

    def step(self, done: int, epoch: int) -> None:
        """A bar on a terminal, nothing elsewhere."""
        show_steps(done, epoch)

    def last(self) -> Path | None:
        """The checkpoint to go on from: a kill between removal and renaming leaves the new one."""
        found = (self.folder / name for name in (CHECKPOINT, f"{CHECKPOINT}.new"))
        return next((place for place in found if (place / "state.pt").is_file()), None)


def train_alone(experiment: Experiment, prepared: Prepared, folder: Path, allotment: Allotment) -> Outcome:
    """Train here; the same `folder` again goes on from the last checkpoint.

    Args:
        experiment: the run.
        prepared: its data.
        folder: the run's folder.
        allotment: one worker.
    """
    set_threads(allotment.cpus)
    reporter = FolderReporter(folder)
    work(experiment, prepared, World(device=device_of(allotment)), reporter, reporter.last())
    return collect(folder / CHECKPOINT)
