"""Searches as people run them, on real Ray: killed, with trials that crash, with populations, with several workers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import draw_folder, tiny
from job_runner import command, descendants, job, wait_until_gone

from medray.config import to_yaml
from medray.tuning.trials import curve, load_all

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One home for all of these: the database of MLflow is made once."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDRAY_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experiment")
    images = draw_folder(folder / "images", cases=60)
    file = folder / "tiny.yaml"
    train = {"epochs": 30, "batch_size": 4, "precision": "fp32"}
    tune = {"scheduler": "none", "space": {"optimizer.lr": {"loguniform": [1e-4, 1e-1]}}}
    file.write_text(to_yaml(tiny(images, train=train, tune=tune)), encoding="utf-8")
    return file


def runs_of(home: Path, name: str) -> list[Any]:
    from mlflow.tracking import MlflowClient

    mlflow = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    found = mlflow.get_experiment_by_name(name)
    return [] if found is None else list(mlflow.search_runs([found.experiment_id]))


def metric_steps(home: Path, run_id: str, name: str) -> list[int]:
    from mlflow.tracking import MlflowClient

    return [point.step for point in MlflowClient(f"sqlite:///{home / 'mlflow.db'}").get_metric_history(run_id, name)]


def wait_for_states(home: Path, name: str, state: str, count: int, process: subprocess.Popen[Any]) -> Path:
    """The study's folder, once so many of its trials are in that state."""
    deadline = time.monotonic() + 240
    while True:
        for folder in (home / "runs").glob(f"{name}-*"):
            if sum(trial.state == state for trial in load_all(folder).values()) >= count:
                return folder
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_search_whose_driver_is_killed_goes_on_with_the_same_command(
    experiment: Path, home: Path, tmp_path: Path
) -> None:
    arguments = ["tune.py", str(experiment), "tune.trials=5"]
    unbroken = job(*arguments, "name=unbroken")
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(command(*arguments, "name=broken"), stdout=subprocess.DEVNULL, stderr=stderr)
    try:
        folder = wait_for_states(home, "broken", "finished", 2, process)
        below = descendants(process.pid)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    for pid in below:
        with_signal(pid)
    wait_until_gone(below)
    before = {index: curve(folder, index).spent for index, trial in load_all(folder).items() if trial.ended}
    assert len(before) < 5
    found = job(*arguments, "name=broken")
    assert found["run"] == folder.name
    assert (found["trials"], found["finished"]) == (5, 5)
    assert {index: curve(folder, index).spent for index in before} == before, "finished trials are not run again"
    assert found["best"] == unbroken["best"]
    assert found["settings"] == unbroken["settings"]
    assert found["metrics"] == pytest.approx(unbroken["metrics"], abs=1e-4)
    runs = runs_of(home, "broken")
    assert Counter(run.data.tags.get("medray.trial", "study") for run in runs) == Counter(
        ["study", *map(str, range(5))]
    )
    for run in runs:
        assert run.info.status == "FINISHED"
        if "medray.trial" in run.data.tags:
            assert metric_steps(home, run.info.run_id, "val/auroc") == list(range(1, 31))
    again = job("tune.py", "--resume", folder.name)
    assert again == found, "a finished search gives its result again"


def with_signal(pid: int) -> None:
    """End what a killed driver left; it ends by itself, but not at once."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def trial_processes(driver: subprocess.Popen[Any]) -> list[int]:
    """Those in which a trial runs; Ray names a process by what it does."""
    found = descendants(driver.pid).items()
    return [pid for pid, title in found if re.match(r"ray::(run_trial|ImplicitFunc)", title)]


def test_trials_that_crash_are_marked_and_the_search_goes_on(experiment: Path, home: Path, tmp_path: Path) -> None:
    """Two settings diverge, and one trial's process is killed."""
    space = "tune.space={optimizer.lr: {choice: [0.001, 0.002, 0.003, 0.005, 1.0e+30, 1.0e+31]}}"
    arguments = ["tune.py", str(experiment), "name=crash", "tune.searcher=grid", space]
    with (tmp_path / "stderr").open("w") as stderr, (tmp_path / "stdout").open("w") as stdout:
        process = subprocess.Popen(command(*arguments), stdout=stdout, stderr=stderr)
    try:
        folder = wait_for_states(home, "crash", "running", 1, process)
        while not (trials := trial_processes(process)):
            assert process.poll() is None
            time.sleep(0.1)
        os.kill(trials[0], signal.SIGKILL)
        code = process.wait(timeout=240)
    finally:
        process.kill()
        process.wait()
    said = (tmp_path / "stderr").read_text()
    assert code == 0, said
    found = json.loads((tmp_path / "stdout").read_text().splitlines()[-1])
    assert (found["finished"], found["failed"]) == (3, 3), said
    assert "note: 3 of 6 trials failed" in said
    assert "Traceback" not in said
    errors = sorted(trial.error for trial in load_all(folder).values() if trial.error)
    assert ["not finite" in error for error in errors] == [True, True, False]
    assert "process was killed" in errors[2]
    failed = [run for run in runs_of(home, "crash") if run.info.status == "FAILED"]
    assert sorted(run.data.tags["medray.error"] for run in failed) == errors


