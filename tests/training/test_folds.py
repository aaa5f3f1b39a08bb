"""Cross-validation: every case validates once, one parent run, and a second start does nothing twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import tiny

from medray.config import ConfigError
from medray.training import train as training
from medray.training.folds import fold_of, room, summary
from medray.training.train import resume, train


def folded(folder: Path, **sections: object):
    settings = {"epochs": 1, "batch_size": 8, "precision": "fp32", "folds": 3}
    return tiny(folder, train=settings, split={"method": "auto", "test": 0}, **sections)


def test_folds_are_one_parent_with_mean_and_spread(image_folder: Path, database: Path, home: Path) -> None:
    from medray.tracking.run import client

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

    def breaks_down(experiment, folder, progress, parent=None):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(folder.name)
        return whole(experiment, folder, progress, parent)

    monkeypatch.setattr(training, "_train", breaks_down)
    with pytest.raises(KeyboardInterrupt):
        train(folded(image_folder))
    (name,) = {folder.name.rpartition("-fold")[0] for folder in (home / "runs").glob("*-fold*")}
    parent = json.loads((home / "runs" / name / "run.json").read_text(encoding="utf-8"))["run_id"]
    monkeypatch.setattr(training, "_train", lambda *args: done.append(args[1].name) or whole(*args))
    result = resume(name)
    assert done == [f"{name}-fold{fold}" for fold in range(3)]
    assert result["run_id"] == parent
    assert resume(name) == result


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
