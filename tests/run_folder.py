"""Folders of runs as a training leaves them, without one, and what MLflow has of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from medray.config import Experiment, to_yaml
from medray.tracking import journal, registry
from medray.tracking.registry import Standing
from medray.tracking.run import client, start, tagged
from medray.training import handover
from medray.training.delivery import RUN
from medray.training.handover import Contest, End

PREPARED: Any = SimpleNamespace(
    fingerprint="data", split_fingerprint="split", split=SimpleNamespace(method="fraction"), refused=()
)


def begun(home: Path, experiment: Experiment, name: str = "tiny-1", parent: str | None = None) -> Path:
    """The folder of a run that has begun."""
    folder = home / "runs" / name
    folder.mkdir(parents=True)
    (folder / "experiment.yaml").write_text(to_yaml(experiment), encoding="utf-8")
    handover.begin(folder, PREPARED, parent)
    return folder


def epochs(folder: Path, *numbers: int, shift: float = 0.0) -> None:
    """Rows as a worker writes them; with `shift` those of a repetition, later and with other figures."""
    for epoch in numbers:
        row = {"epoch": epoch, "val/auroc": epoch / 100 + shift, "val/gone": None, "at/end": 1e9 + epoch + shift}
        journal.append(folder / journal.JOURNAL, {**row, "at/worker": 1e9})


def ended(folder: Path, bundle: Path | None = None, name: str = "net") -> None:
    """The rest of a finished run's folder."""
    (folder / "shared" / "figures").mkdir(parents=True)
    (folder / "shared" / "split.csv").write_text("case,split\n", encoding="utf-8")
    (folder / "shared" / "figures" / "curves.png").write_bytes(b"png")
    contest = None
    if bundle is not None:
        (folder / "bundle").symlink_to(bundle)
        contest = Contest(name, "val/auroc", 0.75, 1, "data", "split")
    handover.end(folder, End("FINISHED", 2e9, {"best/val/auroc": 0.75, "best_epoch": 2.0}, contest))


def state(folder: Path, experiment: Experiment, uri: str | None = None) -> dict[str, Any]:
    """All that MLflow has of a run, which must be one run, but ids."""
    mlflow = client(uri)
    (run,) = tagged(mlflow, experiment.name, RUN, folder.name)
    run_id = run.record.run_id

    def files(place: str | None = None) -> Iterator[str]:
        for entry in mlflow.list_artifacts(run_id, place):
            yield from files(entry.path) if entry.is_dir else [entry.path]

    return {
        "status": run.status,
        "params": run.params,
        "tags": {name: value for name, value in run.tags.items() if name.startswith(("medray.data", "env."))},
        "times": (mlflow.get_run(run_id).info.start_time > 0, mlflow.get_run(run_id).info.end_time),
        "history": {
            name: sorted(
                (point.step, point.value, point.timestamp) for point in mlflow.get_metric_history(run_id, name)
            )
            for name in run.metrics
        },
        "files": sorted(files()),
    }


def models(name: str, uri: str | None = None) -> dict[str, Any]:
    """All that the registry has of a model, but ids and times."""
    mlflow = client(uri)
    versions = mlflow.search_model_versions(f"name = '{name}'")
    return {
        "aliases": {a: str(v) for a, v in mlflow.get_registered_model(name).aliases.items()},
        "versions": sorted((str(version.version), sorted(version.tags.items())) for version in versions),
    }


def has_champion(name: str, model: Path, score: float = 0.5) -> None:
    """Somebody's champion on the same cases."""
    record = start(client(None), "others", "champion")
    registry.register(record, name, model, Standing("val/auroc", score, 1, "data", "split"))
    registry.promote(record.client, name, "1", "first")
