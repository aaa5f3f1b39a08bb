"""`medray evaluate`: from a command to a report, its exit codes, and what is kept where."""

from __future__ import annotations

import csv
import io
import json
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SHARED, draw_folder, tiny
from cyclopts import App
from mlflow.tracking import MlflowClient
from PIL import Image

from medray import cli_evaluate
from medray.bundle import ModelBundle, save
from medray.console import answer
from medray.datasets.scan import scan
from medray.evaluation.provenance import data_fingerprint, split_fingerprint
from medray.imaging.writer import write_png
from medray.networks.build import build
from medray.pipeline.split import split
from medray.tracking.run import client
from medray.types import NetworkIO

FILES = {"report.html", "evaluation.json", "results.csv", "figures.csv", "model_card.md", "cases.csv"}


def run(*arguments: str) -> tuple[int, dict[str, Any]]:
    app = App()
    cli_evaluate.register(app)
    stdout = io.StringIO()
    code = answer(app, ["evaluate", *arguments], stdout)
    lines = stdout.getvalue().splitlines()
    return code, json.loads(lines[-1]) if lines else {}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """40 images, ten of which are test, in a folder of their own."""
    return draw_folder(tmp_path / "chest")


def make(folder: Path, data: Path, seed: int = 1, **facts: Any) -> ModelBundle:
    """A bundle as a training on `data` writes it; its network has its initial weights."""
    experiment = tiny(data, split={"method": "fraction", "val": 0.2, "test": 0.25})
    dataset = scan(experiment.dataset)
    indices = split(dataset, experiment.split)
    card = {
        "classes": list(dataset.classes),
        "multilabel": False,
        "outputs": 1,
        "input": {"channels": 1, "size": [16, 16], "axes": 2, "dense": False},
        "decision": "the likeliest class",
        "cases": {name: len(getattr(indices, name)) for name in ("train", "val", "test")},
        "split": split_fingerprint(dataset, indices),
        **facts,
    }
    card["data"] = data_fingerprint(dataset, indices, ModelBundle(folder, experiment, card))
    network = build(experiment.network, NetworkIO(1, (16, 16), 1), seed=seed).network
    return save(folder, experiment, network.state_dict(), card)


@pytest.fixture
def bundle(tmp_path: Path, data: Path) -> str:
    return str(make(tmp_path / "chest-model", data).folder)


def table(folder: Path, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / name).read_text(encoding="utf-8"))))


