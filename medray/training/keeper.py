"""Keeper: writes what a worker must not lose, in a thread of its own, so that the training waits for no disk.

Rows of the journal and checkpoints are written in the order in which they came: a checkpoint is never whole before the
rows of its epochs. A disk that is away is tried again; one that is full costs that checkpoint, never the one before.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial as partial_
from pathlib import Path

import torch

from medray.pipeline.shelf import write_synced
from medray.tracking import journal
from medray.training import checkpoint
from medray.training.checkpoint import CHECKPOINTS, FINISHED, State, StorageError
from medray.training.notes import note
from medray.training.world import World

POLL_S = 0.02
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
FULL = (errno.ENOSPC, errno.EDQUOT)


class Keeper:
    """One per worker and start; `close` it."""

    def __init__(self, folder: Path, world: World, patience_s: float) -> None:
        self._folder = folder
        self._world = world
        self._patience_s = patience_s
        # Other starts of the same run write elsewhere, should one of their workers still be alive.
        self._start = world.agreed_token()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="keeper")
        self._saving: Future[Path] | None = None
        self._rows = deque[Mapping[str, float | None]]()
        self._writing: Future[None] | None = None
        self._complained = set[str]()
        self._closing = threading.Event()

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._saving is not None and not self._saving.done()

    def row(self, row: Mapping[str, float | None]) -> None:
        """Add a row to the run's journal, from rank 0."""
        if self._world.rank == 0:
            self._rows.append(row)
            self._writing = self._pool.submit(self._persist, self._write_rows, "the journal", self._folder)

    def _write_rows(self) -> None:
        """Write the rows that wait, in order; one that fails stays, and those after it."""
        while self._rows:
            journal.append(self._folder / journal.JOURNAL, self._rows[0])
            self._rows.popleft()

    def save(self, name: str, shared: State, own: State) -> None:
        """Begin to write a checkpoint; the one before must be done. All workers call it with the same name.

        Args:
            name: of its folder.
            shared: what is the same on all workers; only rank 0's is written.
            own: this worker's.
        """
        if self._saving is not None and (error := self._saving.exception()) and not isinstance(error, StorageError):
            raise error
        self._saving = self._pool.submit(self._saved, name, shared, own)

    def wait(self) -> Path | None:
        """Until all is written; the checkpoint that was begun last, None if it could not be written.

        Raises:
            StorageError: a row of the journal could not be written.
        """
        place = None
        if self._saving is not None:
            with contextlib.suppress(StorageError):
                place = self._saving.result()
        if self._writing is not None:
            try:
                self._writing.result()
            except StorageError:
                if self._rows:  # else a checkpoint has written them since
                    raise
        return place

    def insist(self) -> None:
        """Until all is written.

        Raises:
            StorageError: the checkpoint that was begun last, or a row, could not be.
        """
        self.wait()
        if self._saving is not None and (error := self._saving.exception()):
            raise error

    def close(self) -> None:
        """End the thread: what is being written comes to its end, what waits for a disk or another worker does not."""
        self._closing.set()
        self._pool.shutdown(wait=True)

    def _persist(self, act: Callable[[], None], what: str, where: Path, fragile: bool = False) -> None:
        """Do `act`, again and again while the disk is away; where it is full, a checkpoint is given up at once."""
        begun, pause = time.monotonic(), FIRST_PAUSE_S
        while True:
            try:
                act()
            except OSError as error:
                full = error.errno in FULL
                if (full and fragile) or time.monotonic() - begun > self._patience_s or self._closing.is_set():
                    self._complain(what, describe(where, what, error), "it is given up, what was kept before stays")
                    raise StorageError(describe(where, what, error)) from error
                again = f"trying again for {self._patience_s:.0f} s; the training goes on"
                self._complain(what, describe(where, what, error), again)
                self._closing.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
            else:
                self._recovered(what)
                return

    def _complain(self, what: str, problem: str, consequence: str) -> None:
        if what not in self._complained:
            note(self._folder, f"warning: {problem}; {consequence}")
        self._complained.add(what)

    def _recovered(self, what: str) -> None:
        if what in self._complained:
            note(self._folder, f"{what} can be written again")
        self._complained.discard(what)

    def _saved(self, name: str, shared: State, own: State) -> Path:
        """The whole checkpoint, written as often as it takes; no half one is left where it could not be."""
        partial = self._folder / CHECKPOINTS / f"{name}.{self._start}.partial"
        try:
            act = partial_(self._save, partial, name, shared, own)
            self._persist(act, "the checkpoint", partial.parent, fragile=True)
        except BaseException:
            self._give_up(partial)
            raise
        return partial.with_name(name)

    def _save(self, partial: Path, name: str, shared: State, own: State) -> None:
        """Write this worker's part; rank 0 then waits for the others' and makes the checkpoint whole."""
        rank = self._world.rank
        if rank == 0:  # of one that was given up another worker may have left its part
            for old in partial.parent.glob(f"*.{self._start}.partial"):
                if old != partial:
                    shutil.rmtree(old, ignore_errors=True)
        partial.mkdir(parents=True, exist_ok=True)
        # The last one may take what is left.
        spare = 0 if name == FINISHED else checkpoint.SPARE_BYTES
        checkpoint.require_room(partial, spare + own.bytes + (shared.bytes if rank == 0 else 0))
        part = f"rank-{rank:04d}"
        named = State({f"{part}/{key}": tensor for key, tensor in own.tensors.items()}, own.values)
        sums = checkpoint.write(partial, named, part)
        if rank:
            self._hand_in(partial, sums)
            return
        _check_finite(shared)
        self._write_rows()
        sums |= checkpoint.write(partial, shared, checkpoint.VALUES)
        sums |= self._collect(partial)
        place = partial.with_name(name)
        checkpoint.commit(partial, place, sums)
        with contextlib.suppress(OSError):  # it is whole by now; the rest is tidying
            for file in place.glob("*.sums"):
                file.unlink()
            checkpoint.prune(self._folder)

    def _hand_in(self, partial: Path, sums: Mapping[str, str]) -> None:
        """Leave this worker's sums for rank 0, whole or not at all."""
        text = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
        file = partial / f"rank-{self._world.rank:04d}.sums"
        write_synced(file.with_suffix(".new"), text)
        file.with_suffix(".new").rename(file)

    def _collect(self, partial: Path) -> dict[str, str]:
        """The sums of the other workers' parts, once all are there."""
        found: dict[str, str] = {}
        deadline = time.monotonic() + self._patience_s
        for rank in range(1, self._world.size):
            file = partial / f"rank-{rank:04d}.sums"
            while not file.is_file():
                if file.with_suffix(".failed").exists() or time.monotonic() > deadline or self._closing.is_set():
                    raise StorageError(f"checkpoint {partial.stem} is given up: worker {rank} did not write its part")
                time.sleep(POLL_S)
            for line in file.read_text(encoding="ascii").splitlines():
                digest, _, name = line.partition("  ")
                found[name] = digest
        return found

    def _give_up(self, partial: Path) -> None:
        """Leave no half checkpoint behind; rank 0 is told by the others."""
        if self._world.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            return
        try:
            (partial / f"rank-{self._world.rank:04d}.failed").touch()
        except OSError:
            return


def describe(where: Path, what: str, error: OSError) -> str:
    """What a person needs to know of a disk that does not take what is written."""
    try:
        free = f"{shutil.disk_usage(where).free / 2**20:.1f} MiB are free"
    except OSError:
        free = "the folder cannot be reached"
    return f"{what} cannot be written to {where}: {error.strerror or error}; {free}"


def _check_finite(shared: State) -> None:
    """No checkpoint holds a NaN: what would go on from it would be lost."""
    for name, tensor in shared.tensors.items():
        weights = name.startswith(("network/", "averaged/"))
        if weights and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise FloatingPointError(f"{name} is not finite; no checkpoint is made of it")
