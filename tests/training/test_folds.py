"""Cross-validation: every case validates once, one parent run, and a second start does nothing twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import tiny

from medray.config import ConfigError
from medray.tracking.run import PARENT, client, tagged
from medray.training import live
from medray.training import train as training
from medray.training.delivery import RUN
from medray.training.folds import fold_of, room, summary
from medray.training.sync import sync
from medray.training.train import resume, train


def folded(folder: Path, **sections: object):
    settings = {"epochs": 1, "batch_size": 8, "precision": "fp32", "folds": 3}
    return tiny(folder, train=settings, split={"method": "auto", "test": 0}, **sections)


def test_folds_are_one_parent_with_mean_and_spread(image_folder: Path, database: Path, home: Path) -> None:
    assert database.is_file()
    result = train(folded(image_folder))
    values = [fold["metrics"]["val/auroc"] for fold in result["folds"]]
    assert result["metrics"]["val/auroc"] == pytest.approx(sum(values) / 3, abs=1e-5)
    assert result["spread"]["val/auroc"] >= 0
    assert len({bundle for bundle in result["bundles"] if Path(bundle).is_dir()}) == 3
    mlflow = client(None)
    parent = mlflow.get_run(result["run_id"])
    assert parent.data.metrics["val/auroc"] == pytest.approx(result["metrics"]["val/auroc"])
    for fold in result["folds"]:
        assert mlflow.get_run(fold["run_id"]).data.tags["mlflow.parentRunId"] == result["run_id"]
    held = []
    for fold in result["folds"]:
        split = (home / "runs" / fold["run"] / "shared" / "split.csv").read_text(encoding="utf-8")
        held += [line.split(",")[0] for line in split.splitlines() if ",val" in line]
    assert len(held) == len(set(held)) == 40, "every case validates exactly once"


def test_what_is_finished_is_not_trained_again(
    image_folder: Path, database: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert database.is_file()
    done: list[str] = []
    whole = training._train

    def breaks_down(experiment, folder, *more):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(folder.name)
        return whole(experiment, folder, *more)

    monkeypatch.setattr(training, "_train", breaks_down)
    with pytest.raises(KeyboardInterrupt):
        train(folded(image_folder))
    (name,) = {folder.name.rpartition("-fold")[0] for folder in (home / "runs").glob("*-fold*")}
    parent = json.loads((home / "runs" / name / "run.json").read_text(encoding="utf-8"))["run_id"]
    assert client(None).get_run(parent).info.status == "KILLED"
    monkeypatch.setattr(training, "_train", lambda *args: done.append(args[1].name) or whole(*args))
    result = resume(name)
    assert done == [f"{name}-fold{fold}" for fold in range(3)]
    assert result["run_id"] == parent
    assert resume(name) == result
    assert client(None).get_run(parent).info.status == "FINISHED"


def test_a_cross_validation_needs_no_mlflow_and_is_delivered_later(
    image_folder: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert database.is_file()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(live, "PATIENCE_S", 0.1)
    result = train(folded(image_folder))
    assert (result["run_id"], result["tracked"]) == (None, False)
    assert not any(fold["tracked"] for fold in result["folds"])
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert sync([result["run"]])["waiting"] == []
    known = resume(result["run"])
    assert known["tracked"]
    whole = client(None).get_run(known["run_id"])
    assert whole.info.status == "FINISHED"
    assert whole.data.metrics["val/auroc"] == pytest.approx(result["metrics"]["val/auroc"])
    nested = tagged(client(None), "tiny", PARENT, known["run_id"])
    assert sorted(run.tags[RUN] for run in nested) == [fold["run"] for fold in result["folds"]]
    assert all(run.status == "FINISHED" and "best/val/auroc" in run.metrics for run in nested)


def test_a_given_split_cannot_be_dealt_again(image_folder: Path) -> None:
    experiment = folded(image_folder)
    assert fold_of(experiment, 2).split.fold == 2
    split = experiment.split.model_copy(update={"method": "given"})
    with pytest.raises(ConfigError, match=r"split\.method: is given"):
        fold_of(experiment.model_copy(update={"split": split}), 0)


def test_one_machine_trains_one_fold_at_a_time(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = folded(image_folder)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert room(experiment) == 1
    monkeypatch.setattr("medray.cluster.joins_cluster", lambda: True)
    monkeypatch.setattr("medray.cluster.resources", lambda: (8.0, 0))
    monkeypatch.setattr("medray.cluster.nodes", lambda: [8.0])
    assert room(experiment) == 8


def test_figures_that_a_fold_lacks_are_left_out() -> None:
    means, spread = summary([{"a": 1.0, "b": 2.0}, {"a": 3.0}])
    assert (means, spread) == ({"a": 2.0}, {"a": 1.0})
