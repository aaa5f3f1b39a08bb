"""What can happen to what a training keeps: a kill while it is saved, spoilt files, a disk that is full or away."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medray.benchmarks.victim import Training
from medray.training import checkpoint
from medray.training.checkpoint import CHECKPOINTS, SUMS, State
from medray.training.keeper import Keeper
from medray.training.world import World

TENSOR, TENSORS = 1 << 16, 4
SLACK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Kills:
    """Writers of checkpoints that were killed at moments of their own."""

    count: int
    inside: int
    """Of them within a save: half a checkpoint lay there."""
    lost: int
    """Times that the newest whole checkpoint was older than the last one that its writer knew to be kept."""
    broken: int
    """Times that what claimed to be whole was not, or not what was written."""


def _save_forever(folder: Path, kept: Any) -> None:
    """Save one checkpoint after the other, each with its step in all of its numbers."""
    keeper, parent = Keeper(folder, World(), 60.0), multiprocessing.parent_process()
    while parent is not None and parent.is_alive():
        step = kept.value + 1
        tensors = {f"network/{number}": torch.full((TENSOR,), float(step)) for number in range(TENSORS)}
        keeper.save(checkpoint.name_of(step), State(tensors), State({"loss": torch.tensor(float(step))}))
        keeper.insist()
        kept.value = step


def kill_saves(folder: Path, count: int) -> Kills:
    """SIGKILL to `count` writers, each at a random moment of two saves; what is found after each."""
    (folder / CHECKPOINTS).mkdir(parents=True)
    # Its children are there in milliseconds, and hold no lock of a thread of ours.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    kept, chance = context.Value("q", 0), random.Random(0)  # noqa: S311  # the same moments each time
    inside = lost = broken = 0
    complaints: list[str] = []
    for _ in range(count):
        process = context.Process(target=_save_forever, args=(folder, kept))
        process.start()
        took = _one_save(kept)
        time.sleep(chance.uniform(0, 2 * took))
        process.kill()
        process.join()
        inside += any((folder / CHECKPOINTS).glob("*.partial"))
        place = checkpoint.newest(folder, complaints.append)
        step = 0.0 if place is None else checkpoint.step_of(place)
        lost += not kept.value <= step <= kept.value + 1
        broken += place is not None and not _holds(place, step)
        kept.value = int(step)
        checkpoint.clear_partial(folder)
    return Kills(count, inside, lost, broken + len(complaints))


def _one_save(kept: Any) -> float:
    """Seconds that a save takes, after the first one."""
    times: list[float] = []
    for _ in range(2):
        before = kept.value
        while kept.value == before:
            time.sleep(0.0005)
        times.append(time.monotonic())
    return times[1] - times[0]


def _holds(place: Path, step: float) -> bool:
    """Whether all numbers in a checkpoint are those of its step."""
    saved = checkpoint.load(place)
    tensors = [*saved.shared.tensors.values(), *(tensor for own in saved.own for tensor in own.tensors.values())]
    return len(tensors) == TENSORS + 1 and all(bool((tensor == step).all()) for tensor in tensors)


def _cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


HARMS: Mapping[str, Callable[[Path], None]] = {"cut": _cut, "zeroed": _zero, "a bit flipped": _flip}


def spoil(run: Training, harm: str) -> tuple[int, int]:
    """Spoil a file of the newest checkpoint; its step, and that of the one before."""
    newest, before, *_ = checkpoint.whole(run.folder)
    HARMS[harm](newest / "network.safetensors")
    return int(checkpoint.step_of(newest)), int(checkpoint.step_of(before))


def may_mount() -> bool:
    """Whether this process may mount a disk of its own."""
    return os.geteuid() == 0 and subprocess.run(["unshare", "--mount", "true"], check=False).returncode == 0


@contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[None]:
    """While the block runs, `place` is a disk of its own, in memory."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def filled(place: Path) -> Iterator[None]:
    """While the block runs, the disk of `place` has next to no room."""
    ballast = place / "ballast"
    with ballast.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, shutil.disk_usage(place).free - SLACK_BYTES)
    try:
        yield
    finally:
        ballast.unlink()


@contextmanager
def away(run: Training) -> Iterator[None]:
    """While the block runs, the folder of the checkpoints is not there, and cannot be made."""
    place = run.folder / CHECKPOINTS
    aside = place.with_name("away")
    place.rename(aside)
    place.touch()
    try:
        yield
    finally:
        place.unlink()
        aside.rename(place)


def half_written(run: Training) -> list[str]:
    """What lies among the checkpoints of a run that is over and is not a whole one."""
    found = (run.folder / CHECKPOINTS).iterdir()
    return [place.name for place in found if place.is_dir() and not (place / SUMS).is_file()]
