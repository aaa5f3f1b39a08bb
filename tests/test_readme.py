"""Every command in README is run: here, or by the test that is named beside it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY, draw_folder, draw_volumes

from medray.config import PACKAGE, load
from medray.imaging.writer import write_png
from medray.tuning.parse import parse

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
SOMEWHERE_ELSE = {
    "ray start --head": "jobs/test_on_ray.py::head",
    "export RAY_AUTH_MODE=token": "jobs/test_on_ray.py::head",
    "ray job submit -- python jobs/train.py": "jobs/test_on_ray.py::test_submitted_jobs",
    "ray job submit --working-dir . -- python jobs/train.py": "jobs/test_on_ray.py::test_submitted_jobs",
    "pip install uv && uv run pytest": "this run",
    "uv run jobs/serve.py --follow champion": "test_benchmarks_lossless.py::test_nothing_is_lost",
    "uv run jobs/serve.py --model chest@champion --model liver@2": "jobs/test_serving_commands.py::test_several_models",
    "uv run jobs/serve.py --model chest@champion --canary chest@candidate --share 0.1": (
        "jobs/test_serving_commands.py::test_a_canary_answers_for_its_share"
    ),
    "uv run jobs/serve.py --build serve.yaml": "jobs/test_serving_commands.py::test_a_config_for_a_cluster",
    "medray key add ward7 --role user": "jobs/test_serving_commands.py::test_a_config_for_a_cluster",
    'medray rollback chest --reason "worse on portable films"': "jobs/test_serving_commands.py::test_a_config_for",
    "medray audit verify": "jobs/test_serving_commands.py::test_a_config_for_a_cluster",
    'curl -F file=@scan.nii.gz "http://127.0.0.1:8000/v1/predict?model=liver"': (
        "jobs/test_serving_commands.py::test_several_models"
    ),
    'curl -F file=@scan.nii.gz -o mask.nii.gz "http://127.0.0.1:8000/v1/predict?output=mask"': (
        "jobs/test_serving_commands.py::test_several_models"
    ),
    'curl -H "Prefer: respond-async" -F file=@series.zip http://127.0.0.1:8000/v1/predict': (
        "jobs/test_serving_commands.py::test_several_models"
    ),
    "curl http://127.0.0.1:8000/metrics": "jobs/test_serving_commands.py::test_several_models",
    "uv run pytest -m slow": "this run",
    "uv run jobs/train.py my.yaml": "jobs/test_interrupted_runs.py::test_the_same_command_goes_on",
    "uv run jobs/train.py my.yaml scaling.workers=[2,8]": (
        "chaos/test_chaos_of_workers.py::test_a_lost_node_is_replaced_and_without_another_the_run_shrinks"
    ),
    "uv run medray sync": "jobs/test_sync_verb.py::test_all_that_is_missing_is_delivered_once",
    "uv run jobs/benchmark.py faults": "jobs/test_bench_verb.py::test_the_job_is_there",
}
HERE = [
    "pip install uv && uv run jobs/train.py",
    "uv run jobs/predict.py some_image.png",
    "uv run jobs/tune.py",
    "uv run jobs/serve.py",
    "curl -F file=@some_image.png http://127.0.0.1:8000/v1/predict",
    "uv run jobs/train.py my.yaml dataset.path=/data/chest network.name=resnet network.depth=50 train.epochs=50",
    "uv run jobs/check.py /data/chest",
    "uv run jobs/deid.py /data/export /data/clean",
    "uv run jobs/erase.py --subject PAT042",
    "uv run jobs/plan.py /data/liver",
    "uv run jobs/train.py plan-liver.yaml",
    "uv run jobs/predict.py /data/new --out predicted",
    "uv run jobs/evaluate.py --out report",
    "uv run jobs/explain.py some_image.png --out heat",
    "uv run jobs/features.py --out features",
    "uv run jobs/export.py --to onnx --out model.onnx",
    "uv run jobs/tune.py my.yaml tune.trials=40",
    "uv run medray train ~/medray/runs/STUDY/best.yaml",
]
INLINE = [
    "uv run medray config show my.yaml",
    "uv run medray config list",
    "uv run medray config schema",
    'medray promote chest@candidate --reason "..."',
    "uv run jobs/train.py --resume RUN",
    "uv run mlflow ui --backend-store-uri sqlite:///$HOME/medray/mlflow.db",
    "ray get-auth-token --generate",
    "medray check DATA --manifest FILE",
]


def commands() -> list[str]:
    """The lines of README's bash blocks without their comments."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.S)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def test_every_command_has_a_test() -> None:
    assert sorted(set(commands())) == sorted({*SOMEWHERE_ELSE, *HERE})
    for name in SOMEWHERE_ELSE.values():
        file, _, function = name.partition("::")
        if function:
            assert f"def {function}" in (REPOSITORY / "tests" / file).read_text(encoding="utf-8")
    inline = [code for code in re.findall(r"`([^`\n]+)`", README) if re.match(r"(uv run|medray \w+ |ray get)", code)]
    assert sorted(set(inline)) == sorted(INLINE)


