"""`medray sync`: what MLflow missed is delivered, once, from the folders of the runs."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny
from cyclopts import App
from run_folder import PREPARED, begun, ended, epochs, models, state
from test_bundle import make

from medray import cli_sync
from medray.config import Experiment
from medray.console import answer
from medray.tracking.run import client, tagged
from medray.training import handover, live
from medray.training.delivery import RUN, outcome_of
from medray.training.folder import locked
from medray.training.live import LiveRecord


@pytest.fixture(autouse=True)
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def experiment() -> Experiment:
    return tiny(Path("images"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    return make(tmp_path_factory.mktemp("model") / "bundle", image_folder).folder


def run(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and the last line of stdout, {} where there is none."""
    app, stdout = App(name="medray"), io.StringIO()
    cli_sync.register(app)
    code = answer(app, ["sync", *arguments], stdout)
    found = stdout.getvalue().splitlines()
    return code, json.loads(found[-1]) if found else {}


def finished(home: Path, experiment: Experiment, name: str, model: Path | None = None) -> Path:
    """A run that MLflow has heard nothing of."""
    folder = begun(home, experiment, name)
    epochs(folder, 1, 2, 3)
    ended(folder, model)
    (folder / "result.json").write_text(json.dumps({"run": name, **outcome_of(None)}))
    return folder


