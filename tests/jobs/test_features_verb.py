"""The verbs that look into a model: features with classical heads, and explanations."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny
from cyclopts import App
from mlflow.tracking import MlflowClient
from pyarrow import parquet

from medray import cli_inference
from medray.bundle import BundleError, save
from medray.console import answer
from medray.inference.classical import KINDS, head_of, scores
from medray.inference.predictor import Predictor
from medray.networks.build import build
from medray.pipeline.prepare import Prepared, prepare
from medray.types import NetworkIO, Prediction

app = App(name="medray")
cli_inference.register(app)


def run(*arguments: object) -> tuple[int, dict[str, Any]]:
    """Exit code and the last line of stdout."""
    stdout = io.StringIO()
    code = answer(app, [str(item) for item in arguments], stdout)
    return code, json.loads(stdout.getvalue().splitlines()[-1]) if stdout.getvalue() else {}


@pytest.fixture
def prepared(image_folder: Path, tmp_path: Path) -> Prepared:
    return prepare(tiny(image_folder), tmp_path / "stores")


@pytest.fixture
def bundle(image_folder: Path, tmp_path: Path, prepared: Prepared) -> Path:
    """A network that knows nothing, of a training whose data and splits are known."""
    experiment = tiny(image_folder, network={"name": "plain", "widths": [8, 8], "norm": "batch"})
    network = build(experiment.network, NetworkIO(1, (16, 16), 1), seed=4).network
    network.train()(torch.randn(8, 1, 16, 16))
    card = {
        "classes": list(prepared.dataset.classes),
        "multilabel": False,
        "outputs": 1,
        "input": {"channels": 1, "size": [16, 16], "axes": 2, "dense": False},
        "data": prepared.fingerprint,
        "split": prepared.split_fingerprint,
        "cases": {name: len(prepared.rows(name)) for name in ("train", "val", "test")},
    }
    return save(tmp_path / "network", experiment, network.state_dict(), card).folder


@pytest.mark.usefixtures("database")
def test_features_heads_and_a_bundle_that_predicts(
    bundle: Path, prepared: Prepared, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code, result = run("features", "--bundle", bundle, "--out", out)
    assert code == 0
    assert result["chosen"] in KINDS
    assert result["cases"] == {name: len(prepared.rows(name)) for name in ("train", "val", "test")}
    said = capsys.readouterr().err
    assert all(f"\n{kind} " in said for kind in KINDS)
    assert "The same split as in the network's training" in said

    table = parquet.read_table(out / "features.parquet")
    columns = [f"f{index}" for index in range(8)]
    assert table.column_names == ["case", "subject", "split", "classes", *columns]
    assert table.schema.metadata[b"medray.bundle"].decode() == Predictor(bundle).bundle.digest
    splits = table["split"].to_pylist()
    assert {name: splits.count(name) for name in result["cases"]} == result["cases"]
    assert not any(ref.case_id.encode() in (out / "features.parquet").read_bytes() for ref in prepared.dataset.refs)
    with (out / "cases.csv").open() as stream:
        names = {row["pseudonym"]: row["case_id"] for row in csv.DictReader(stream)}
    by_name = {ref.case_id: row for row, ref in enumerate(prepared.dataset.refs)}
    rows = [by_name[names[case]] for case in table["case"].to_pylist()]
    assert [row in prepared.rows("test") for row in rows] == [name == "test" for name in splits]

    report = json.loads((out / "heads" / "heads.json").read_text())
    assert [row["kind"] for row in report["classifiers"]] == list(KINDS)
    best = max(report["classifiers"], key=lambda row: row["metrics"]["val/auroc"])
    assert best["metrics"]["val/auroc"] == pytest.approx(result["metrics"]["val/auroc"], abs=1e-6)
    mlflow = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    kept = mlflow.get_run(result["run_id"])
    assert kept.data.metrics[f"{result['chosen']}/test/auroc"] == pytest.approx(
        result["metrics"]["test/auroc"], abs=1e-6
    )
    assert {item.path for item in mlflow.list_artifacts(result["run_id"])} == {"heads.json", "heads.csv"}

    predictor = Predictor(Path(result["bundle"]))
    test = prepared.rows("test")
    answers = predictor.predict_all([prepared.dataset.refs[row].source for row in test.tolist()])
    found = np.stack([one.scores for one in answers if isinstance(one, Prediction)])
    head = head_of(predictor.bundle.extras())
    assert head is not None
    features = np.stack([table[name].to_numpy() for name in columns], 1)[[rows.index(row) for row in test.tolist()]]
    raw = scores(head, features).astype(np.float32)
    np.testing.assert_allclose(found, predictor.trust.calibrated(raw), atol=1e-5)
    measured = predictor.task.summarise(raw, prepared.targets[test])
    assert measured["auroc"] == pytest.approx(result["metrics"]["test/auroc"], abs=1e-6)


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(("kind", "keeps"), [("softmax", False), ("knn", True)])
def test_a_head_with_training_cases_in_it_says_so(
    bundle: Path, tmp_path: Path, kind: str, keeps: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result = run("features", "--bundle", bundle, "--out", tmp_path / "out", "--fit", kind, "--no-record")
    assert (code, result["keeps_training_cases"], result["run_id"]) == (0, keeps, None)
    assert ("warning: the bundle holds the features of training cases" in capsys.readouterr().err) == keeps
    card = Predictor(Path(result["bundle"])).bundle.card
    assert card["head"]["keeps_training_cases"] == keeps
    assert ("tell who was among them" in card["head"]["privacy"]) == keeps


@pytest.mark.usefixtures("database")
def test_an_altered_head_is_no_bundle_and_a_head_is_not_explained_as_its_network(
    bundle: Path, tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Path(
        run("features", "--bundle", bundle, "--out", tmp_path / "out", "--fit", "tree", "--no-record")[1]["bundle"]
    )
    image = next(image_folder.rglob("*.png"))
    assert run("explain", image, "--bundle", made, "--out", tmp_path / "maps")[0] == 2
    assert "explain the network that it is on" in capsys.readouterr().err
    altered = Path(shutil.copytree(made, tmp_path / "altered"))
    (altered / "head.json").write_text((altered / "head.json").read_text().replace("tree", "forest"))
    with pytest.raises(BundleError, match=r"head\.json"):
        Predictor(altered)
    shutil.rmtree(altered)
    shutil.copytree(made, altered)
    (altered / "head.npz").unlink()
    with pytest.raises(BundleError, match=r"head\.npz"):
        Predictor(altered)


def test_features_alone(bundle: Path, tmp_path: Path) -> None:
    code, result = run("features", "--bundle", bundle, "--out", tmp_path / "out", "--fit", "")
    assert (code, result["features"]) == (0, 8)
    assert {item.name for item in (tmp_path / "out").iterdir()} == {"features.parquet", "cases.csv"}


def test_the_same_data_dealt_another_way_are_refused(
    bundle: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A path alone takes the network's own splits; others would test what it was trained on."""
    own = ("features", image_folder, "dataset.name=folder")
    code, result = run(*own, "--bundle", bundle, "--out", tmp_path / "a", "--fit", "")
    assert code == 0
    assert "The same split" in result["held_out"]
    assert run(*own, "split.seed=1", "--bundle", bundle, "--out", tmp_path / "b")[0] == 2
    assert "dealt another way" in capsys.readouterr().err


