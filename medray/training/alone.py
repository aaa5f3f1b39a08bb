"""A training of one worker in this process: on a laptop it needs no cluster and starts in half the time."""

from __future__ import annotations

import contextlib
from pathlib import Path

from medray.cluster import Allotment
from medray.config import Experiment
from medray.pipeline.prepare import Prepared
from medray.training.folder import FAILURE, Interrupted, write_whole
from medray.training.progress import show_steps
from medray.training.worker import FINAL, Outcome, Quiet, collect, work
from medray.training.world import World, device_of, set_threads


class Screen(Quiet):
    """Shows how far an epoch is, on a terminal; the rest of the progress follows the journal."""

    def step(self, done: int, epoch: int) -> None:
        """A bar on a terminal, nothing elsewhere."""
        show_steps(done, epoch)


def train_alone(experiment: Experiment, prepared: Prepared, folder: Path, allotment: Allotment) -> Outcome:
    """Train here; the same `folder` again goes on from the last checkpoint.

    Args:
        experiment: the run.
        prepared: its data.
        folder: the run's folder.
        allotment: one worker.

    Raises:
        Interrupted: someone asked it to stop, and it has saved where it stood.
    """
    set_threads(allotment.cpus)
    (folder / FAILURE).unlink(missing_ok=True)
    try:
        done = work(experiment, prepared, World(device=device_of(allotment)), folder, Screen())
    except FINAL as error:
        with contextlib.suppress(OSError):
            write_whole(folder / FAILURE, f"{type(error).__name__}: {error}")
        raise
    if not done:
        raise Interrupted(folder)
    return collect(folder)