@pytest.mark.usefixtures("database")
def test_all_that_is_missing_is_delivered_once(
    home: Path, experiment: Experiment, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (finished(home, experiment, name, model) for name in ("z-first", "a-second"))
    broken = begun(home, experiment, "broken")
    epochs(broken, 1)
    code, found = run()
    assert code == 0
    assert [told["run"] for told in found["delivered"]] == ["z-first", "a-second", "broken"], "in their order"
    assert [told["model"] for told in found["delivered"]] == ["net/1", "net/2", None]
    assert (found["waiting"], found["running"]) == ([], [])
    assert models("net")["aliases"] == {"champion": "1", "candidate": "2"}
    result = json.loads((first / "result.json").read_text())
    assert (result["model"], result["champion"], result["tracked"]) == ("net/1", True, True)
    assert result["run_id"] == json.loads((first / "run.json").read_text())["run_id"]
    assert json.loads((second / "result.json").read_text())["champion"] is False
    assert state(first, experiment)["status"] == "FINISHED"
    assert state(broken, experiment)["status"] == "KILLED"
    before = [state(folder, experiment) for folder in (first, second, broken)]

    capsys.readouterr()
    assert run() == (0, {"delivered": [], "waiting": [], "running": []})
    assert capsys.readouterr().err == "MLflow has all of every run that is not being trained\n"
    assert [state(folder, experiment) for folder in (first, second, broken)] == before


@pytest.mark.usefixtures("database")
def test_a_run_that_is_named_is_asked_for_in_full(home: Path, experiment: Experiment, model: Path) -> None:
    folder = finished(home, experiment, "one", model)
    other = finished(home, experiment, "other")
    assert [told["run"] for told in run("one")[1]["delivered"]] == ["one"]
    assert not json.loads((other / "result.json").read_text())["tracked"]
    before, known = state(folder, experiment), models("net")
    assert run("one")[0] == 0
    assert (state(folder, experiment), models("net")) == (before, known)


@pytest.mark.usefixtures("database")
def test_a_run_that_is_being_trained_is_left_to_itself(
    home: Path, experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = begun(home, experiment, "whole")
    fold = finished(home, experiment, "whole-fold0")
    handover.save(fold / handover.START, {**handover.read(fold / handover.START), "parent": "whole"})
    with locked(whole):
        assert run() == (0, {"delivered": [], "waiting": [], "running": ["whole", "whole-fold0"]})
    assert "whole: is being trained; its own process delivers it" in capsys.readouterr().err
    assert [told["run"] for told in run("whole")[1]["delivered"]] == ["whole", "whole-fold0"]


def test_mlflow_that_does_not_answer_is_one_line_per_run(
    home: Path, experiment: Experiment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    finished(home, experiment, "one")
    finished(home, experiment, "two")
    code, found = run()
    said = capsys.readouterr().err.splitlines()
    assert (code, found["delivered"]) == (1, [])
    assert [entry["run"] for entry in found["waiting"]] == ["one", "two"]
    assert [line.partition(": not delivered: ")[0] for line in said] == ["one", "two"]
    assert all("Connection refused" in line for line in said)


@pytest.mark.usefixtures("database")
def test_one_run_that_cannot_be_delivered_does_not_stop_the_others(home: Path, experiment: Experiment) -> None:
    bad = finished(home, experiment, "bad")
    (bad / "shared" / "gone").symlink_to("nowhere")
    finished(home, experiment, "good")
    (bad / handover.END).write_text("{")
    code, found = run()
    assert code == 1
    assert [told["run"] for told in found["delivered"]] == ["good"]
    assert [told["run"] for told in found["waiting"]] == ["bad"]


def test_searches_and_unknown_runs_are_explained(
    home: Path, experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    (begun(home, experiment, "search") / "trials").mkdir()
    assert run() == (0, {"delivered": [], "waiting": [], "running": []})
    assert "search: a search that is not finished" in capsys.readouterr().err
    assert run("search")[0] == 2
    assert "medray tune --resume search" in capsys.readouterr().err
    assert run("nobody")[0] == 2
    assert "no run 'nobody'" in capsys.readouterr().err


# A real server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """`mlflow server` on a database and artifacts in `folder`, in a process group of its own."""
    place = [f"--backend-store-uri=sqlite:///{folder / 'mlflow.db'}", f"--artifacts-destination={folder / 'artifacts'}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *place, "--host=127.0.0.1", f"--port={port}", "--workers=1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def steps_of(folder: Path, experiment: Experiment, uri: str) -> int:
    """Epochs that a server has of a run."""
    found = tagged(client(uri), experiment.name, RUN, folder.name)
    return int(found[0].metrics.get("epoch", 0)) if found else 0


def wait_until(found: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_server_that_is_killed_in_the_middle_of_a_run_has_every_epoch_once(
    home: Path,
    experiment: Experiment,
    model: Path,
    tmp_path: Path,
    empty_database: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Killed while it is being written to and back later; a second run, whose end it misses, is delivered by sync."""
    monkeypatch.setattr(live, "EVERY_S", 0.05)
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
    folder, other = begun(home, experiment, "first"), begun(home, experiment, "second")
    record, second = LiveRecord(experiment, folder, PREPARED), LiveRecord(experiment, other, PREPARED)
    with mlflow_server(tmp_path, port):
        record.open()
        second.open()
        for epoch in range(1, 101):
            epochs(folder, epoch)
            time.sleep(0.02)
        wait_until(lambda: steps_of(folder, experiment, uri) > 0)
        epochs(folder, *range(101, 106))
        epochs(other, 1, 2)
    for epoch in range(106, 201):
        epochs(folder, epoch)
        time.sleep(0.01)
    ended(other, model, "late")
    (other / "result.json").write_text(json.dumps({"run": "second", **outcome_of(None)}))
    assert second.deliver(0.5) is None
    assert run("second")[0] == 1
    with mlflow_server(tmp_path, port):
        for epoch in range(201, 301):
            epochs(folder, epoch)
            time.sleep(0.01)
        ended(folder, model)
        (folder / "result.json").write_text(json.dumps({"run": "first", **outcome_of(None)}))
        assert record.deliver() is not None
        assert json.loads((folder / "result.json").read_text())["model"] == "net/1"
        code, found = run()
        assert (code, [told["model"] for told in found["delivered"]]) == (0, ["late/1"])
        delivered, late = state(folder, experiment, uri), state(other, experiment, uri)
        assert models("net", uri)["aliases"] == models("late", uri)["aliases"] == {"candidate": "1", "champion": "1"}
    for name in ("epoch", "val/auroc"):
        assert [step for step, *_ in delivered["history"][name]] == list(range(1, 301))
    assert [step for step, *_ in late["history"]["epoch"]] == [1, 2]
    assert delivered["status"] == late["status"] == "FINISHED"
    assert {"split.csv", "bundle/weights.safetensors"} <= set(delivered["files"])
    said = capsys.readouterr().err
    assert said.count("MLflow cannot be written") == 2
    assert said.count("MLflow can be written again") == 1
