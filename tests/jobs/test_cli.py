"""The command line: results on stdout, everything else on stderr, the promised exit codes, no tracebacks."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import REPOSITORY, draw_folder, tiny

from medray import cli
from medray.config import to_yaml
from medray.console import answer
from medray.imaging.writer import write_png
from medray.tracking.run import tracking_uri

pytestmark = pytest.mark.usefixtures("database")


def run(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and the last line of stdout."""
    stdout = io.StringIO()
    code = answer(cli.app, list(arguments), stdout)
    lines = stdout.getvalue().splitlines()
    return code, json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}


@pytest.fixture
def experiment(tmp_path: Path, image_folder: Path) -> str:
    file = tmp_path / "tiny.yaml"
    file.write_text(to_yaml(tiny(image_folder)), encoding="utf-8")
    return str(file)


def test_help_is_quick_and_names_the_sections() -> None:
    started = time.monotonic()
    found = subprocess.run(
        [sys.executable, REPOSITORY / "jobs" / "train.py", "--help"], capture_output=True, text=True, check=True
    )
    assert time.monotonic() - started < 3, "heavy imports are deferred (under 1 s on an idle machine)"
    assert "augment" in found.stdout + found.stderr
    code = "import sys; from medray import cli; print({'torch', 'ray', 'mlflow', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_config_show_and_schema(experiment: str, capsys: pytest.CaptureFixture[str]) -> None:
    stdout = io.StringIO()
    assert answer(cli.app, ["config", "show", experiment, "train.epochs=7"], stdout) == 0
    assert yaml.safe_load(stdout.getvalue())["train"]["epochs"] == 7
    stdout = io.StringIO()
    assert answer(cli.app, ["config", "schema", experiment], stdout) == 0
    assert "widths" in json.loads(stdout.getvalue())["properties"]["network"]["properties"]
    stdout = io.StringIO()
    assert answer(cli.app, ["config", "list"], stdout) == 0
    assert "resnet" in stdout.getvalue()
    assert answer(cli.app, ["config", "show", experiment, "train.epoch=7"], io.StringIO()) == 2
    assert "did you mean 'epochs'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["dataset.path=/nowhere/chest"], "/nowhere/chest"),
        (["network.name=resnett"], "did you mean 'resnet'"),
        (["dataset={name: table, path: TABLE}"], "label"),
        (["nothing.yaml"], "does not exist"),
        (["--no-such-option"], "no-such-option"),
        (["scaling.cpus_per_worker=4096"], "4096 CPUs"),
        (["task.mode=ordinal", "task.loss.label_smoothing=0.1"], "label_smoothing"),
        (["preprocess.size=[8, 8, 8]"], "preprocess.size has 3"),
        (["network.name=alexnet"], "alexnet"),
    ],
)
def test_mistakes_are_one_clear_message(
    experiment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: list[str], message: str
) -> None:
    table = tmp_path / "table.csv"
    table.write_text("image,klass\na.png,x\n")
    settings = [item.replace("TABLE", str(table)) for item in settings]
    first = [] if settings[0].endswith(".yaml") else [experiment]
    code, _ = run("train", *first, *settings)
    said = capsys.readouterr().err
    assert code in (1, 2)
    assert message in said
    assert "Traceback" not in said