def test_wrong_words_are_one_message(
    bundle: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full" / "bundle").mkdir(parents=True)
    for arguments, message in (
        (("--fit", "forrest", "--out", tmp_path / "out"), "did you mean 'forest'"),
        (("--out", image_folder / "out"), "inside the data"),
        (("--out", tmp_path / "full"), "holds a bundle already"),
        (("split.seed=1", "--out", tmp_path / "out"), "name the data"),
        (("--model", "a@b", "--out", tmp_path / "out"), "not both"),
    ):
        assert run("features", *arguments, "--bundle", bundle)[0] == 2
        assert message in capsys.readouterr().err


def test_images_of_the_training_are_found_in_other_data(bundle: Path, image_folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(image_folder, tmp_path / "other"))
    next(other.rglob("*.png")).unlink()
    code, result = run(
        "features", other, "dataset.name=folder", "--bundle", bundle, "--out", tmp_path / "out", "--fit", ""
    )
    assert code == 0
    assert "byte for byte images that the model was trained or validated on" in result["held_out"]


def test_explain_writes_a_picture_each_and_checks_itself(
    bundle: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        shutil.copy(next(image_folder.rglob("*.png")), folder / name)
    (folder / "c.png").write_bytes(b"no image")
    code, result = run(
        "explain", folder, "--bundle", bundle, "--out", tmp_path / "maps", "--target", "class1", "--sanity"
    )
    assert (code, result["refused"], result["method"]) == (5, 1, "gradcam")
    assert [Path(file).name for file in result["files"]] == ["0000-a.png", "0001-b.png"]
    assert all(Path(file).read_bytes().startswith(b"\x89PNG") for file in result["files"])
    assert set(result["sanity"]) == {"passed", "rank_correlation", "ssim"}
    said = capsys.readouterr().err
    assert "c.png  refused" in said
    assert "what the network learnt" in said
    for wrong, message in ((("--method", "gradcm"), "did you mean"), (("--target", "class9"), "it has class0, class1")):
        assert run("explain", folder, "--bundle", bundle, "--out", tmp_path / "maps", *wrong)[0] == 2
        assert message in capsys.readouterr().err
