"""`medray sync`: what MLflow missed of runs while it was away, delivered from their folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from medray import cluster
from medray.config import load
from medray.tracking.line import Line, reason
from medray.tracking.run import client, tracking_uri
from medray.training import handover
from medray.training.delivery import Delivered, Delivery, settle
from medray.training.folder import EXPERIMENT, RESULT, RUNS, TRIALS, RunLocked, RunNotFound, locked
from medray.training.progress import say

"""In the folder of a search, which delivers itself when it goes on."""


def sync(names: Sequence[str] = ()) -> dict[str, Any]:
    """Bring MLflow what it does not have of these runs, by default of all.

    Args:
        names: of runs; MLflow is asked for all of each, also where its result says that it is there.

    Returns:
        delivered (what MLflow was told of), waiting (whose MLflow does not answer), running (left for later).

    Raises:
        RunNotFound: there is no run of such a name.
    """
    found = [folder for name in names for folder in _named(name)] if names else _waiting()
    report: dict[str, Any] = {"delivered": [], "waiting": [], "running": []}
    silent = dict[str, str]()
    for folder in sorted(found, key=lambda folder: handover.start_of(folder).began):
        uri = tracking_uri(load(folder / EXPERIMENT).tracking.uri)
        try:
            told = _synced(folder, uri, silent)
        except RunLocked:
            say(f"{folder.name}: is being trained; its own process delivers it")
            report["running"].append(folder.name)
        except Exception as error:
            say(f"{folder.name}: not delivered: {reason(error)}")
            report["waiting"].append({"run": folder.name, "reason": reason(error)})
        else:
            report["delivered"] += [told] if told else []
    if not report["delivered"] and not report["waiting"]:
        say("MLflow has all of every run that is not being trained")
    return report


def result_of(name: str) -> dict[str, Any]:
    """The result of a finished run, which is delivered first if MLflow does not have it."""
    folder = cluster.home() / RUNS / name
    if not handover.read(folder / RESULT).get("tracked", True):
        sync([name])
    return handover.read(folder / RESULT)


def _named(name: str) -> list[Path]:
    """The run's folder, and those of its folds."""
    folder = cluster.home() / RUNS / name
    if (folder / TRIALS).is_dir():
        raise RunNotFound(f"{name} is a search; it delivers itself: medray tune --resume {name}")
    if not (folder / handover.START).is_file():
        raise RunNotFound(f"no run '{name}' in {folder.parent} that has begun to train")
    return [folder, *(file.parent for file in folder.parent.glob(f"{name}-fold*/{handover.START}"))]


def _waiting() -> list[Path]:
    """All runs but those whose result says that MLflow has them; searches are named."""
    found = []
    for folder in (cluster.home() / RUNS).glob("*"):
        result = json.loads((folder / RESULT).read_text(encoding="utf-8")) if (folder / RESULT).is_file() else None
        if (folder / TRIALS).is_dir():
            if result is None:
                say(f"{folder.name}: a search that is not finished; it delivers itself: medray tune --resume ...")
        elif (folder / handover.START).is_file() and not (result and result.get("tracked", True)):
            found.append(folder)
    return found


def _synced(folder: Path, uri: str, silent: dict[str, str]) -> dict[str, Any] | None:
    """What was delivered of a run; None if MLflow had it all.

    Raises:
        RunLocked: it, or the whole that it is a part of, is being trained.
    """
    parent = handover.start_of(folder).parent
    with ExitStack() as locks:
        for place in [folder, *([folder.with_name(parent)] if parent else [])]:
            locks.enter_context(locked(place))
        if uri in silent:
            raise ConnectionError(silent[uri])
        mlflow = Line(partial(client, uri))
        delivery = Delivery(folder, mlflow)
        try:
            delivered = delivery.finish()
        except Exception:
            _note_silence(mlflow, uri, silent)
            raise
        settle(folder, delivered)
    return _told(folder.name, delivered) if delivery.changed else None


def _note_silence(mlflow: Line, uri: str, silent: dict[str, str]) -> None:
    """A server that does not answer now is not asked again for the next run."""
    try:
        mlflow.search_experiments(max_results=1)
    except Exception as error:
        silent[uri] = reason(error)


def _told(name: str, delivered: Delivered) -> dict[str, Any]:
    found = delivered.registered
    say(f"{name}: delivered to {delivered.tracking_uri}" + (f"; {found.verdict}" if found else ""))
    return {
        "run": name,
        "run_id": delivered.run_id,
        "model": found.model if found else None,
        "champion": bool(found and found.champion),
    }