def test_a_population_hands_weights_on(experiment: Path, home: Path) -> None:
    found = job(
        "tune.py",
        str(experiment),
        "name=population",
        "tune.scheduler=pbt",
        "tune.trials=2",
        "tune.grace_epochs=3",
        "train.epochs=12",
        "train.steps_per_epoch=300",
        "tune.space={optimizer.lr: {choice: [0.00001, 0.01]}}",
        "optimizer.lr=0.01",
    )
    assert found["finished"] == 2
    folder = home / "runs" / found["run"]
    events = [event for trial in load_all(folder).values() for event in trial.events]
    assert events, "with one rate that hardly learns a weak trial takes over the other's weights"
    assert all(
        re.fullmatch(r"takes over trial [01]'s weights after epoch \d+: optimizer.lr=\S+", event) for event in events
    )
    for index in (0, 1):
        assert [row["epoch"] for row in curve(folder, index).rows][-1] == 12


def test_trials_of_several_workers_are_stopped_and_give_their_cpus_back(experiment: Path) -> None:
    found = job(
        "tune.py",
        str(experiment),
        "name=workers",
        "scaling.workers=2",
        "train.epochs=6",
        "train.steps_per_epoch=200",
        "train.monitor=val/loss",
        "tune.scheduler=asha",
        "tune.space={optimizer.lr: {choice: [0.01, 0.00001, 0.00002]}}",
        "tune.searcher=grid",
    )
    assert found["trials"] == 3
    assert found["stopped"] == 2
    assert found["best"] == 0
    assert found["settings"] == {"optimizer.lr": 0.01}


def test_the_same_search_twice_at_once_is_refused(experiment: Path, home: Path, tmp_path: Path) -> None:
    arguments = ["tune.py", str(experiment), "name=twice", "tune.trials=2"]
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=stderr)
    try:
        wait_for_states(home, "twice", "running", 1, process)
        said = job(*arguments, code=2)["stderr"]
        assert f"is being run by process {process.pid}" in said
        assert process.wait(timeout=240) == 0
    finally:
        process.kill()
        process.wait()


def test_ctrl_c_leaves_a_search_that_goes_on(experiment: Path, home: Path, tmp_path: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    arguments = ["tune.py", str(experiment), "name=interrupted", "tune.trials=3"]
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=stderr)
    try:
        folder = wait_for_states(home, "interrupted", "running", 1, process)
        below = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130, (tmp_path / "stderr").read_text()
    finally:
        process.kill()
        process.wait()
    wait_until_gone(below)
    assert "a training, a search or a prediction goes on with the same command" in (tmp_path / "stderr").read_text()
    found = job("tune.py", "--resume", folder.name)
    assert (found["run"], found["trials"], found["finished"]) == (folder.name, 3, 3)


def test_the_best_settings_are_trained_again_on_all_cases(experiment: Path) -> None:
    """Compared with the champion by the trial's figure, which is of the same validation cases."""
    job("train.py", str(experiment), "name=refit", "train.epochs=1", "optimizer.lr=0.00001")
    found = job("tune.py", str(experiment), "name=refit", "tune.trials=2", "train.epochs=4", "tune.refit=true")
    assert found["model"] == "refit/2"
    card = json.loads((Path(found["bundle"]) / "card.json").read_text())
    assert card["cases"]["val"] == 0
    assert card["cases"]["train"] == 48
    assert card["trust"]["temperature"] > 0, "calibrated with the trial that had validation cases"
    again = job("train.py", str(experiment), "name=refit", "train.epochs=1", "split.join_val=true")
    assert (again["model"], again["champion"]) == ("refit/3", False), "nobody has measured it"
