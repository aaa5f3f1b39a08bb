"""The verb that hands a model to other programs: export."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny
from cyclopts import App

from medray import cli_export
from medray.bundle import save
from medray.console import answer
from medray.imaging.writer import write_png
from medray.inference import export
from medray.networks.build import build
from medray.types import NetworkIO

app = App(name="medray")
cli_export.register(app)


def run(*arguments: object) -> tuple[int, dict[str, Any]]:
    """Exit code and the last line of stdout."""
    stdout = io.StringIO()
    code = answer(app, ["export", *map(str, arguments)], stdout)
    return code, json.loads(stdout.getvalue().splitlines()[-1]) if stdout.getvalue() else {}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    experiment = tiny(Path("data"))
    network = build(experiment.network, NetworkIO(1, (16, 16), 1), seed=4).network
    entry = {"channels": 1, "size": [16, 16], "axes": 2, "dense": False}
    card = {"classes": ["a", "b"], "multilabel": False, "outputs": 1, "input": entry}
    return save(tmp_path / "bundle", experiment, network.state_dict(), card).folder


def test_it_writes_a_file_and_says_how_far_it_is_off(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [tmp_path / f"{index}.png" for index in range(2)]
    for file in images:
        write_png(file, np.zeros((16, 16), np.uint8))
    out = tmp_path / "made" / "model.pt2"
    code, result = run("--bundle", bundle, "--to", "torch", "--out", out, "--samples", *images)
    assert (code, result["model"], len(result["parity"]["samples"])) == (0, "bundle", 2)
    assert result["parity"]["largest"] < 1e-5
    assert "2 samples" in capsys.readouterr().err
    assert torch.export.load(out).module()(torch.zeros(5, 1, 16, 16)).shape == (5, 2)
    assert {file.name for file in out.parent.iterdir()} == {"model.pt2", "model.pt2.export.json"}


def test_its_failures_have_codes_and_leave_nothing(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ("--bundle", bundle, "--to")
    out = tmp_path / "model.pt2"
    assert run(*start, "torch", "--out", out, "--samples", tmp_path / "nowhere.png")[0] == 2
    assert "nowhere.png' does not exist" in capsys.readouterr().err
    assert run(*start, "monai", "--out", tmp_path / "m", "--no-dynamic-batch")[0] == 2
    assert run(*start, "monai", "--out", tmp_path / "m")[0] == 2
    assert "families that are" in capsys.readouterr().err
    assert run(*start, "torch", "--out", out, "--model", "a@b")[0] == 2
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    assert run(*start, "torch", "--out", out, "--samples", bad)[0] == 3
    right = export.Probabilities.forward
    monkeypatch.setattr(export.Probabilities, "forward", lambda self, image: right(self, image + 1))
    assert run(*start, "torch", "--out", out)[0] == 1
    assert "nothing was written" in capsys.readouterr().err
    assert {file.name for file in tmp_path.iterdir()} == {"bundle", "bad.png"}
