"""`medray plan`: one command from images to an experiment that loads, and what is wrong on a line."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from cyclopts import App

from medray import cli_plan
from medray.config import load
from medray.console import PARTIAL, USAGE, answer


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def run(*arguments: str) -> tuple[int, dict[str, Any]]:
    app = App(name="medray")
    cli_plan.register(app)
    stdout = io.StringIO()
    code = answer(app, ["plan", *arguments], stdout)
    return code, json.loads(stdout.getvalue()) if stdout.getvalue() else {}


def test_from_images_to_an_experiment(
    image_folder: Path, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real steps are timed, and the training ends within the minutes; a picture that cannot be read is said."""
    data = tmp_path / "stripes"
    shutil.copytree(image_folder, data)
    (data / "class0" / "broken.png").write_bytes(b"nothing")
    code, result = run(str(data), "name=lines", "--minutes", "0.5", "--memory", "2", "--fingerprint", "cases.json")
    said = capsys.readouterr().err
    assert code == PARTIAL
    assert (result["cases"], result["left_out"]) == (40, 1)
    assert result["experiment"] == "plan-lines.yaml"
    assert result["next"] == "medray train plan-lines.yaml"
    assert 0 < result["minutes"] <= 0.5
    experiment = load(here / "plan-lines.yaml")
    assert experiment.dataset.model_dump(exclude_unset=True)["path"] == data
    assert experiment.train.epochs == result["epochs"]
    assert experiment.train.max_minutes == 0.5
    assert re.search(r"left out: \S*broken\S* unsupported_type: the content is of no known type", said)
    assert len(json.loads((here / "cases.json").read_text())["cases"]) == 40


def test_mistakes_are_a_line(image_folder: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("nowhere")[0] == USAGE
    assert run(str(image_folder), "--minutes", "-3")[0] == USAGE
    assert run(str(image_folder), "network.name=vit")[0] == USAGE
    said = capsys.readouterr().err
    assert "'nowhere' does not exist" in said
    assert "--minutes: -3 is not above 0" in said
    assert "'network.name=vit': a plan decides this" in said
    assert not list(here.iterdir())
