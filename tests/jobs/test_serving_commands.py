"""docs/serving.md, line by line, with small models by its names."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml
from conftest import REPOSITORY
from job_runner import descendants, wait_for, wait_until_gone
from prediction_phantom import classifier, segmenter

from medray.serving.audit import AuditLog
from medray.tracking import registry
from medray.tracking.run import client, start

STANDING = registry.Standing("val/auroc", 0.9, 1, "data", "split")
PAGE = (REPOSITORY / "docs" / "serving.md").read_text(encoding="utf-8")
LINES = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S)
    for line in block.splitlines()
]
PORT = 8021


def run(line: str, cwd: Path, code: int = 0) -> str:
    """A line of the page, with this environment's programs."""
    line = line.replace("uv run jobs/", f"{sys.executable} {REPOSITORY}/jobs/").replace(":8000", f":{PORT}")
    line = re.sub(r"^medray ", f"{Path(sys.executable).parent}/medray ", line)
    found = subprocess.run(["sh", "-c", line], cwd=cwd, capture_output=True, text=True, check=False, timeout=200)
    assert found.returncode == code, found.stderr
    return found.stdout


def line_with(text: str) -> str:
    (found,) = [line for line in LINES if text in line]
    return found


@pytest.fixture
def models(database: Path, tmp_path: Path) -> Path:  # noqa: ARG001
    """chest: two versions; liver: two versions; the folder of a volume and a series."""
    mlflow = client(None)
    for number in (1, 2):
        record = start(mlflow, "exp", "run")
        registry.register(record, "chest", classifier(tmp_path / str(number) / "chest", number).folder, STANDING)
        record = start(mlflow, "exp", "run")
        registry.register(record, "liver", segmenter(tmp_path / str(number) / "liver", 3, number).folder, STANDING)
        registry.promote(mlflow, "chest", str(number), "a reason")
    mlflow.set_registered_model_alias("chest", "candidate", "1")
    voxels = np.random.default_rng(0).integers(-900, 2900, (16, 12, 10)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 2.0, 1.0])), tmp_path / "scan.nii.gz")
    return tmp_path


@contextmanager
def served(line: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    said = folder / "said"
    words = line.replace("uv run jobs/serve.py", str(REPOSITORY / "jobs" / "serve.py")).split()
    with said.open("w") as stderr:
        process = subprocess.Popen([sys.executable, *words, f"serve.port={PORT}"], stderr=stderr, text=True)
    try:
        wait_for(said, "try: curl", process)
        yield process
    finally:
        family = descendants(process.pid)
        process.terminate()
        process.wait(60)
        wait_until_gone(family)


@pytest.mark.slow
def test_a_config_for_a_cluster_a_key_a_rollback_and_the_record(models: Path, home: Path) -> None:
    run(line_with("--build"), models)
    plain = yaml.safe_load((models / "serve.yaml").read_text())
    assert plain["applications"][0]["args"]["models"][0]["model"] == "chest@2"
    key = json.loads(run(line_with("key add"), models))
    assert key["key"].startswith("mk_")
    assert json.loads(run(line_with("rollback"), models))["model"] == "chest/1"
    AuditLog(home / "audit", 400).close()
    run(line_with("audit verify"), models)


@pytest.mark.slow
def test_several_models_and_what_is_asked_of_them(models: Path) -> None:
    with served(line_with("liver@2"), models):
        answer = json.loads(run(line_with("?model=liver"), models))
        assert answer["model"]["version"] == "2"
        assert {found["unit"] for found in answer["structures"]} == {"mL"}
        run(line_with("output=mask").replace("predict?", "predict?model=liver&"), models)
        assert nib.load(models / "mask.nii.gz").shape == (16, 12, 10)
        (models / "series.zip").write_bytes((models / "scan.nii.gz").read_bytes())
        line = line_with("respond-async").replace("/predict", "'/predict?model=liver'")
        assert json.loads(run(line, models))["state"] in ("pending", "running", "completed")
        assert "medray_requests_total" in run(line_with("/metrics"), models)
        (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
        code = (
            code.replace(":8000", f":{PORT}").replace(', key="mk_..."', "").replace('nii.gz", ', 'nii.gz", "liver", ')
        )
        subprocess.run([sys.executable, "-c", code], cwd=models, check=True, timeout=100)


@pytest.mark.slow
def test_a_canary_answers_for_its_share(models: Path) -> None:
    from medray.imaging.writer import png_bytes

    with served(line_with("--canary"), models):
        versions: dict[str, Any] = {}
        for number in range(100):
            image = np.random.default_rng(number).integers(0, 255, (16, 16)).astype(np.uint8)
            (models / "one.png").write_bytes(png_bytes(image))
            answer = json.loads(run("curl -s -F file=@one.png http://127.0.0.1:8000/v1/predict", models))
            versions[str(number)] = answer["model"]["version"]
        assert 1 <= list(versions.values()).count("1") <= 30
        said = json.loads(run("curl -s http://127.0.0.1:8000/v1/models", models))["models"]
        assert [(one["version"], one["role"]) for one in said] == [("2", "serving"), ("1", "canary")]


@pytest.mark.slow
def test_a_config_for_a_cluster_is_deployed(models: Path) -> None:
    """`serve deploy` on a cluster of its own, as an operator does it."""
    run(f"{line_with('--build')} serve.port={PORT}", models)
    bin_folder = Path(sys.executable).parent
    ports = [
        "--port=6401",
        "--dashboard-port=8301",
        "--ray-client-server-port=8302",
        "--dashboard-agent-listen-port=8303",
    ]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(REPOSITORY)}
    head = subprocess.Popen(
        [bin_folder / "ray", "start", "--head", "--block", "--num-cpus=2", "--include-dashboard=true", *ports],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 240
        deploy = [bin_folder / "serve", "deploy", "-a", "http://127.0.0.1:8301", models / "serve.yaml"]
        while subprocess.run(deploy, env=environment, capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline
            time.sleep(2)
        ask = ["curl", "-s", f"http://127.0.0.1:{PORT}/v1/health"]
        while '"ready"' not in (said := subprocess.run(ask, capture_output=True, text=True, check=False).stdout):
            assert time.monotonic() < deadline, said
            time.sleep(1)
        assert "chest/2" in said
    finally:
        family = descendants(head.pid)
        head.terminate()
        head.wait(60)
        wait_until_gone(family)
