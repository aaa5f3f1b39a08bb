"""Checkpoints of a run: folders `checkpoints/step-NNNNNNNN`, and `finished` at its end, each whole or not there.

    network.safetensors averaged... optimizer... best...   what is the same on all workers; rank 0 writes it
    values.json                                             and its counters
    rank-0000.safetensors rank-0000.json                    what each worker has of its own
    scores.safetensors                                      in `finished`: probabilities of val and test
    SHA256SUMS                                              written last: a folder without it is not whole

Workers write into one folder with another name; rank 0 renames it when the sums of all are there. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from medray.pipeline.shelf import write_synced

CHECKPOINTS = "checkpoints"
FINISHED = "finished"
SUMS = "SHA256SUMS"
KEPT = 2
"""Whole checkpoints that are kept: one to go on from, and the one before should the disk spoil it."""
SPARE_BYTES = 16 << 20
VALUES = "values"


class StorageError(RuntimeError):
    """A disk has no room, or is away, where something must be written; the message says where and how much."""


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """Tensors under names `file/name`, on the CPU, and plain values."""

    tensors: dict[str, torch.Tensor]
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass(frozen=True, slots=True, eq=False)
class Saved:
    """A checkpoint as it was read."""

    shared: State
    own: list[State]
    """Of each worker."""


def name_of(step: int) -> str:
    """Of the folder of a checkpoint."""
    return f"step-{step:08d}"


def step_of(place: Path) -> float:
    """Steps that were done when the checkpoint was taken; infinite for the last one of a finished run."""
    return math.inf if place.name == FINISHED else int(place.name.removeprefix("step-"))


def write(folder: Path, state: State, values: str) -> dict[str, str]:
    """Write `state` into `folder`, a file per first part of a tensor's name; all is on the disk when this returns.

    Args:
        folder: of a checkpoint that is not whole yet.
        state: with contiguous tensors on the CPU.
        values: name of the JSON file of the plain values.

    Returns:
        The sha256 of each file by its name.
    """
    files: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in state.tensors.items():
        part, _, rest = name.partition("/")
        files.setdefault(part, {})[rest] = tensor
    for part, tensors in files.items():
        try:
            save_file(tensors, folder / f"{part}.safetensors")
        except SafetensorError as error:  # its words are all that it has of the system's error
            number = re.search(r"os error (\d+)", str(error))
            code = int(number[1]) if number else errno.EIO
            raise OSError(code, os.strerror(code), str(folder)) from error
    (folder / f"{values}.json").write_text(json.dumps(state.values, allow_nan=False), encoding="utf-8")
    return {
        name: _sum(folder / name, sync=True) for name in (*(f"{part}.safetensors" for part in files), f"{values}.json")
    }


def commit(partial: Path, place: Path, sums: Mapping[str, str]) -> None:
    """Make `partial` the whole checkpoint `place`, instead of one of the same step: a validation may lie between."""
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    write_synced(partial / SUMS, text)
    _sync(partial)
    before = place.with_name(f"{place.name}.before.partial")
    shutil.rmtree(before, ignore_errors=True)
    if place.is_dir():
        place.rename(before)
    partial.rename(place)
    with contextlib.suppress(OSError):  # it is whole by now; the rest is tidying
        _sync(place.parent)
        shutil.rmtree(before, ignore_errors=True)


def problem_of(place: Path) -> str:
    """What is wrong with a checkpoint, empty if it is whole."""
    try:
        lines = (place / SUMS).read_text(encoding="ascii").splitlines()
        for line in lines:
            digest, _, name = line.partition("  ")
            if _sum(place / name) != digest:
                return f"{name} is not as it was written"
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "" if any(line.endswith(f"  {VALUES}.json") for line in lines) else f"{SUMS} is cut off"


def whole(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder that claim to be whole, newest first."""
    found = [place for place in (folder / CHECKPOINTS).glob("*") if _is_checkpoint(place)]
    return sorted(found, key=step_of, reverse=True)


def newest(folder: Path, complain: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint of a run; a broken one is set aside as `.corrupt`, and `complain` hears of it.

    Args:
        folder: of the run.
        complain: takes a line for a person.
    """
    for place in whole(folder):
        problem = problem_of(place)
        if not problem:
            return place
        aside = place.with_name(f"{place.name}.corrupt")
        shutil.rmtree(aside, ignore_errors=True)
        place.rename(aside)
        complain(f"warning: checkpoint {place.name} is broken ({problem}); kept as {aside}, going on from one before")
    return None


def prune(folder: Path, keep: int = KEPT) -> None:
    """Delete all but the newest whole checkpoints of a run."""
    for place in whole(folder)[keep:]:
        # Not whole from here on, however far the deletion gets.
        (place / SUMS).unlink(missing_ok=True)
        shutil.rmtree(place, ignore_errors=True)


def forget(folder: Path, after: float) -> None:
    """Delete what a run wrote after a step: it goes on from elsewhere."""
    for place in whole(folder):
        if step_of(place) > after:
            (place / SUMS).unlink(missing_ok=True)
            shutil.rmtree(place, ignore_errors=True)


def clear_partial(folder: Path) -> None:
    """Delete what was not finished, or not quite deleted, when its writers ended."""
    for place in (folder / CHECKPOINTS).glob("*"):
        if place.suffix != ".corrupt" and not _is_checkpoint(place):
            shutil.rmtree(place, ignore_errors=True)


def load(place: Path) -> Saved:
    """What a checkpoint holds, on the CPU.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        shared = State({}, _values(place / f"{VALUES}.json"))
        own: dict[int, State] = {}
        for file in sorted(place.glob("*.json")):
            if match := re.fullmatch(r"rank-(\d+)", file.stem):
                own[int(match[1])] = State({}, _values(file))
        for file in sorted(place.glob("*.safetensors")):
            match = re.fullmatch(r"rank-(\d+)", file.stem)
            tensors = load_file(file)
            if match:
                own[int(match[1])].tensors.update(tensors)
            else:
                shared.tensors.update({f"{file.stem}/{name}": tensor for name, tensor in tensors.items()})
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise StorageError(f"checkpoint {place} cannot be read: {type(error).__name__}: {error}") from error
    return Saved(shared, [own[rank] for rank in sorted(own)])


def require_room(folder: Path, need: int) -> None:
    """Refuse to write what the disk has no room for.

    Raises:
        OSError: ENOSPC.
    """
    if shutil.disk_usage(folder).free < need:
        raise OSError(errno.ENOSPC, f"no room, it takes {need / 2**20:.1f} MiB", str(folder))


def _is_checkpoint(place: Path) -> bool:
    known = place.name == FINISHED or re.fullmatch(r"step-\d+", place.name) is not None
    return known and (place / SUMS).is_file()


def _values(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _sum(file: Path, sync: bool = False) -> str:
    """The sha256 of a file; with `sync` the disk has it when this returns."""
    with file.open("rb") as stream:
        if sync:
            os.fsync(stream.fileno())
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    """Wait until the disk knows the names in `folder`."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
