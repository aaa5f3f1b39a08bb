"""`medray check`: exit codes, where the report goes, what is said, what comes next."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY, draw_folder, tiny

from medray import cli
from medray.config import ConfigError, to_yaml
from medray.console import answer
from medray.imaging.writer import write_png
from medray.pipeline.examine import Meter, experiment_of, report_folder


def draw_set(root: Path, cases: int = 40) -> Path:
    """PNGs that are nothing like each other, in two class folders."""
    for number in range(cases):
        draw = np.random.default_rng(number)
        image = draw.uniform(0, 250, (8, 8)).repeat(3, 0).repeat(3, 1).astype(np.uint8)
        (root / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        write_png(root / f"class{number % 2}/{number:02d}.png", image)
    return root


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def run(*arguments: str) -> tuple[int, dict[str, Any]]:
    stdout = io.StringIO()
    code = answer(cli.app, ["check", *arguments], stdout)
    lines = stdout.getvalue().splitlines()
    return code, json.loads(lines[-1]) if lines else {}


def table(result: dict[str, Any]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(Path(result["csv"]).read_text(encoding="utf-8"))))


def test_a_clean_set(tmp_path: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = draw_set(tmp_path / "chest")
    code, result = run(str(data), "dataset.name=folder")
    said = capsys.readouterr().err
    assert code == 0
    assert result["ready"]
    assert (result["cases"], result["readable"], result["errors"], result["warnings"]) == (40, 40, 0, 0)
    assert result["csv"] == str(here / "check-chest/check.csv")
    assert len(table(result)) == 40
    assert Path(result["html"]).read_text().startswith("<!DOCTYPE html>")
    assert "Ready to train" in said
    assert "note: no subject column" in said
    assert f"next:\n  {result['next']}\n" in said


@pytest.mark.usefixtures("database", "here")
def test_the_next_command_runs_as_it_is_printed(tmp_path: Path) -> None:
    """On its own grid, under its own name."""
    program, *words = shlex.split(run(str(draw_set(tmp_path / "chest")))[1]["next"])
    assert program == "medray"
    stdout = io.StringIO()
    assert answer(cli.app, [*words, "train.epochs=1", "scaling.workers=1"], stdout) == 0
    assert json.loads(stdout.getvalue().splitlines()[-1])["model"] == "chest/1"


def test_a_set_that_spoils_a_training(tmp_path: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = draw_set(tmp_path / "<b>chest")
    (data / "class0/00.png").write_bytes(b"nothing")
    code, result = run(str(data), "dataset.name=folder", "--out", "report")
    said = capsys.readouterr().err
    assert code == 3
    assert not result["ready"]
    assert result["findings"] == {"unsupported_type": 1}
    assert "error    unsupported_type (1 case: class0/00.png)" in said
    assert "mend:" in said
    assert "next, when that is mended:\n  medray check" in said
    assert result["next"].startswith("medray check")
    assert Path(result["html"]) == here / "report/check.html"
    assert "<b>" not in Path(result["html"]).read_text().replace("<b>Mend:</b>", "")
    code, result = run(str(data), "dataset.name=folder", "dataset.max_bad_fraction=0.1")
    assert (code, result["warnings"]) == (0, 1)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("place", ["nowhere/MANIFEST", "here/MANIFEST"])
def test_a_manifest_that_no_training_could_verify_is_not_written(
    tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a folder that does not exist, or not above the data."""
    data = draw_set(tmp_path / "chest")
    stdout = io.StringIO()
    assert answer(cli.app, ["check", str(data), "--manifest", str(tmp_path / place)], stdout) == 2
    assert "--manifest:" in capsys.readouterr().err
    assert not (tmp_path / place).exists()


def test_an_experiment(tmp_path: Path, here: Path) -> None:
    data = draw_set(tmp_path / "chest")
    file = here / "tiny.yaml"
    file.write_text(to_yaml(tiny(data)))
    code, result = run(str(file), "split.val=0.3")
    assert code == 0
    assert result["next"] == f"medray train {file} split.val=0.3"
    splits = [row["split"] for row in table(result)]
    assert splits.count("val") == 12


@pytest.mark.usefixtures("here")
def test_mistakes_are_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = draw_set(tmp_path / "chest", 4)
    assert run("/nowhere/chest")[0] == 2
    assert "/nowhere/chest" in capsys.readouterr().err
    assert run(str(data), "dataset.name=folder", "--out", str(data / "report"))[0] == 2
    assert "inside the data" in capsys.readouterr().err
    assert not (data / "report").exists()
    assert run(str(data), "dataset.name=folder", "split.vall=0.3")[0] == 2
    assert "did you mean 'val'" in capsys.readouterr().err
    (data / "empty").mkdir()
    assert run(str(data), "dataset.name=folder")[0] == 3
    assert "empty_class" in capsys.readouterr().err


def test_the_report_is_never_inside_the_data(
    tmp_path: Path, here: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = draw_set(tmp_path / "chest", 2)
    assert report_folder(data, "x", None) == here / "check-chest"
    assert report_folder(None, "phantom", None) == here / "check-phantom"
    table = data / "cases.csv"
    table.touch()
    assert report_folder(table, "x", None) == here / "check-cases"
    monkeypatch.chdir(data)
    assert report_folder(data, "x", None) == home / "checks/check-chest"
    assert report_folder(Path(), "x", None) == home / "checks/check-chest"
    (here / "link").symlink_to(data)
    with pytest.raises(ConfigError, match="inside the data"):
        report_folder(data, "x", here / "link/report")


def test_a_path_means_the_data_alone(tmp_path: Path) -> None:
    data = draw_set(tmp_path / "odd: [name] #1", 2)
    found = experiment_of(str(data), ["dataset.name=folder"])
    assert getattr(found.dataset, "path", None) == data
    assert found.preprocess.size is None, "not the default experiment's"
    assert experiment_of("phantom", []).preprocess.size == (64, 64)


def test_files_with_odd_names(tmp_path: Path, here: Path) -> None:
    data = draw_folder(tmp_path / "set", cases=12)
    for number, name in enumerate((b"\xff\xfe.png", b"a\nb.png", b"<script>.png")):
        (data / f"class0/case{2 * number:03d}.png").rename(data / "class0" / os.fsdecode(name))
    run(str(data), "dataset.name=folder")
    html = (here / "check-set/check.html").read_text()
    assert "<script>" not in html
    assert "\\udcff" in (here / "check-set/check.csv").read_text()


def test_the_meter_says_rate_and_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    meter = Meter()
    for second in range(1, 25):
        now[0] = float(second)
        meter(10 * second, 1000)
    assert capsys.readouterr().err.splitlines() == [
        "read 100/1000 cases, 10.0 cases/s, 1:30 left",
        "read 200/1000 cases, 10.0 cases/s, 1:20 left",
    ]
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    meter(500, 1000)
    now[0] += 1
    meter(1000, 1000)
    assert capsys.readouterr().err.split("\r")[1:] == [
        f"{'read 500/1000 cases, 20.8 cases/s, 0:24 left':60}",
        " " * 60,
        "",
    ]


@pytest.mark.slow
def test_real_hippocampus_as_a_process(shared_data: Path, here: Path) -> None:
    script = REPOSITORY / "jobs/check.py"
    command = [sys.executable, str(script), str(shared_data / "hippocampus"), "dataset.name=decathlon"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=here)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["readable"] == 160
    assert Path(result["html"]).stat().st_size < 5_000_000
