"""A training as people run it, in a process of its own: watched, hurt from outside, compared with an unbroken one."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medray.benchmarks.processes import family
from medray.config import PACKAGE
from medray.tracking import journal
from medray.training import checkpoint, handover, notes

PATIENCE_S = 240.0
SLOWEST_EPOCH_S = 10.0
POLL_S = 0.05
BATCH, STEPS = 32, 44
"""Steps of an epoch are those of 1400 cases."""
SETTINGS = (f"train.batch_size={BATCH}", "train.checkpoint_every=20 steps", "scaling.max_failures=-1")


class NotRecovered(RuntimeError):
    """A training did not come to where it should; the message holds what it said."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """One fault that a training came back from."""

    seconds: float
    """From the fault to the first new checkpoint or row of the journal."""
    repeated: int
    """Steps that were done again: by the pace of the last epoch; exactly, where it stopped in good order."""
    code: int | None
    """Of the command, where the fault ended it."""


@dataclass(frozen=True, slots=True)
class Tracked:
    """What MLflow has of a run's epochs."""

    lost: int
    """Epochs without a figure."""
    doubled: int
    """Figures of an epoch beyond the first."""
    status: str


class Training:
    """`medray train` of the packaged phantom; the same object can be started again, as the same command.

    Args:
        home: of runs, stores and the registry.
        name: of the model; no other training in `home` has it.
        settings: key=value.
        environment: variables of the command.
    """

    def __init__(self, home: Path, name: str, settings: Sequence[str], **environment: str) -> None:
        self.home = home
        self.name = name
        self.codes: list[int] = []
        """Exit codes of its processes so far."""
        self._command = [sys.executable, str(PACKAGE.parent / "jobs" / "train.py"), f"name={name}"]
        self._command += [*SETTINGS, *settings]
        self._environment = {**os.environ, "MEDRAY_HOME": str(home), **environment}
        self._log = home / f"{name}.log"
        self.process: subprocess.Popen[bytes]
        self._running = False

    def start(self) -> None:
        """Begin, or go on."""
        self.home.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            options: dict[str, Any] = {"stdout": log, "stderr": log, "start_new_session": True}
            self.process = subprocess.Popen(self._command, env=self._environment, **options)
        self._running = True

    def again(self) -> tuple[int, str]:
        """Exit code and words of the same command beside this one."""
        found = subprocess.run(self._command, env=self._environment, capture_output=True, text=True, check=False)
        return found.returncode, found.stderr

    def __enter__(self) -> Training:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing of it stays."""
        for _round in range(2):
            for member in family(self.process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member.pid, signal.SIGKILL)
            self.process.wait()

    @property
    def folder(self) -> Path:
        """The run's; waits until there is one."""
        self.until(lambda: bool(self._folders()), "no folder")
        return self._folders()[0]

    def _folders(self) -> list[Path]:
        return [file.parent for file in (self.home / "runs").glob(f"{self.name}-*/experiment.yaml")]

    def workers(self) -> list[int]:
        """Processes of Ray Train's workers."""
        return [member.pid for member in family(self.process.pid) if "RayTrainWorker" in member.name]

    def newest(self) -> tuple[int, float]:
        """Step of the newest checkpoint, and when it was taken; 0 at the beginning."""
        for place in self.whole():
            with contextlib.suppress(FileNotFoundError, ValueError, OverflowError):
                return int(checkpoint.step_of(place)), (place / f"{checkpoint.VALUES}.json").stat().st_mtime
        return 0, 0.0

    def whole(self) -> list[Path]:
        """Its checkpoints, newest first."""
        return checkpoint.whole(self.folder)

    def rows(self) -> list[journal.Row]:
        """All rows of the journal, those of epochs that were done again too."""
        return journal.read(self.folder / journal.JOURNAL)[0]

    def notes(self) -> str:
        """What the workers had to say."""
        return "\n".join(notes.read(self.folder / notes.NOTES)[0])

    def said(self) -> str:
        """What the command has printed."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def until(self, true: Callable[[], bool], problem: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait while the training runs.

        Raises:
            NotRecovered: it took too long, or the training ended meanwhile.
        """
        deadline = time.monotonic() + timeout_s
        while not true():
            code = self.process.poll()
            if (code is not None and not true()) or time.monotonic() > deadline:
                raise NotRecovered(f"{self.name}: {problem} (exit code {code}): {self.said()[-3000:]}")
            time.sleep(POLL_S)

    def advance(self) -> None:
        """Wait for a new checkpoint or row, and for as many as tell the pace."""
        seen = self.newest()[0], len(self.rows())
        self.until(lambda: self.newest()[0] > seen[0] or len(self.rows()) > seen[1], "no new checkpoint")
        self.until(lambda: self.newest()[0] > 0 and len(self.rows()) > 0, "no checkpoint")

    def end(self, code: int = 0, timeout_s: float = PATIENCE_S) -> None:
        """Wait until the command ends.

        Raises:
            NotRecovered: it does not, or not with that exit code.
        """
        try:
            found = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise NotRecovered(f"{self.name} does not end: {self.said()[-3000:]}") from error
        if self._running:
            self.codes.append(found)
            self._running = False
        if found != code:
            raise NotRecovered(f"{self.name}: exit code {found} instead of {code}: {self.said()[-3000:]}")

    def recover(self, strike: Callable[[Training], int | None]) -> Recovery:
        """Hurt it so that it has to start again from a checkpoint, and wait until it moves on.

        Args:
            strike: the fault; one that ends the command starts it again, and returns its exit code.
        """
        starts, struck = len(self.steps("going on")), time.time()
        done = self._done()
        code = strike(self)
        # Workers may outlive what started them by moments in which they still save.
        self.until(lambda: len(self.steps("going on")) > starts, "no other start")
        self.advance()
        seconds = time.time() - struck
        resumed = self.steps("going on")[-1]
        return Recovery(seconds, max(0, done - resumed), code)

    def _done(self) -> int:
        """Steps that are done by now: those of the newest checkpoint or epoch, and the time since at that pace."""
        row = self.rows()[-1]
        step, since = max(self.newest(), (STEPS * int(row["epoch"]), row[journal.END]), key=lambda known: known[1])
        return step + round((time.time() - since) * row["samples_per_s"] / BATCH)

    def steps(self, word: str) -> list[int]:
        """The steps after which the workers said that they are `going on`, or have `stopped`."""
        return [int(step) for step in re.findall(rf"{word} after step (\d+)", self.notes())]

    def same_as(self, other: Training) -> bool:
        """Whether both finished with the same weights, moments and scores, to the last bit."""
        ours, theirs = (
            checkpoint.load(one.folder / checkpoint.CHECKPOINTS / checkpoint.FINISHED).shared.tensors
            for one in (self, other)
        )
        return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)

    def tracked(self, database: Path | None = None) -> Tracked:
        """What MLflow has of the run, read from its own tables."""
        run = json.loads((self.folder / handover.RUN_ID).read_text(encoding="utf-8"))["run_id"]
        epochs = {int(row["epoch"]) for row in self.rows()}
        with contextlib.closing(sqlite3.connect(database or self.home / "mlflow.db")) as tables:
            query = (
                "SELECT step, COUNT(*), COUNT(DISTINCT key) FROM metrics WHERE run_uuid = ? AND step > 0 GROUP BY step"
            )
            found = {step: (count, names) for step, count, names in tables.execute(query, (run,))}
            (status,) = tables.execute("SELECT status FROM runs WHERE run_uuid = ?", (run,)).fetchone()
        doubled = sum(count - names for count, names in found.values())
        return Tracked(len(epochs - found.keys()), doubled, str(status))


def medray(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run another of medray's commands on the runs in `home`."""
    command = [sys.executable, "-c", "from medray.cli import main; main()", *words]
    environment = {**os.environ, "MEDRAY_HOME": str(home)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
