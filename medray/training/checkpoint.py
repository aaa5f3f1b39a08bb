"""Checkpoints: the state of a training in a folder, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from medray.types import Array

STATE = "state.pt"
SCORES = "scores.npz"


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain numbers) into `folder`, synced before it gets its name."""
    temporary = folder / f"{STATE}.partial"
    with temporary.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.rename(folder / STATE)


def sync_files(folder: Path) -> None:
    """Wait until the disk has every file of `folder`."""
    for file in folder.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())


def load(folder: Path) -> dict[str, Any]:
    """The state in `folder`, on the CPU; tensors and plain values only, nothing is executed."""
    return cast(dict[str, Any], torch.load(folder / STATE, map_location="cpu", weights_only=True))


def save_scores(folder: Path, scores: dict[str, Array]) -> None:
    """Write the probabilities (n, K) of each split."""
    np.savez(folder / SCORES, **cast(dict[str, Any], scores))


def load_scores(folder: Path) -> dict[str, Array]:
    """The probabilities (n, K) of each split."""
    with np.load(folder / SCORES, allow_pickle=False) as scores:
        return {name: scores[name] for name in scores.files}
