"""`medray predict` over folders, as it is run: what lies there afterwards, what it says, and how it ends."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from conftest import REPOSITORY
from prediction_phantom import classifier, pictures, segmenter
from series_phantom import noise

from medray import cli
from medray.console import answer


def run(*arguments: object) -> tuple[int, dict[str, Any]]:
    """Exit code and the last line of stdout, {} where there is none."""
    stdout = io.StringIO()
    code = answer(cli.app, ["predict", *map(str, arguments)], stdout)
    lines = stdout.getvalue().splitlines()
    return code, json.loads(lines[-1]) if lines else {}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    (folder := tmp_path / "here").mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    return segmenter(tmp_path / "flat", 2).folder


def test_a_folder_with_broken_images(
    flat: Path, tmp_path: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = pictures(tmp_path / "in", good=39, broken=3)
    code, result = run(data, "--bundle", flat)
    assert (code, result["images"], result["refused"], result["already"]) == (5, 42, 3, 0)
    assert result["csv"] == str(here / "predictions" / "predictions.csv")
    said = capsys.readouterr().err
    for number in range(3):
        assert f"case{number:03d}.png" in said
    assert said.count("refused: ") == 3
    assert "case010" not in said, "of many only the refused are told one by one"
    assert "39 answered, 3 refused (0 of them before)" in said
    assert len(list((here / "predictions").glob("*/mask.png"))) == 39
    code, result = run(data, "--bundle", flat)
    assert (code, result["already"]) == (5, 42)
    assert "42 of 42 were done" in capsys.readouterr().err


def test_one_image_is_answered_on_the_screen(tmp_path: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = classifier(tmp_path / "model").folder, pictures(tmp_path / "in", good=1, broken=1)
    code, result = run(data / "case001.png", "--bundle", model)
    assert (code, result["out"], result["csv"]) == (0, None, None)
    assert result["labels"] == [max(result["scores"], key=result["scores"].get)]
    assert result["labels"][0] in capsys.readouterr().err
    assert not list(here.iterdir())
    assert run(data / "case001.png", "--bundle", model, "--out", "there", "--csv", "some/where.csv")[0] == 0
    assert {file.name for file in here.iterdir()} == {"there", "some"}
    assert run(data / "case000.png", "--bundle", model)[0] == 3


def test_a_volume_keeps_its_place(tmp_path: Path, here: Path) -> None:
    affine = np.array([[-0.7, 0.1, 0, 12.3], [0.1, 0.9, 0, -30.1], [0, 0, 2.5, 7], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(noise(9, 10, 11), affine)
    image.set_sform(affine, code=4)
    image.set_qform(None, code=0)
    nibabel.save(image, tmp_path / "scan.nii.gz")
    options = ["--probabilities", "--flips", "0,1", "--overlap", "0.25", "--restore", "labels"]
    two = [segmenter(tmp_path / f"fold{seed}", 3, seed).folder for seed in (1, 2)]
    code, result = run(tmp_path / "scan.nii.gz", "--bundle", two[0], "--bundle", two[1], *options)
    assert (code, set(result["volumes"])) == (0, {"organ_ml", "lesion_ml"})
    assert result["model"] == f"{two[0]} + {two[1]}"
    for name in ("mask", "probabilities"):
        made = nibabel.load(here / "predictions" / "scan" / f"{name}.nii.gz")
        assert made.shape[:3] == image.shape
        for field in ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d"):
            assert made.header[field].tobytes() == nibabel.load(tmp_path / "scan.nii.gz").header[field].tobytes()


def test_bad_input_is_one_clear_line(flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = pictures(tmp_path / "in", good=1)
    other, deep = classifier(tmp_path / "sorter").folder, segmenter(tmp_path / "deep", 3).folder
    (tmp_path / "empty").mkdir()
    for arguments, says in (
        ([tmp_path / "empty", "--bundle", flat], "no files in"),
        ([tmp_path / "nowhere", "--bundle", flat], "does not exist"),
        ([data, "--bundle", flat, "--bundle", other], "only models of one task can be averaged"),
        ([data, "--bundle", flat, "--bundle", deep], "'deep' is a segmentation"),
        ([data, "--bundle", other, "--probabilities"], "--probabilities: 'sorter' answers per image"),
        ([data, "--bundle", other, "--overlap", "0.5"], "--overlap: 'sorter' answers per image"),
        ([data, "--bundle", flat, "--overlap", "1.5"], "--overlap: 1.5"),
        ([data, "--bundle", flat, "--flips", "x"], "--flips: 'x' is no axis"),
        ([data, "--bundle", flat, "--flips", "2"], "--flips: axis 2"),
        ([data, "--bundle", flat, "--workers", "0"], "--workers: 0"),
        ([data, "--bundle", flat, "--device", "cuda:99"], "device: 'cuda:99'"),
    ):
        assert run(*arguments)[0] == 2, arguments
        said = capsys.readouterr().err
        assert says in said, said
        assert len(said.splitlines()) == 1
    assert run(data, "--bundle", tmp_path / "empty")[0] == 1
    code, result = run(data, "--bundle", deep)
    assert (code, result["refused"]) == (3, 1)
    assert "wrong_shape" in capsys.readouterr().err


def job(*arguments: object) -> list[str]:
    return [sys.executable, str(REPOSITORY / "jobs" / "predict.py"), *map(str, arguments)]


def finished(out: Path) -> dict[Path, tuple[int, int]]:
    """Inode and time of the files of all cases that are there."""
    return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in out.glob("[!.]*/*")}


@pytest.mark.slow
def test_killed_half_way_it_redoes_nothing(flat: Path, tmp_path: Path) -> None:
    """200 images, 5 of them broken; SIGKILL after a third."""
    data, out = pictures(tmp_path / "in", good=195, broken=5, size=(160, 160)), tmp_path / "out"
    command = job(data, "--bundle", flat, "--out", out)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 300
    while len(list(out.glob("*/answer.json"))) < 60 and time.monotonic() < until:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = finished(out)
    done = len({file.parent for file in before})
    assert 60 <= done < 200
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
    assert again.returncode == 5, again.stderr
    result = json.loads(again.stdout.splitlines()[-1])
    assert (result["images"], result["refused"], result["already"]) == (200, 5, done)
    assert again.stderr.count("refused: ") == 5
    after = finished(out)
    assert {file: after[file] for file in before} == before
    assert len(list(out.glob("*/mask.png"))) == 195
    assert not list(out.glob(".*.part"))


@pytest.mark.slow
def test_two_actors_give_what_one_process_gives(flat: Path, tmp_path: Path) -> None:
    data = pictures(tmp_path / "in", good=6, broken=1)
    for out, more in (("one", []), ("two", ["--workers", "2"])):
        found = subprocess.run(
            job(data, "--bundle", flat, "--out", tmp_path / out, *more),
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )
        assert found.returncode == 5, found.stderr
    for file in (tmp_path / "one").glob("*/mask.png"):
        assert file.read_bytes() == (tmp_path / "two" / file.parent.name / "mask.png").read_bytes()
    assert len(list((tmp_path / "two").glob("*/mask.png"))) == 6