def test_the_map_names_every_file() -> None:
    files = [file for file in PACKAGE.rglob("*.py") if file.stem != "__init__" and file.parent.name != "networks"]
    assert not [file.name for file in files if file.name not in README]
    from medray.config import plugins

    assert not [name for name in plugins("networks") if name not in README]


def test_my_yaml_is_an_experiment(tmp_path: Path) -> None:
    assert load(my_yaml(tmp_path)).name == "chest"


def my_yaml(folder: Path) -> Path:
    """The experiment that README shows."""
    (folder / "my.yaml").write_text(yaml_blocks()[0], encoding="utf-8")
    return folder / "my.yaml"


def yaml_blocks() -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", README, re.S)


def test_the_search_that_readme_shows_can_be_run(tmp_path: Path) -> None:
    file = my_yaml(tmp_path)
    file.write_text(file.read_text(encoding="utf-8") + yaml_blocks()[1], encoding="utf-8")
    experiment = load(file)
    assert list(parse(experiment)) == ["optimizer.lr", "train.batch_size", "network"]
    assert experiment.tune.trials == 40


def run(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command of README, with this environment's programs in the place of `uv run`'s."""
    line = line.replace("pip install uv && ", "")
    line = line.replace("uv run jobs/", f"{sys.executable} {REPOSITORY}/jobs/")
    line = re.sub(r"(uv run )?(medray|mlflow|ray) ", rf"{Path(sys.executable).parent}/\2 ", line)
    return subprocess.run(["sh", "-c", line], cwd=cwd, capture_output=True, text=True, check=False, timeout=500)


def last(found: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert found.returncode == 0, found.stderr
    result: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return result


@pytest.mark.slow
def test_five_minutes(tmp_path: Path, home: Path) -> None:
    """Train, predict, tune, serve and ask, exactly as README says it; the model is good and the phantom is hard."""
    trained = last(run(HERE[0], tmp_path))
    assert trained["metrics"]["test/auroc"] >= 0.95
    assert trained["model"] == "phantom/1"
    shutil.copy(next((home / "phantoms").rglob("*.png")), tmp_path / "some_image.png")
    assert last(run(HERE[1], tmp_path))["model"] == "phantom/1"
    tuned = last(run(HERE[2], tmp_path))
    assert tuned["trials"] == 12
    assert tuned["model"] == "phantom/2"
    with subprocess.Popen(
        [sys.executable, REPOSITORY / "jobs" / "serve.py"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as service:
        try:
            deadline = time.monotonic() + 120
            while "probability" not in (answer := run(HERE[4].replace("curl", "curl -s"), tmp_path).stdout):
                assert time.monotonic() < deadline, answer
                time.sleep(1)
            assert json.loads(answer)["model"]["name"] == "phantom"
        finally:
            service.terminate()


@pytest.mark.slow
def test_your_own_images(tmp_path: Path, home: Path) -> None:
    """my.yaml on a folder of images; one epoch stands for fifty, and small pictures for large ones."""
    my_yaml(tmp_path)
    images = draw_folder(tmp_path / "chest", cases=30, size=32)
    line = HERE[5].replace("/data/chest", str(images)).replace("train.epochs=50", "train.epochs=1")
    trained = last(run(f"{line} 'preprocess.size=[32, 32]'", tmp_path))
    assert trained["model"] == "chest/1"
    assert "depth: 50" in (home / "runs" / trained["run"] / "experiment.yaml").read_text()
    assert last(run(INLINE[3], tmp_path))["model"] == "chest/1"
    line = INLINE[4].replace("RUN", trained["run"])
    assert last(run(line, tmp_path))["run_id"] == trained["run_id"]
    small = f"tune.trials=2 tune.concurrent=1 train.epochs=1 dataset.path={images} 'preprocess.size=[32, 32]'"
    tuned = last(run(HERE[16].replace("tune.trials=40", small), tmp_path))
    assert (tuned["trials"], tuned["model"]) == (2, "chest/2")
    again = last(run(HERE[17].replace("~/medray/runs/STUDY", str(home / "runs" / tuned["run"])), tmp_path))
    assert again["metrics"]["val/auroc"] == pytest.approx(tuned["metrics"]["val/auroc"], abs=1e-3)


def test_your_data(tmp_path: Path) -> None:
    """Checked, listed, de-identified and erased; the images of the folder are noise, each of its own."""
    images = tmp_path / "chest"
    for number in range(40):
        pixels = np.random.default_rng(number).integers(0, 255, (24, 24), np.uint8)
        (images / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        write_png(images / f"class{number % 2}" / f"{number}.png", pixels)
    checked = last(run(HERE[6].replace("/data", str(tmp_path)), tmp_path))
    assert checked["ready"]
    assert (tmp_path / "check-chest" / "check.html").is_file()
    line = INLINE[-1].replace("DATA", str(images)).replace("FILE", "MANIFEST.sha256")
    assert last(run(line, tmp_path))["ready"]
    assert len((tmp_path / "MANIFEST.sha256").read_text().splitlines()) == 40
    assert last(run(line.replace("--manifest ", "dataset.manifest="), tmp_path))["ready"]
    cleaned = last(run(HERE[7].replace("/data/export", str(images)).replace("/data", str(tmp_path)), tmp_path))
    assert (cleaned["written"], cleaned["refused"]) == (40, {})
    assert not last(run(HERE[8], tmp_path))["found"]


@pytest.mark.slow
def test_segmentation(tmp_path: Path, home: Path) -> None:
    """Plan, train, predict and evaluate balls in small volumes; a few steps stand for the whole time."""
    draw_volumes(tmp_path / "liver", cases=14)
    line = HERE[9].replace("/data", str(tmp_path))
    assert last(run(f"{line} dataset.name=decathlon", tmp_path))["task"] == "segmentation"
    few = "train.epochs=2 train.steps_per_epoch=3"
    trained = last(run(f"{HERE[10]} {few}", tmp_path))
    assert trained["model"] == "liver/1"
    assert "val/dice" in trained["metrics"]
    assert (home / "runs" / trained["run"] / "shared" / "figures" / "dice.png").is_file()
    (tmp_path / "new").mkdir()
    for file in sorted((tmp_path / "liver" / "images").iterdir())[:3]:
        shutil.copy(file, tmp_path / "new")
    predicted = last(run(HERE[11].replace("/data", str(tmp_path)), tmp_path))
    assert (predicted["images"], predicted["refused"]) == (3, 0)
    assert len(list((tmp_path / "predicted").rglob("mask.nii.gz"))) == 3
    evaluated = last(run(HERE[12], tmp_path))
    assert evaluated["refused"] == 0
    assert (tmp_path / "report" / "report.html").is_file()


@pytest.mark.slow
def test_inside_a_model(tmp_path: Path) -> None:
    """Explained, its features taken, exported."""
    images = draw_folder(tmp_path / "chest", cases=60, size=32)
    settings = f"name=chest dataset.name=folder dataset.path={images} network.name=plain train.epochs=3"
    last(run(f"uv run jobs/train.py {settings} train.batch_size=8 'preprocess.size=[32, 32]'", tmp_path))
    shutil.copy(next(images.rglob("*.png")), tmp_path / "some_image.png")
    last(run(HERE[13], tmp_path))
    assert list((tmp_path / "heat").glob("*.png"))
    taken = last(run(HERE[14], tmp_path))
    assert (tmp_path / "features" / "features.parquet").is_file()
    assert taken["refused"] == 0
    exported = last(run(HERE[15], tmp_path))
    assert exported["parity"]["largest"] < 1e-4
    assert (tmp_path / "model.onnx").is_file()


@pytest.mark.parametrize("line", INLINE[:3])
def test_config_commands(line: str, tmp_path: Path) -> None:
    my_yaml(tmp_path)
    found = run(line, tmp_path)
    assert found.returncode == 0, found.stderr
    assert "resnet" in found.stdout or "network" in found.stdout


@pytest.mark.slow
def test_mlflow_ui_shows_the_runs(home: Path) -> None:
    from medray.tracking.run import client, start

    start(client(None), "shown", "run").finish("FINISHED")
    line = INLINE[5].replace("$HOME/medray", str(home)) + " --port 5017"
    program = Path(sys.executable).parent / "mlflow"
    arguments = line.replace("uv run mlflow ", "").split()
    with subprocess.Popen(
        [program, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as server:
        try:
            url = "http://127.0.0.1:5017/api/2.0/mlflow/experiments/get-by-name?experiment_name=shown"
            deadline = time.monotonic() + 90
            ask = ["curl", "-s", url]
            while '"shown"' not in subprocess.run(ask, capture_output=True, text=True, check=False).stdout:
                assert time.monotonic() < deadline
                time.sleep(1)
        finally:
            subprocess.run(["pkill", "-TERM", "-s", str(server.pid)], check=False)


@pytest.mark.slow
def test_a_token_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    found = run(INLINE[6], tmp_path)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / ".ray" / "auth_token").is_file()