def test_an_empty_class_is_named(tmp_path: Path, experiment: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = draw_folder(tmp_path / "images")
    (folder / "class2").mkdir()
    assert run("train", experiment, f"dataset.path={folder}")[0] == 3
    assert "class2" in capsys.readouterr().err


def test_labels_of_another_shape(tmp_path: Path, experiment: str, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = {
        f"{split}_{kind}": np.zeros((8, *shape), np.uint8)
        for split in ("train", "val", "test")
        for kind, shape in (("images", (16, 16)), ("labels", (1,)))
    }
    arrays["train_labels"] = np.zeros((7, 1), np.uint8)
    np.savez(tmp_path / "set.npz", **arrays)
    code, _ = run("train", experiment, "dataset.name=medmnist", f"dataset.path={tmp_path / 'set.npz'}")
    said = capsys.readouterr().err
    assert code in (2, 3)
    assert "train_labels" in said
    assert "7" in said


def test_too_much_bad_data_is_exit_3(tmp_path: Path, experiment: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = draw_folder(tmp_path / "images")
    (folder / "class0" / "case000.png").write_bytes(b"nothing")
    code, _ = run("train", experiment, f"dataset.path={folder}")
    assert code == 3
    said = capsys.readouterr().err
    assert "class0/case000" in said.replace("\\", "/")
    assert "max_bad_fraction" in said


@pytest.mark.parametrize(
    ("champion", "model", "uri", "says"),
    [
        (
            True,
            "chest/3",
            None,
            ["medray predict IMAGE ...   ", "medray serve   ", "ui --backend-store-uri sqlite:"],
        ),
        (False, "chest/3", None, ["--model chest@3   ", "medray promote chest@3 --reason WHY   "]),
        (False, None, None, ["--bundle /runs/b   "]),
        (
            True,
            "chest/3",
            "http://m:5000",
            ["predict IMAGE ... --tracking http://m:5000", "serve tracking.uri=http://m:5000"],
        ),
    ],
)
def test_the_next_commands_fit_what_the_training_left(
    champion: bool, model: str | None, uri: str | None, says: list[str]
) -> None:
    outcome = {"champion": champion, "model": model, "bundle": "/runs/b", "run": "r", "tracking_uri": tracking_uri(uri)}
    said = cli._next_commands(outcome)
    assert all(words in said for words in says), said


def test_train_predict_promote_resume(
    tmp_path: Path,
    experiment: str,
    image_folder: Path,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The road on one worker: every file that a user expects, one MLflow run, a champion that predicts."""
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(tmp_path)
    code, result = run("train", experiment)
    assert code == 0, capsys.readouterr().err
    said = capsys.readouterr().err
    assert "first step after" in said
    assert "epoch   1/2" in said
    assert "next:" in said
    assert result["model"] == "tiny/1"
    assert result["champion"]
    assert 0 <= result["metrics"]["test/auroc"] <= 1

    folder = home / "runs" / result["run"]
    figures = {file.stem for file in (folder / "shared" / "figures").glob("*.png")}
    assert figures == {"curves", "roc", "precision_recall", "calibration", "augmented", "worst", "confusion"}
    mlflow = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    (found,) = mlflow.search_runs([mlflow.get_experiment_by_name("tiny").experiment_id])
    assert found.info.run_id == result["run_id"]
    assert found.info.status == "FINISHED"
    assert found.data.params["network.name"] == "plain"
    assert [point.step for point in mlflow.get_metric_history(found.info.run_id, "val/auroc")] == [1, 2]
    names = {item.path for item in mlflow.list_artifacts(found.info.run_id)}
    assert names == {"bundle", "experiment.yaml", "figures", "per_class.csv", "refused.csv", "split.csv"}
    # Case ids stay in the run's folder: what MLflow holds shows pseudonyms.
    assert "case0" not in (folder / "shared" / "split.csv").read_text()
    assert "case0" in (folder / "cases.csv").read_text()

    image = str(next(image_folder.rglob("*.png")))
    code, answer = run("predict", image)
    assert (code, answer["model"]) == (0, "tiny/1")
    code, listed = run("predict", str(image_folder), "--bundle", result["bundle"], "--csv", str(tmp_path / "out.csv"))
    assert (code, listed["images"], listed["refused"]) == (0, 40, 0)
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 41

    code, again = run("train", experiment, "seed=3")
    assert code == 0
    assert again["model"] == "tiny/2"
    assert run("promote", "tiny@2", "--reason", "a person says so") == (
        0,
        {"model": "tiny/2", "alias": "champion", "reason": "a person says so"},
    )
    assert run("promote", "tiny@9", "--reason", "none such")[0] == 2

    code, resumed = run("train", "--resume", result["run"])
    assert code == 0
    assert resumed["run_id"] == result["run_id"]
    assert run("train", "--resume", "nothing")[0] == 2


def test_a_case_left_out_is_exit_5_and_listed(tmp_path: Path, experiment: str) -> None:
    folder = draw_folder(tmp_path / "images", cases=100)
    (folder / "class0" / "case000.png").write_bytes(b"nothing")
    code, result = run("train", experiment, f"dataset.path={folder}", "train.epochs=1")
    assert (code, result["refused"]) == (5, 1)


def test_a_nan_loss_is_exit_1_with_its_step(experiment: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = run("train", experiment, "optimizer={name: sgd, lr: 1.0e+30}", "train.epochs=3")
    assert code == 1
    assert "not finite at step" in capsys.readouterr().err


def test_predict_refuses_clearly(tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", "nowhere.png")[0] == 2
    assert "nowhere.png" in capsys.readouterr().err
    image = str(next(image_folder.rglob("*.png")))
    assert run("predict", image)[0] == 2
    assert "no champion yet" in capsys.readouterr().err
    assert run("predict", image, "--bundle", str(tmp_path))[0] == 1
    assert "not a model bundle" in capsys.readouterr().err


def test_volumes_train_too() -> None:
    code, result = run(
        "train",
        "dataset={name: phantom, kind: volume3d, cases: 36}",
        "preprocess={size: [16, 16, 12]}",
        "network={name: plain, widths: [4, 8], norm: instance}",
        "augment={flip: {p: 0.5, axes: [0, 1, 2]}}",
        "train.epochs=1",
        "train.batch_size=6",
        "name=volumes",
    )
    assert code == 0
    assert result["model"] == "volumes/1"


def test_multilabel_from_a_table(tmp_path: Path, image_folder: Path, experiment: str) -> None:
    images = sorted(image_folder.rglob("*.png"))
    labels = ["wet|old", "wet", "old", ""]
    rows = [f"{image},{labels[index % 4]}" for index, image in enumerate(images)]
    (tmp_path / "table.csv").write_text("image,label\n" + "\n".join(rows) + "\n")
    code, result = run("train", experiment, f"dataset={{name: table, path: {tmp_path / 'table.csv'}}}", "name=labels")
    assert code == 0
    assert "test/auroc" in result["metrics"]


def test_transfer_from_a_bundle_and_frozen(experiment: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, first = run("train", experiment, "train.epochs=1")
    code, second = run(
        "train", experiment, f"network.weights={first['bundle']}", "optimizer.backbone_factor=0.1", "train.epochs=1"
    )
    assert code == 0
    assert second["model"] == "tiny/2"
    assert run("train", experiment, "network.freeze=true")[0] == 2
    assert "network.weights" in capsys.readouterr().err


def test_a_new_split_measures_the_old_champion_on_it(experiment: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("train", experiment)
    capsys.readouterr()
    code, _ = run("train", experiment, "split.seed=5")
    assert code == 0
    assert "tiny/1" in capsys.readouterr().err


def test_other_classes_need_a_person(tmp_path: Path, experiment: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("train", experiment, "train.epochs=1")
    folder = draw_folder(tmp_path / "three", cases=45, classes=3)
    code, result = run("train", experiment, f"dataset.path={folder}", "train.epochs=1")
    assert (code, result["champion"]) == (0, False)
    assert "medray promote" in capsys.readouterr().err


def test_png_written_by_hand_is_predicted(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.zeros((16, 16), np.uint8))
    assert run("predict", str(tmp_path / "a.png"), "--model", "nothing@champion")[0] == 2
