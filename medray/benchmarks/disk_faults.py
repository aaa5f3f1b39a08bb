"""Faults of what a training keeps and of its tracking server: each a function that makes the run and tells its row."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from medray.benchmarks import disks
from medray.benchmarks.fault_rows import EPOCHS, Bench, Row
from medray.benchmarks.processes import Service
from medray.benchmarks.victim import STEPS, NotRecovered, Recovery, Training, medray
from medray.tracking.journal import END
from medray.training.checkpoint import CHECKPOINTS

SAVES = 100
DISK_MB = 48


def saves(bench: Bench) -> Row:
    """SIGKILL while checkpoints are written."""
    found = disks.kill_saves(bench.folder / "saves", SAVES)
    what = f"{found.inside} of {found.count} within a save; newest lost {found.lost}, broken {found.broken}"
    return Row(f"{SAVES} kills while saving", "SIGKILL to a writer at a random moment", found=what)


def spoilt(bench: Bench) -> Row:
    """The newest checkpoint is cut, zeroed, or has a bit flipped."""
    clean = bench.clean(1)
    with bench.training("spoilt", 1) as run:
        repeated = []
        for harm in disks.HARMS:
            run.until(lambda: len(run.whole()) > 1, "no second checkpoint")
            run.advance()
            run.process.kill()
            run.end(-signal.SIGKILL)
            newest, before = disks.spoil(run, harm)
            starts = len(run.steps("going on"))
            run.start()
            run.until(lambda starts=starts: len(run.steps("going on")) > starts, "no other start")  # type: ignore[misc]
            if run.steps("going on")[-1] != before:
                raise NotRecovered(f"spoilt: {harm}: {run.notes()}")
            repeated.append(newest - before)
        kept = len(list((run.folder / CHECKPOINTS).glob("*.corrupt")))
        row = bench.row(run, "the newest checkpoint is spoilt", ", ".join(disks.HARMS), (), clean, f"{kept} kept aside")
    return replace(row, repeated=tuple(repeated))


def full(bench: Bench) -> Row:
    """The disk is full from the second checkpoint on; with two kept, the last one would take the place of the older."""
    how = f"a disk of {DISK_MB} MiB is filled, until the command has ended; then the same command again"
    if not disks.may_mount():
        return Row("the disk is full", how, found="mounting is not allowed here")
    clean = bench.clean(1)
    with bench.training("full", 1, "train.checkpoint_every=40 steps") as run:
        place = run.folder / CHECKPOINTS
        with disks.small_disk(place, DISK_MB):
            run.advance()
            with disks.filled(place):
                run.end(75)
                said, left = run.said().strip().splitlines()[-1], disks.half_written(run)
            run.start()
            began = time.time()
            run.advance()
            again = STEPS * EPOCHS - run.steps("going on")[-1]
            recovery = Recovery(time.time() - began, again, 75)
            found = f"{said}; half checkpoints left: {len(left)}"
            return bench.row(run, "the disk is full", how, [recovery], clean, found)


def away(bench: Bench) -> Row:
    """The folder of the checkpoints is away for a while."""
    clean = bench.clean(1)
    with bench.training("away", 1) as run:
        run.advance()
        began = time.time()
        with disks.away(run):
            time.sleep(bench.outage_s)
        over = time.time()
        run.end()
        # Rows wait for the checkpoint before them; they tell when their epochs ended.
        gone_on = sum(began < row[END] < over for row in run.rows())
        found = f"{gone_on} epochs ended meanwhile; starts from a checkpoint: {len(run.steps('going on'))}"
        how = f"a file in the place of the folder for {bench.outage_s:g} s"
        return bench.row(run, "the disk is away", how, (), clean, found)


def _tracking(bench: Bench, name: str) -> tuple[Service, Path]:
    """An MLflow server, to be started, and its database."""
    database = bench.folder / f"{name}.db"
    options = ["--host", "127.0.0.1", "--port", "{port}", "--workers", "1"]
    options += ["--backend-store-uri", f"sqlite:///{database}"]
    options += ["--artifacts-destination", str(bench.folder / f"{name}-files")]
    server = Service(f"mlflow {name}", [sys.executable, "-m", "mlflow", "server", *options], bench.folder, "/health")
    return server, database


def _kill(server: Service) -> None:
    for pid in server.cpu():
        os.kill(pid, signal.SIGKILL)


def _untracked(run: Training, server: Service, epochs: tuple[int, int]) -> None:
    """The server is killed after the first of `epochs`; returns after the second."""
    with server:
        run.start()
        run.until(lambda: len(run.rows()) >= epochs[0], "no epoch")
        _kill(server)
    run.until(lambda: len(run.rows()) >= epochs[1], "it waits for MLflow")


def _pace(run: Training) -> str:
    return f"an epoch takes {sum(row['epoch_s'] for row in run.rows()) / len(run.rows()):.2f} s"


def mlflow(bench: Bench) -> Row:
    """MLflow is killed and comes back."""
    clean, (server, database) = bench.clean(1), _tracking(bench, "half")
    run = bench.training("mlflow", 1, f"tracking.uri={server.url}")
    epochs = len(clean.rows())
    try:
        _untracked(run, server, (epochs // 4, 3 * epochs // 4))
        with server:
            found = f"{_pace(run)}, unbroken {_pace(clean)}"
            return bench.row(run, "MLflow is away", "SIGKILL, for the middle half", (), clean, found, database)
    finally:
        run.__exit__()


def mlflow_gone(bench: Bench) -> Row:
    """MLflow is killed and does not come back while the run lasts."""
    clean, (server, database) = bench.clean(1), _tracking(bench, "gone")
    run = bench.training("mlflow-gone", 1, f"tracking.uri={server.url}")
    epochs = len(clean.rows())
    try:
        _untracked(run, server, (epochs // 4, epochs))
        run.end()
        with server:
            synced = medray(run.home, "sync", run.folder.name)
        row = bench.row(run, "MLflow is gone", "SIGKILL after a quarter; medray sync later", (), clean, "", database)
        found = f"sync: {synced.stdout.strip()}; status {run.tracked(database).status}"
        return replace(row, codes=(*row.codes, synced.returncode), found=found)
    finally:
        run.__exit__()


FAULTS: Mapping[str, Callable[[Bench], Row]] = {
    one.__name__: one for one in (saves, spoilt, full, away, mlflow, mlflow_gone)
}
