"""`medray train` that was interrupted, by the same command again: what goes on, what begins anew, what is refused."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny
from test_cli import run

from medray.config import to_yaml
from medray.training import checkpoint, worker
from medray.training.folder import FAILURE, locked

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def experiment(tmp_path: Path, image_folder: Path) -> str:
    file = tmp_path / "tiny.yaml"
    train = {"epochs": 3, "batch_size": 8, "precision": "fp32", "checkpoint_every": "2 steps"}
    file.write_text(to_yaml(tiny(image_folder, train=train)), encoding="utf-8")
    return str(file)


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ctrl-C after the second epoch, as often as there is something in the list."""
    whole, left = worker._Worker._close_epoch, [1]

    def close(self: Any, event: Any) -> None:
        whole(self, event)
        if left and event.epoch == 2:
            left.pop()
            raise KeyboardInterrupt

    monkeypatch.setattr(worker._Worker, "_close_epoch", close)
    return left


def runs(home: Path) -> list[Path]:
    return sorted((home / "runs").iterdir(), key=lambda folder: folder.stat().st_mtime)


def logged(home: Path) -> dict[str, list[int]]:
    """The steps of one metric in MLflow, by the name of the run."""
    with sqlite3.connect(home / "mlflow.db") as tables:
        rows = tables.execute(
            "SELECT name, step FROM metrics JOIN runs USING (run_uuid) WHERE key = 'val/auroc' ORDER BY step"
        ).fetchall()
    return {name: [step for found, step in rows if found == name] for name, _ in rows}


def weights(folder: Path) -> dict[str, list[Any]]:
    saved = checkpoint.load(folder / "checkpoints" / "finished")
    return {name: tensor.tolist() for name, tensor in saved.shared.tensors.items()}


def test_the_same_command_goes_on_and_comes_to_the_same_end(
    experiment: str, home: Path, breaking: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", experiment)[0] == 130
    (broken,) = runs(home)
    code, found = run("train", experiment)
    assert code == 0
    said = capsys.readouterr().err
    assert "going on with a run that was interrupted (--new begins another)" in said
    assert f"run {broken.name} in {broken}" in said
    assert "going on after step" in said
    assert (found["run"], found["tracked"], found["model"]) == (broken.name, True, "tiny/1")
    code, other = run("train", experiment)
    assert code == 0
    assert other["run"] != broken.name, "a finished run is not gone on with"
    assert other["model"] == "tiny/2"
    assert weights(runs(home)[0]) == weights(runs(home)[1])
    assert other["metrics"] == found["metrics"]
    assert logged(home) == {found["run"]: [1, 2, 3], other["run"]: [1, 2, 3]}
    assert breaking == []


def test_another_run_is_begun_with_new(experiment: str, home: Path, breaking: list[int]) -> None:
    assert run("train", experiment)[0] == 130
    assert run("train", experiment, "--new")[1]["run"] != runs(home)[0].name or len(runs(home)) == 2
    assert len(runs(home)) == 2
    assert breaking == []


def test_other_settings_are_another_run(experiment: str, home: Path, breaking: list[int]) -> None:
    assert run("train", experiment)[0] == 130
    assert run("train", experiment, "train.epochs=1")[0] == 0
    assert len(runs(home)) == 2
    assert breaking == []


def test_what_failed_is_not_gone_on_with(experiment: str, home: Path) -> None:
    spoilt = ["train", experiment, "optimizer={name: sgd, lr: 1.0e+30}"]
    assert run(*spoilt)[0] == 1
    (first,) = runs(home)
    assert (first / FAILURE).read_text().startswith("NonFiniteLoss: the loss is not finite at step")
    assert run(*spoilt)[0] == 1
    assert len(runs(home)) == 2


@pytest.mark.parametrize("by_name", [False, True])
def test_a_run_that_is_being_run_is_refused(
    experiment: str, home: Path, breaking: list[int], capsys: pytest.CaptureFixture[str], by_name: bool
) -> None:
    assert run("train", experiment)[0] == 130
    (folder,) = runs(home)
    again = ["train", "--resume", folder.name] if by_name else ["train", experiment]
    with locked(folder):
        assert run(*again)[0] == 2
    assert f"run {folder.name} is being run by process" in capsys.readouterr().err
    assert run(*again)[0] == 0
    assert breaking == []


def test_a_disk_without_room_is_exit_75_before_the_first_step(
    experiment: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkpoint, "SPARE_BYTES", 1 << 62)
    assert run("train", experiment)[0] == 75
    said = capsys.readouterr().err
    assert "MiB are free" in said
    assert str(home / "runs") in said
    monkeypatch.undo()
    monkeypatch.setenv("MEDRAY_HOME", str(home))
    code, found = run("train", experiment)
    assert (code, found["run"]) == (0, runs(home)[0].name)
    assert len(runs(home)) == 1


def test_new_is_not_for_resume(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "--resume", "some", "--new")[0] == 2
    assert "leave out: --new" in capsys.readouterr().err


def test_a_run_leaves_one_checkpoint_and_its_result(experiment: str, home: Path) -> None:
    code, found = run("train", experiment)
    assert code == 0
    (folder,) = runs(home)
    assert [place.name for place in (folder / "checkpoints").iterdir()] == ["finished"]
    assert json.loads((folder / "result.json").read_text()) == found
    assert not (folder / "stop").exists()
