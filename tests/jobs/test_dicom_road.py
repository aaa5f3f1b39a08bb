"""The whole road on a tree of DICOM series as a PACS exports it: check, train, predict a folder, answer a zip."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from series_phantom import noise, series

from medray import cli
from medray.console import answer
from medray.imaging.isolation.decoder import Decoder
from medray.inference.predictor import Predictor

pytestmark = pytest.mark.usefixtures("database")

SETTINGS = [
    "split={val: 0.2, test: 0.2}",
    "preprocess={size: [12, 12, 8], intensity: {method: range, low: -1000, high: 3000}}",
    "augment={}",
    "network={name: plain, widths: [8, 8], norm: none}",
    "optimizer.lr=0.01",
    "train={epochs: 12, batch_size: 8}",
    "scaling={workers: 1, cpus_per_worker: 1}",
    "name=pacs",
]


def run(*arguments: str) -> tuple[int, dict[str, Any]]:
    stdout = io.StringIO()
    code = answer(cli.app, list(arguments), stdout)
    return code, json.loads(stdout.getvalue().splitlines()[-1])


def export(root: Path, cases: int = 30) -> Path:
    """A CT of 8 slices per patient under names that say nothing, brighter in one half for patients of class ill."""
    for number in range(cases):
        volume = noise(8, 12, 12, seed=number)
        volume[:, :6] += np.int16(1500 * (number % 2))
        tags = {"Modality": "CT", "RescaleSlope": "1", "RescaleIntercept": "0", "PatientID": f"P{number:03d}"}
        files = series(volume, number=number, SeriesInstanceUID=f"1.2.9.{number}", **tags)
        folder = root / f"{number:08X}"
        folder.mkdir(parents=True)
        for place, content in enumerate(files):
            (folder / f"IM{(7 * place) % 8:06d}").write_bytes(content)
        (folder / "DICOMDIR").write_bytes(b"not a slice")
    rows = "".join(f"P{number:03d},{('well', 'ill')[number % 2]}\n" for number in range(cases))
    (root.parent / "labels.csv").write_text("patient,label\n" + rows)
    return root


def test_from_an_export_to_an_answer(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = export(tmp_path / "export")
    (data / "00000003" / "IM000004").rename(tmp_path / "an inner slice")
    settings = ["dataset=auto", f"dataset.path={data}", f"dataset.labels={tmp_path / 'labels.csv'}", *SETTINGS]
    code, checked = run("check", str(data), f"dataset.labels={tmp_path / 'labels.csv'}", "dataset.max_bad_fraction=0.1")
    assert (code, checked["cases"], checked["readable"]) == (0, 30, 29), checked
    with Path(checked["csv"]).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert sum("missing_slices" in json.dumps(row) for row in rows) == 1

    code, trained = run("train", *settings, "dataset.max_bad_fraction=0.1")
    assert (code, trained["refused"]) == (5, 1)
    assert trained["metrics"]["val/auroc"] > 0.9
    (refused,) = csv.DictReader((home / "runs" / trained["run"] / "shared" / "refused.csv").read_text().splitlines())
    assert "missing_slices" in refused.values()

    code, answers = run("predict", str(data), "--csv", str(tmp_path / "answers.csv"))
    assert (code, answers["images"], answers["refused"]) == (5, 30, 1)
    code, one = run("predict", str(data / "00000001"), "--csv", str(tmp_path / "one.csv"))
    assert (code, one["images"], one["labels"]) == (0, 1, ["ill"])

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for file in sorted((data / "00000001").iterdir()):
            archive.write(file, file.name)
    predictor = Predictor(Path(trained["bundle"]))
    with Decoder() as decoder:
        said = predictor.predict(decoder.read(packed.getvalue()))
    direct = predictor.predict(data / "00000001")
    np.testing.assert_array_equal(said.scores, direct.scores)
    assert said.labels == ("ill",)
