"""medray's commands and others, run as people run them: in processes of their own, of which none stays."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medray.benchmarks.processes import family
from medray.cluster import ENVIRONMENT
from medray.config import PACKAGE
from medray.tracking import journal

PATIENCE_S = 1800.0
POLL_S = 0.02


class CommandFailed(RuntimeError):
    """A command that did not end well, or did not come to where it should; the message holds what it said."""


class Command:
    """A command from its start to the end of the `with`, with all that it started.

    Args:
        words: of the command line.
        log: file for what it prints.
        environment: variables besides those of this process.
    """

    def __init__(self, words: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self._words, self._log = list(words), log
        self._environment = {**os.environ, **ENVIRONMENT, **(environment or {})}
        self.began = 0.0
        """time.time() when it was started."""

    def __enter__(self) -> Command:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self.began = time.time()
        with self._log.with_suffix(".err").open("wb") as said, self._log.open("wb") as printed:
            options: dict[str, Any] = {"stdout": printed, "stderr": said, "start_new_session": True}
            self._process = subprocess.Popen(self._words, env=self._environment, **options)
        return self

    def __exit__(self, *_: object) -> None:
        for _round in range(2):
            for member in family(self._process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member.pid, signal.SIGKILL)
            self._process.wait()

    def end(self) -> str:
        """What it printed on stdout, once it has ended well.

        Raises:
            CommandFailed: it did not.
        """
        try:
            code = self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            code = None
        if code != 0:
            raise CommandFailed(f"{self._words[:4]}: exit code {code}: {self._said()}")
        return self._log.read_text(encoding="utf-8")

    def until(self, file: Path, pattern: str = "") -> Path:
        """The file, or the first below it that matches `pattern`, once it is there and has a line.

        Raises:
            CommandFailed: the command ended before, or takes too long.
        """
        deadline = time.monotonic() + PATIENCE_S
        while True:
            ended = self._process.poll() is not None
            for place in file.glob(pattern) if pattern else [file]:
                if place.is_file() and place.stat().st_size:
                    return place
            if ended or time.monotonic() > deadline:
                raise CommandFailed(f"{self._words[:4]}: no {pattern or file.name}: {self._said()}")
            time.sleep(POLL_S)

    def _said(self) -> str:
        return self._log.with_suffix(".err").read_text(encoding="utf-8", errors="replace")[-3000:]


def job(name: str, *words: str) -> list[str]:
    """The command line of one of medray's jobs."""
    return [sys.executable, str(PACKAGE.parent / "jobs" / f"{name}.py"), *words]


def module(name: str, *words: str) -> list[str]:
    """The command line of a program among the benchmarks."""
    return [sys.executable, "-m", f"medray.benchmarks.{name}", *words]


def torchrun(processes: int, name: str, *words: str) -> list[str]:
    """The command line of torchrun on this machine for a program among the benchmarks."""
    options = ["--standalone", "--nnodes=1", f"--nproc-per-node={processes}"]
    return [sys.executable, "-m", "torch.distributed.run", *options, "-m", f"medray.benchmarks.{name}", *words]


def result(printed: str) -> dict[str, Any]:
    """The JSON of the last line."""
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


@contextlib.contextmanager
def training(home: Path, name: str, settings: Sequence[str]) -> Iterator[tuple[Command, Path]]:
    """`jobs/train.py` with `home` as its home; gives the command and its journal, once that has a row.

    Args:
        home: of runs and stores.
        name: of the model; no other training in `home` has it.
        settings: of the experiment.
    """
    words = job("train", *settings, f"name={name}", "--new")
    with Command(words, home / f"{name}.log", {"MEDRAY_HOME": str(home)}) as command:
        yield command, command.until(home / "runs", f"{name}-*/{journal.JOURNAL}")