@pytest.mark.usefixtures("database")
def test_the_bundles_own_test_part(bundle: str, here: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = run("--bundle", bundle)
    folder = here / "evaluate-chest-model-chest"
    assert (code, result["part"], result["provenance"], result["cases"]) == (0, "test", "test", 10)
    assert {file.name for file in folder.iterdir()} == FILES
    assert result["html"] == str(folder / "report.html")
    assert "AUROC" in capsys.readouterr().err
    names = {row["pseudonym"]: row["case_id"] for row in table(folder, "cases.csv")}
    assert stat.S_IMODE((folder / "cases.csv").stat().st_mode) == 0o600
    rows = table(folder, "results.csv")
    assert len(rows) == 10
    assert all(names[row["case"]].startswith(row["truth"]) for row in rows)
    for name in FILES - {"cases.csv"}:
        text = (folder / name).read_text(encoding="utf-8")
        assert not any(case in text for case in names.values())
        assert str(data.parent) not in text


def test_mlflow_has_figures_tags_and_files_but_not_the_map(bundle: str, here: Path, database: Path) -> None:
    result = run("--bundle", bundle)[1]
    mlflow = client(f"sqlite:///{database}")
    found = mlflow.get_run(result["run_id"])
    assert found.data.metrics["auroc"] == pytest.approx(result["figures"]["auroc"])
    assert found.data.metrics["auroc/low"] <= found.data.metrics["auroc/high"]
    assert found.data.tags["mlflow.runName"] == "evaluate-chest-model"
    assert found.data.tags["medray.provenance"] == "test"
    assert found.info.status == "FINISHED"
    assert {item.path for item in mlflow.list_artifacts(result["run_id"])} == FILES - {"cases.csv"}
    tree = json.loads((here / "evaluate-chest-model-chest/evaluation.json").read_text())
    assert tree["data"]["fingerprint"] == found.data.tags["medray.data"]


def test_without_mlflow_the_report_is_whole(
    bundle: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ConnectionError("no server")

    monkeypatch.setattr(MlflowClient, "log_batch", broken)
    code, result = run("--bundle", bundle, "--tracking", f"sqlite:///{here / 'mlflow.db'}")
    assert (code, result["run_id"]) == (0, None)
    assert "not recorded in MLflow: no server" in capsys.readouterr().err
    assert Path(result["html"]).is_file()
    assert run("--bundle", bundle, "--no-record")[1]["run_id"] is None


@pytest.mark.usefixtures("here")
def test_other_parts_and_data_are_told_for_what_they_are(bundle: str, data: Path, tmp_path: Path) -> None:
    def provenance(*words: str) -> tuple[str, int]:
        result = run(*words, "--bundle", bundle, "--no-record")[1]
        return result["provenance"], result["cases"]

    assert provenance("--split", "val") == ("val", 8)
    assert provenance("--split", "train") == ("seen", 22)
    assert provenance(str(data), "dataset.name=folder") == ("test", 10), "the same data, whatever they are called by"
    assert provenance(str(data), "dataset.name=folder", "--split", "all")[0] == "seen"
    other = draw_folder(tmp_path / "other", cases=12)
    assert provenance(str(other), "dataset.name=folder") == ("overlap", 12), "drawn alike: the same images"
    for file in other.rglob("*.png"):
        write_png(file, 255 - np.asarray(Image.open(file)))
    assert provenance(str(other), "dataset.name=folder") == ("other", 12)


@pytest.mark.usefixtures("here")
def test_cases_that_cannot_be_read_are_listed_and_do_not_stop(bundle: str, data: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(data, tmp_path / "other"))
    assert run(str(other), "dataset.name=folder", "--bundle", bundle, "--no-record")[1]["provenance"] == "test"
    (other / "class0/case000.png").write_bytes(b"nothing")
    words = (str(other), "dataset.name=folder", "--bundle", bundle, "--no-record", "--split", "all")
    code, result = run(*words)
    assert (code, result["refused"], result["cases"]) == (5, 1, 39)
    (row,) = [row for row in table(Path(result["html"]).parent, "results.csv") if row["code"]]
    assert (row["code"], row["truth"]) == ("unsupported_type", "")
    for file in other.rglob("*.png"):
        file.write_bytes(b"nothing")
    assert run(*words)[0] == 3


@pytest.mark.usefixtures("here")
def test_groups_by_a_table_and_a_second_model(bundle: str, data: Path, tmp_path: Path) -> None:
    names = [file.relative_to(data).as_posix() for file in sorted(data.rglob("*.png"))]
    lines = [f"{name},{'AB'[row % 2]},{row}" for row, name in enumerate(names)]
    (tmp_path / "columns.csv").write_text("\n".join(["case,site,age", *lines]), encoding="utf-8")
    second = make(tmp_path / "second", data, seed=5)
    words = ("--bundle", bundle, "--table", str(tmp_path / "columns.csv"), "--no-record", "--out", "report")
    code, result = run(*words, "--by", "site,age", "--compare", str(second.folder))
    assert code == 0
    tree = json.loads(Path(result["json"]).read_text())
    assert {group["column"] for group in tree["groups"]} == {"site", "age"}
    assert all(group["few"] for group in tree["groups"])
    assert tree["comparison"]["other"]["digest"] == second.digest
    assert tree["comparison"]["cases"] == 10
    code, _ = run(*words, "--by", "scanner")
    assert code == 2


@pytest.mark.usefixtures("here")
def test_the_class_that_is_looked_for_and_its_points(data: Path, tmp_path: Path) -> None:
    point = {"of": "class0", "rule": "sensitivity >= 0.9", "threshold": 0.5, "sensitivity": 0.9, "specificity": 0.4}
    point |= dict.fromkeys(("ppv", "npv", "f1"), 0.5)
    point |= {f"{rate}_{end}": 0.5 for rate in ("sensitivity", "specificity") for end in ("low", "high")}
    made = make(tmp_path / "model", data, trust={"temperature": 1.0, "conformal": None, "operating_points": [point]})
    result = run("--bundle", str(made.folder), "--no-record")[1]
    tree = json.loads(Path(result["json"]).read_text())
    assert [entry["rule"] for entry in tree["operating_points"]] == ["the model's answer", "sensitivity >= 0.9"]
    assert {entry["target"] for entry in tree["operating_points"]} == {"class0"}
    assert tree["figures"]["recall"]["value"] == tree["operating_points"][0]["rates"]["sensitivity"]["value"]
    other = run("--bundle", str(made.folder), "--no-record", "--positive", "class1")[1]
    assert other["figures"]["recall"] == pytest.approx(result["figures"]["specificity"])


def test_mistakes_are_usage(
    bundle: str, data: Path, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    three = draw_folder(tmp_path / "three", cases=12, classes=3)
    (here / "empty").mkdir()
    for words, message in [
        ([str(three), "dataset.name=folder"], "class0, class1, class2; the bundle answers class0, class1"),
        (["nowhere"], "'nowhere' does not exist"),
        (["empty"], "no layout fits"),
        (["--out", str(data / "report")], "lies inside the data"),
        (["--limit", "0"], "--limit: 0"),
        (["train.epochs=3", "preprocess.size=[8,8]"], "train.epochs, preprocess.size"),
        (["--positive", "fish"], "the classes are class0, class1"),
        (["--by", "sex"], "no column 'sex'"),
        (["--split", "tets"], "tets"),
    ]:
        assert run(*words, "--bundle", bundle, "--no-record")[0] == 2, words
        assert message in capsys.readouterr().err
    assert not list(data.glob("report"))
    assert run("--bundle", str(here))[0] == 1, "no bundle there"


@pytest.mark.usefixtures("here")
def test_a_limit_is_told(bundle: str) -> None:
    result = run("--bundle", bundle, "--no-record", "--limit", "6")[1]
    assert result["cases"] == 6
    assert "Only 6 of 10 cases" in Path(result["html"]).read_text()


def test_the_report_is_never_inside_the_data(bundle: str, data: Path, home: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(data)
    result = run("--bundle", bundle, "--no-record")[1]
    assert Path(result["html"]).is_relative_to(home / "evaluations")
    assert len(list(data.rglob("*"))) == 42


def other_task(folder: Path, classes: list[str], **sections: Any) -> ModelBundle:
    """A bundle of another task than classification, with the initial weights of its network."""
    experiment = tiny(folder, **sections)
    dense = sections["task"]["name"] == "segmentation"
    outputs = len(classes)
    card = {
        "classes": classes,
        "multilabel": False,
        "outputs": outputs,
        "input": {"channels": 1, "size": [16, 16], "axes": 2, "dense": dense},
    }
    network = build(experiment.network, NetworkIO(1, (16, 16), outputs, dense), seed=1).network
    return save(folder / "model", experiment, network.state_dict(), card)


@pytest.mark.usefixtures("here")
def test_a_segmentation(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for part in ("images", "masks"):
        (tmp_path / "set" / part).mkdir(parents=True)
    for number in range(6):
        image, mask = draw.integers(0, 99, (16, 16)).astype(np.uint8), np.zeros((16, 16), np.uint8)
        mask[2 : 6 + number, 3:9] = 1
        write_png(tmp_path / f"set/images/{number}.png", image + 100 * mask)
        write_png(tmp_path / f"set/masks/{number}.png", 255 * mask)
    made = other_task(
        tmp_path,
        ["background", "foreground"],
        dataset={"name": "pairs", "path": str(tmp_path / "set")},
        task={"name": "segmentation"},
        network={"name": "unet", "channels": [4, 8], "residual_units": 0},
        window={"size": [16, 16]},
    )
    code, result = run("--bundle", str(made.folder), "--no-record", "--split", "all", "--compare", str(made.folder))
    assert (code, result["cases"]) == (0, 6)
    assert 0 <= result["figures"]["dice"] <= 1
    html = Path(result["html"]).read_text()
    assert html.count("data:image/png") == 4 + 6
    assert "Left what is true, right what was found" in html
    (tmp_path / "set/masks/0.png").write_bytes(b"nothing")
    assert run("--bundle", str(made.folder), "--no-record", "--split", "all")[0] == 5


@pytest.mark.usefixtures("here")
def test_a_regression(data: Path, tmp_path: Path) -> None:
    files = sorted(data.rglob("*.png"))
    lines = [f"{file.relative_to(data)},{row % 7 + 40},{'FM'[row % 2]}" for row, file in enumerate(files)]
    (data / "ages.csv").write_text("\n".join(["image,age,sex", *lines]), encoding="utf-8")
    made = other_task(
        tmp_path,
        ["age"],
        dataset={"name": "table", "path": str(data / "ages.csv"), "numbers": ["age"]},
        task={"name": "regression", "centre": [43], "scale": [2]},
    )
    code, result = run("--bundle", str(made.folder), "--no-record", "--split", "all", "--by", "sex")
    assert (code, result["cases"]) == (0, 40)
    assert 0 < result["figures"]["mae"] < 10
    tree = json.loads(Path(result["json"]).read_text())
    assert {group["value"] for group in tree["groups"]} == {"F", "M"}, "columns of the data's own table"


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_real_breastmnist(tmp_path: Path) -> None:
    file = SHARED / "data/medmnist/breastmnist.npz"
    if not file.is_file():
        pytest.skip("no ../shared/data beside this checkout")
    experiment = tiny(file, dataset={"name": "medmnist", "path": str(file), "classes": ["malignant", "benign"]})
    network = build(experiment.network, NetworkIO(1, (28, 28), 1), seed=0).network
    card = {
        "classes": ["malignant", "benign"],
        "multilabel": False,
        "outputs": 1,
        "input": {"channels": 1, "size": [28, 28], "axes": 2, "dense": False},
    }
    made = save(tmp_path / "model", experiment, network.state_dict(), card)
    code, result = run("--bundle", str(made.folder), "--no-record", "--positive", "malignant")
    assert (code, result["cases"], result["provenance"]) == (0, 156, "unverified")
    assert np.isfinite(result["figures"]["auroc"])
