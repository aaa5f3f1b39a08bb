"""MLflow whose artifacts lie in an object store: a model gets there, and comes back from there alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import tiny
from object_store import names, served

from medray.bundle import load
from medray.tracking.registry import fetch
from medray.tracking.run import client
from medray.training.train import train


def test_a_model_goes_there_and_comes_back(image_folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(monkeypatch) as url:
        client(None).create_experiment("tiny", artifact_location=f"{url}/mlflow")
        result = train(tiny(image_folder))
        assert (result["tracked"], result["model"], result["champion"]) == (True, "tiny/1", True)
        assert any(name.startswith(f"mlflow/{result['run_id']}/artifacts/") for name in names())
        assert any(name.endswith("weights.safetensors") for name in names())
        shutil.rmtree(home / "runs")
        shutil.rmtree(home / "models", ignore_errors=True)
        folder, reference = fetch(client(None), "tiny@champion")
        assert reference == "tiny/1"
        assert load(folder).experiment == tiny(image_folder)
