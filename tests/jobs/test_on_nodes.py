"""A cluster of a head and three nodes on this machine: all that people submit to one, with the code uploaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, draw_folder, tiny

from medray.cluster import prepare_environment
from medray.config import to_yaml
from medray.training.checkpoint import CHECKPOINTS, FINISHED

pytestmark = pytest.mark.slow

DASHBOARD, PORT = 8296, 8031
Environment = dict[str, str]


@pytest.fixture(scope="module")
def sessions() -> Iterator[str]:
    """For Ray's temporary folders; its sockets' paths may have 107 characters, which pytest's own folders exceed."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, sessions: str) -> Iterator[Environment]:
    """Of a person whose jobs go to that cluster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDRAY_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        # A job takes `python` from the path of the node that it runs on.
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        patch.delenv("RAY_ADDRESS", raising=False)
        prepare_environment()
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": DASHBOARD, "dashboard_host": "127.0.0.1"}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for number in range(3):
                # As on machines of their own: each node unpacks uploaded code anew, over what lies there.
                cluster.add_node(num_cpus=1, temp_dir=f"{sessions}/{number}")
            yield {**os.environ, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{DASHBOARD}"}
        finally:
            cluster.shutdown()


def submit(environment: Environment, *words: str) -> dict[str, Any]:
    """Submit a job from the checkout, wait for its end, and read its last line."""
    found = _ray(environment, "submit", "--working-dir", ".", "--", "python", *words)
    assert found.returncode == 0, found.stdout + found.stderr
    result: dict[str, Any] = json.loads([line for line in found.stdout.splitlines() if line.startswith("{")][-1])
    return result


def _ray(environment: Environment, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ray", "job", *words],
        env=environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )


def test_train_tune_predict_and_serve(environment: Environment, tmp_path: Path) -> None:
    images = draw_folder(tmp_path / "images", cases=49)
    file = tmp_path / "tiny.yaml"
    train = {"epochs": 4, "batch_size": 9, "precision": "fp32"}
    file.write_text(to_yaml(tiny(images, train=train)), encoding="utf-8")

    trained = submit(environment, "jobs/train.py", str(file), "name=spread", "scaling.workers=3")
    assert trained["model"] == "spread/1"
    finished = Path(environment["MEDRAY_HOME"]) / "runs" / trained["run"] / CHECKPOINTS / FINISHED
    assert len(list(finished.glob("rank-*.json"))) == 3, "a worker on each node, none on the head"

    space = "tune.space={optimizer.lr: {loguniform: [0.001, 0.1]}}"
    tuned = submit(environment, "jobs/tune.py", str(file), "name=search", "tune.trials=3", space)
    assert (tuned["trials"], tuned["model"]) == (3, "search/1")

    out = tmp_path / "predicted"
    predicted = submit(environment, "jobs/predict.py", str(images), "--model", "spread@champion", "--out", str(out))
    assert (predicted["images"], predicted["refused"]) == (49, 0)

    words = ["jobs/serve.py", "--model", "spread@champion", f"serve.port={PORT}"]
    started = _ray(
        environment, "submit", "--no-wait", "--submission-id", "served", "--working-dir", ".", "--", "python", *words
    )
    assert started.returncode == 0, started.stderr
    try:
        image = next(images.rglob("*.png"))
        answer = _ask(environment, image)
        assert answer["model"]["name"] == "spread"
    finally:
        stopped = _ray(environment, "stop", "served")
    assert stopped.returncode == 0, stopped.stderr


def _ask(environment: Environment, image: Path, timeout_s: float = 120) -> dict[str, Any]:
    """The service's answer, as soon as there is one."""
    deadline = time.monotonic() + timeout_s
    url = f"http://127.0.0.1:{PORT}/v1/predict"
    while True:
        found = subprocess.run(["curl", "-s", "-F", f"file=@{image}", url], capture_output=True, text=True, check=False)
        if "probability" in found.stdout:
            answer: dict[str, Any] = json.loads(found.stdout)
            return answer
        assert time.monotonic() < deadline, found.stdout + _ray(environment, "logs", "served").stdout[-3000:]
        time.sleep(1)
