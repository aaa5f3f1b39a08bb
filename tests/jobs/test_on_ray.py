"""What people run, as they run it, on real Ray: DDP on two workers, a search, the service, submitted jobs.

Every command runs without a network where the machine allows that: nothing may need one, and nothing may leave.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY, draw_folder, tiny
from job_runner import command, descendants, job, no_network, wait_for, wait_until_gone

from medray.config import to_yaml
from medray.inference.predictor import Predictor

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One home for all of these, so that what one command leaves the next one finds."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDRAY_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experiment")
    images = draw_folder(folder / "images", cases=49)
    file = folder / "tiny.yaml"
    train = {"epochs": 4, "batch_size": 8, "precision": "fp32"}
    file.write_text(to_yaml(tiny(images, train=train)), encoding="utf-8")
    return file


def test_these_run_without_a_network() -> None:
    """Skipped, and so seen, where the machine does not allow it: then all below ran with the network there."""
    if not (offline := no_network()):
        pytest.skip("a network namespace of one's own is not allowed here (unshare --net)")
    interfaces = subprocess.run([*offline, "ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    assert [line.split(": ")[1] for line in interfaces.splitlines() if "UP" in line] == ["lo"]
    assert command("train.py")[: len(offline)] == offline


def test_two_workers_give_what_one_gives_and_a_model(experiment: Path, home: Path) -> None:
    one = job("train.py", str(experiment), "name=one")
    two = job("train.py", str(experiment), "name=two", "scaling.workers=2")
    rows = [
        [json.loads(line) for line in (home / "runs" / run["run"] / "journal.jsonl").read_text().splitlines()]
        for run in (one, two)
    ]
    for name in ("train/loss", "val/loss", "val/auroc"):
        np.testing.assert_allclose(*[[row[name] for row in part] for part in rows], atol=1e-4, err_msg=name)
    for name, value in one["metrics"].items():
        assert two["metrics"][name] == pytest.approx(value, abs=1e-4), name
    assert two["model"] == "two/1"
    image = next((experiment.parent / "images").rglob("*.png"))
    assert job("predict.py", str(image), "--model", "two@champion")["model"] == "two/1"


def test_a_nan_on_workers_ends_the_run_with_its_step(experiment: Path) -> None:
    said = job("train.py", str(experiment), "optimizer={name: sgd, lr: 1.0e+30}", "scaling.workers=2", code=1)["stderr"]
    assert "not finite at step" in said
    assert "Traceback" not in said


def test_a_search_registers_its_best(experiment: Path, home: Path) -> None:
    from mlflow.tracking import MlflowClient

    space = "tune.space={optimizer.lr: {loguniform: [0.001, 0.1]}, network.widths: {choice: [[4, 8], [8, 8]]}}"
    found = job("tune.py", str(experiment), "name=search", "tune.trials=3", "tune.baseline=false", space)
    assert found["trials"] == 3
    assert found["model"] == "search/1"
    assert set(found["settings"]) == {"optimizer.lr", "network.widths"}
    mlflow = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    runs = mlflow.search_runs([mlflow.get_experiment_by_name("search").experiment_id])
    assert sorted(run.data.tags.get("mlflow.parentRunId", "") for run in runs) == ["", *[found["run_id"]] * 3]
    again = job("train.py", str(home / "runs" / found["run"] / "best.yaml"), "name=again")
    assert again["metrics"]["val/auroc"] == pytest.approx(found["metrics"]["val/auroc"], abs=1e-4)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("{optimizer.lrr: {uniform: [0, 1]}}", "did you mean 'lr'"),
        ("{optimizer.lr: {normal: [0, 1]}}", "expected one of uniform"),
        ("{optimizer.lr: {uniform: [-2, -1]}}", "greater than 0"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(experiment: Path, space: str, message: str) -> None:
    assert message in job("tune.py", str(experiment), f"tune.space={space}", code=2)["stderr"]


def test_the_service_answers_as_the_predictor_does(experiment: Path, tmp_path: Path) -> None:
    trained = job("train.py", str(experiment), "name=served")
    images = sorted((experiment.parent / "images").rglob("*.png"))[:3]
    with (tmp_path / "stderr").open("w") as stderr:
        service = subprocess.Popen(
            command("serve.py", "--model", "served@champion", "serve.port=8017"), stdout=subprocess.PIPE, stderr=stderr
        )
    try:
        inside = ["nsenter", f"--net=/proc/{service.pid}/ns/net"] if no_network() else []
        wait_for(tmp_path / "stderr", "try: curl", service)

        def post(*arguments: str) -> tuple[int, dict[str, Any]]:
            out = subprocess.run(
                [*inside, "curl", "-s", "-w", "\n%{http_code}", *arguments, "http://127.0.0.1:8017/v1/predict"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.splitlines()
            return int(out[-1]), json.loads(out[0])

        predictor = Predictor(Path(trained["bundle"]))
        for image in images:
            expected = predictor.predict(image)
            for form in (["-F", f"file=@{image}"], ["--data-binary", f"@{image}"]):
                status, answer = post(*form)
                assert status == 200
                assert answer["labels"] == list(expected.labels)
                scores = [item["probability"] for item in answer["predictions"]]
                np.testing.assert_array_equal(np.float32(scores), expected.scores)
        for content, status in ((b"no image", 415), (images[0].read_bytes()[:60], 422)):
            (tmp_path / "bad").write_bytes(content)
            found, answer = post("-F", f"file=@{tmp_path / 'bad'}")
            assert found == status
            assert answer["code"]
            assert str(tmp_path) not in json.dumps(answer)
        assert post("-F", "x=y")[0] == 400
        assert post("-H", "Content-Length: 999999999999", "--data-binary", "x", "--max-time", "5")[0] == 413
        assert post("-H", "Transfer-Encoding: chunked", "-d", "x")[0] == 411
    finally:
        service.send_signal(signal.SIGTERM)
        out, _ = service.communicate(timeout=60)
    assert service.returncode == 0
    assert json.loads(out.splitlines()[-1])["model"] == "served/1"


def wait_for_epochs(home: Path, name: str, process: subprocess.Popen[Any], timeout_s: float = 240) -> None:
    """Until the workers have done three epochs: their journal says so at once, the screen when MLflow is ready."""
    deadline = time.monotonic() + timeout_s
    while not any(file.read_text().count("\n") >= 3 for file in (home / "runs").glob(f"{name}-*/journal.jsonl")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("kind", "workers", "code", "word"),
    [
        (signal.SIGINT, 1, 130, "interrupted"),
        (signal.SIGINT, 2, 130, "interrupted"),
        (signal.SIGTERM, 1, 75, "terminated"),
        (signal.SIGTERM, 2, 75, "terminated"),
    ],
)
def test_ctrl_c_is_exit_130_and_sigterm_75_and_the_run_goes_on_with_resume(
    experiment: Path, home: Path, tmp_path: Path, kind: signal.Signals, workers: int, code: int, word: str
) -> None:
    from mlflow.tracking import MlflowClient

    # A shell that runs the tests in the background has them ignore Ctrl-C, and the command would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    name = f"{word}{workers}"
    arguments = ["train.py", str(experiment), f"name={name}", "train.epochs=4000", f"scaling.workers={workers}"]
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=stderr)
    try:
        wait_for(tmp_path / "stderr", "epoch   3/", process)
        below = descendants(process.pid)
        process.send_signal(kind)
        found = process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()
    said = (tmp_path / "stderr").read_text()
    assert found == code, said
    assert f"medray: {word}; a training, a search or a prediction goes on with the same command" in said
    assert "Traceback" not in said
    (folder,) = (home / "runs").glob(f"{name}-*")
    mlflow = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    run_id = json.loads((folder / "run.json").read_text())["run_id"]
    assert mlflow.get_run(run_id).info.status == "KILLED"
    wait_until_gone(below)
    text = (folder / "experiment.yaml").read_text()
    (folder / "experiment.yaml").write_text(text.replace("epochs: 4000", "epochs: 2"))
    assert job("train.py", "--resume", folder.name)["run_id"] == run_id
    assert mlflow.get_run(run_id).info.status == "FINISHED"


@pytest.mark.parametrize("failures", [0, 1])
def test_a_worker_that_is_killed_is_replaced_as_often_as_max_failures_says(
    experiment: Path, home: Path, tmp_path: Path, failures: int
) -> None:
    """With 1 the run begins again where its last checkpoint was, and every epoch is once in MLflow."""
    from mlflow.tracking import MlflowClient

    name, epochs = f"killed{failures}", 60
    settings = [f"name={name}", f"train.epochs={epochs}", "scaling.workers=2", f"scaling.max_failures={failures}"]
    with (tmp_path / "stderr").open("w") as stderr, (tmp_path / "stdout").open("w") as stdout:
        process = subprocess.Popen(command("train.py", str(experiment), *settings), stdout=stdout, stderr=stderr)
    try:
        wait_for_epochs(home, name, process)
        workers = [pid for pid, title in descendants(process.pid).items() if "RayTrainWorker" in title]
        assert len(workers) == 2
        os.kill(workers[1], signal.SIGKILL)
        code = process.wait(timeout=240)
    finally:
        process.kill()
        process.wait()
    said = (tmp_path / "stderr").read_text()
    (folder,) = (home / "runs").glob(f"{name}-*")
    run_id = json.loads((folder / "run.json").read_text())["run_id"]
    mlflow = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    steps = [point.step for point in mlflow.get_metric_history(run_id, "val/auroc")]
    assert "Traceback" not in said
    if failures == 0:
        assert (code, mlflow.get_run(run_id).info.status) == (1, "FAILED"), said
        assert len(steps) < epochs
        return
    assert (code, mlflow.get_run(run_id).info.status) == (0, "FINISHED"), said
    assert steps == list(range(1, epochs + 1))
    done = [json.loads(line)["epoch"] for line in (folder / "journal.jsonl").read_text().splitlines()]
    assert len(done) > epochs, "epochs after the last checkpoint were done again"
    assert json.loads((tmp_path / "stdout").read_text().splitlines()[-1])["model"] == f"{name}/1"


@pytest.fixture
def sessions() -> Iterator[Path]:
    """Ray's temporary folder; its sockets' paths may have 107 characters, which pytest's own folders exceed."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def head(tmp_path: Path, sessions: Path) -> Iterator[dict[str, str]]:
    """A Ray head of our own, started in the checkout, with a token; ended by its own process ids."""
    token = tmp_path / "token"
    token.write_text("0" * 64)
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8299",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    ports = ["--port=6399", "--dashboard-port=8299", "--ray-client-server-port=8298"]
    options = ["--head", "--block", "--num-cpus=2", "--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1"]
    process = subprocess.Popen(
        ["ray", "start", *options, *ports, f"--temp-dir={sessions}"],
        env=environment,
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while submit(environment, "list").returncode != 0:
            assert process.poll() is None, "ray start failed"
        yield environment
    finally:
        process.terminate()
        process.wait(timeout=60)


def submit(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ray", "job", *arguments], env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("upload", [False, True], ids=["in the checkout", "--working-dir ."])
def test_submitted_jobs(head: dict[str, str], experiment: Path, upload: bool, sessions: Path) -> None:
    """`ray job submit -- python jobs/train.py`, alone and with an upload that holds no data, store or run."""
    ballast = REPOSITORY / "data"
    made = not ballast.exists()
    ballast.mkdir(exist_ok=True)
    (ballast / "patient.nii.gz").write_bytes(os.urandom(3 << 20))
    try:
        options = ["--working-dir", "."] if upload else []
        arguments = ["python", "jobs/train.py", str(experiment), "name=submitted"]
        found = submit(head, "submit", *options, "--", *arguments)
        assert found.returncode == 0, found.stdout + found.stderr
        last = [line for line in found.stdout.splitlines() if line.startswith("{")][-1]
        assert json.loads(last)["model"].startswith("submitted/")
        if upload:
            packages = list(sessions.glob("session_*/runtime_resources/working_dir_files/_ray_pkg_*/"))
            names = {file.name for package in packages for file in package.rglob("*") if file.is_file()}
            assert "train.py" in names
            assert not {name for name in names if name.endswith((".gz", ".npy", ".db", ".safetensors", ".png"))}
    finally:
        (ballast / "patient.nii.gz").unlink()
        if made:
            ballast.rmdir()
