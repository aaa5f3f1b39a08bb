"""Where a run is recorded, under which name its model is kept, and which device answers."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny
from mlflow.tracking import MlflowClient
from test_bundle import make
from torch import nn

from medray import cli
from medray.config import to_yaml
from medray.console import answer

pytestmark = pytest.mark.usefixtures("database")


def run(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and the last line of stdout."""
    stdout = io.StringIO()
    code = answer(cli.app, list(arguments), stdout)
    return code, json.loads(stdout.getvalue().splitlines()[-1]) if code in (0, 5) else {}


@pytest.fixture
def experiment(tmp_path: Path, image_folder: Path) -> str:
    file = tmp_path / "tiny.yaml"
    file.write_text(to_yaml(tiny(image_folder, train={"epochs": 1, "batch_size": 8})), encoding="utf-8")
    return str(file)


@pytest.fixture
def image(image_folder: Path) -> str:
    return str(next(image_folder.rglob("*.png")))


def other_server(empty_database: Path, file: Path) -> str:
    """The URI of another embedded MLflow than the one in medray's home."""
    file.parent.mkdir(exist_ok=True)
    return f"sqlite:///{shutil.copy(empty_database, file)}"


def runs(uri: str, name: str = "tiny") -> list[str]:
    """Ids of an experiment's runs on a server."""
    mlflow = MlflowClient(uri)
    found = mlflow.get_experiment_by_name(name)
    return [] if found is None else [item.info.run_id for item in mlflow.search_runs([found.experiment_id])]


def models(uri: str) -> list[str]:
    return [model.name for model in MlflowClient(uri, registry_uri=uri).search_registered_models()]


def test_tracking_uri_and_model_are_where_and_under_which_name_it_is_kept(
    experiment: str, image: str, tmp_path: Path, empty_database: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run and champion are on the other server alone; commands that are told of it find them there."""
    here, there = f"sqlite:///{home / 'mlflow.db'}", other_server(empty_database, tmp_path / "there" / "mlflow.db")
    code, result = run("train", experiment, f"tracking.uri={there}", "tracking.model=lungs")
    assert (code, result["model"], result["champion"]) == (0, "lungs/1", True)
    assert (runs(there), models(there)) == ([result["run_id"]], ["lungs"])
    assert (runs(here), models(here)) == ([], [])

    assert run("predict", image)[0] == 2
    assert run("predict", image, "--tracking", there)[1]["model"] == "lungs/1"
    assert run("promote", "lungs@1", "--reason", "so", "--tracking", there)[0] == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", there)
    assert run("predict", image, "--model", "lungs@champion")[1]["model"] == "lungs/1"
    assert run("predict", image, "--tracking", here)[0] == 2, "the option goes before the environment"


def test_mlflow_tracking_uri_is_the_server_where_the_experiment_names_none(
    experiment: str, tmp_path: Path, empty_database: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And without register_model a run is recorded whole, but no model is in the registry."""
    here, there = f"sqlite:///{home / 'mlflow.db'}", other_server(empty_database, tmp_path / "there" / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", there)
    code, result = run("train", experiment, "tracking.register_model=false")
    assert (code, result["model"], result["champion"]) == (0, None, False)
    assert (Path(result["bundle"]) / "weights.safetensors").is_file()
    assert (runs(here), runs(there)) == ([], [result["run_id"]])
    finished = MlflowClient(there).get_run(result["run_id"])
    assert finished.info.status == "FINISHED"
    assert "best/val/auroc" in finished.data.metrics
    assert models(there) == []


@pytest.fixture
def bundle(tmp_path: Path, image_folder: Path) -> str:
    return str(make(tmp_path / "bundle", image_folder).folder)


def test_predict_answers_on_the_device_that_it_is_told(
    bundle: str, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    move = nn.Module.to

    def to(network: nn.Module, device: torch.device) -> nn.Module:
        asked.append(str(device))
        return move(network, device)

    monkeypatch.setattr(nn.Module, "to", to)
    for device in ("cpu", "cpu:0"):
        code, found = run("predict", image, "--bundle", bundle, "--device", device)
        assert (code, sum(found["scores"].values())) == (0, pytest.approx(1))
    assert asked == ["cpu", "cpu:0"]


@pytest.mark.parametrize(
    "device",
    ["cuda:99", "gpu"],
)
def test_a_device_that_is_not_there_is_one_clear_message(
    bundle: str, image: str, device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("predict", image, "--bundle", bundle, "--device", device)[0] == 2
    assert device in capsys.readouterr().err
