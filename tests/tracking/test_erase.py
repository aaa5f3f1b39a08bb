"""Erasing a person: gone from everything that medray keeps, nobody else's data lost, and a proof without the id."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import shutil
import sqlite3
import stat
from pathlib import Path

import fsspec
import pytest
from conftest import draw_folder, tiny

from medray import cli
from medray.config import ConfigError, to_yaml
from medray.console import answer
from medray.pipeline.prepare import prepare
from medray.tracking import pseudonyms
from medray.tracking.erase import FATES, erase
from medray.tracking.run import client, start
from medray.training.train import train

pytestmark = pytest.mark.usefixtures("database")


def draw_subjects(folder: Path) -> Path:
    """20 subjects of two images each, a folder per subject below the class."""
    flat = sorted(draw_folder(folder / "flat").rglob("*.png"))
    for index, file in enumerate(flat):
        place = folder / "images" / file.parent.name / f"P{index % 2}{index // 4:02d}"
        place.mkdir(parents=True, exist_ok=True)
        file.rename(place / file.name)
    shutil.rmtree(folder / "flat")
    return folder / "images"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw_subjects(tmp_path)


def hash_tree(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def write_rows(file: Path, *rows: list[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)


def record(home: Path, name: str, images: Path, subject: str, cases: list[str], split: str = "train") -> Path:
    """A run's folder as training/record.py leaves it, with one subject and somebody else."""
    secret = pseudonyms.key()
    folder = home / "runs" / name
    code = [pseudonyms.pseudonym(word, secret) for word in (*cases, subject, "class1/other.png", "other")]
    write_rows(
        folder / "shared" / "split.csv",
        ["case", "subject", "split", "classes"],
        *([case, code[len(cases)], split, "class0"] for case in code[: len(cases)]),
        [code[-2], code[-1], "train", "class1"],
    )
    write_rows(folder / "shared" / "refused.csv", ["case", "code"], [code[0], "truncated"], [code[-2], "corrupt"])
    pseudonyms.write_map(folder / "cases.csv", [*cases, subject, "class1/other.png", "other"], secret)
    for picture in ("worst", "augmented", "roc"):
        (folder / "shared" / "figures").mkdir(exist_ok=True)
        (folder / "shared" / "figures" / f"{picture}.png").write_bytes(picture.encode())
    (folder / "bundle").mkdir()
    (folder / "experiment.yaml").write_text(to_yaml(tiny(images)))
    return folder


def test_a_subject_leaves_a_real_training(images: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained, registered, erased: store, hashes, tables, pictures, artifacts; the model is named; sources stay."""
    experiment = home / "tiny.yaml"
    experiment.write_text(to_yaml(tiny(images, train={"epochs": 1, "batch_size": 8, "precision": "fp32"})))
    stdout = io.StringIO()
    assert answer(cli.app, ["train", str(experiment)], stdout) == 0
    run = json.loads(stdout.getvalue().splitlines()[-1])
    secret = pseudonyms.key()
    folder = home / "runs" / run["run"]
    rows = list(csv.DictReader((folder / "shared" / "split.csv").read_text().splitlines()))
    asked = next(
        name
        for name in sorted(path.name for path in images.glob("*/*"))
        if any(row["subject"] == pseudonyms.pseudonym(name, secret) and row["split"] == "train" for row in rows)
    )
    code = pseudonyms.pseudonym(asked, secret)
    assert len(list((home / "stores").glob("*/index.json"))) == 1
    before, sources = hash_tree(home), hash_tree(images)

    dry = erase(asked, dry_run=True)
    assert dry["proof"] is None
    assert hash_tree(home) == before, "a dry run changes nothing"

    capsys.readouterr()
    stdout = io.StringIO()
    assert answer(cli.app, ["erase", "--subject", asked], stdout) == 0
    result = json.loads(stdout.getvalue())
    said = capsys.readouterr().err
    assert "retrain or withdraw" in said
    assert f"source data are untouched in {images}" in said
    assert hash_tree(images) == sources
    assert [item["place"] for item in result["removed"]] == [item["place"] for item in dry["removed"]]
    assert {item["what"] for item in result["removed"]} == {"rows", "picture", "store", "hashes"}
    for item in result["removed"]:
        content = item["place"] + "/images.npy" if item["what"] == "store" else item["place"]
        assert item["sha256_before"] == before[content]
    assert {"model": "tiny/1", "fate": FATES["train"], "copies": 0} in result["models"]

    assert not list((home / "stores").glob("*/images.npy"))
    tables = [file for file in home.rglob("*.csv") if asked in file.read_text() or code in file.read_text()]
    assert not tables
    assert not [file for file in home.rglob("*.png") if file.stem in ("worst", "augmented")]
    assert list(home.rglob("roc.png")), "curves show nobody"
    assert len(list(csv.DictReader((folder / "shared" / "split.csv").read_text().splitlines()))) == len(rows) - 2
    assert f"/{asked}/".encode() not in (home / "stores" / "hashes.sqlite").read_bytes(), "nor in the file's free pages"
    assert stat.S_IMODE((folder / "cases.csv").stat().st_mode) == 0o600

    proof = Path(result["proof"]).read_text()
    assert stat.S_IMODE(Path(result["proof"]).stat().st_mode) == 0o600
    assert code in proof
    assert asked not in proof.replace(str(images), "")
    again = erase(asked)
    assert again["removed"] == []
    prepare(tiny(images), home / "stores")
    assert len(list((home / "stores").glob("*/images.npy"))) == 1, "a store is built again when it is needed"


def test_mirrors_of_data_elsewhere_are_copies_too(images: Path, home: Path) -> None:
    """Their files go; nothing is fetched for it, and what is elsewhere stays."""
    fsspec.filesystem("memory").put(str(images), "/ward/images", recursive=True)
    there = tiny(Path("memory://ward/images"))
    train(there)
    mirror = home / "mirrors" / "memory" / "ward" / "images"
    assert hash_tree(mirror) == hash_tree(images)
    asked = sorted(path.name for path in images.glob("*/*"))[0]
    (mirror / "labels.csv").write_text(f"file,label\n{asked}/a.png,1\n")
    result = erase(asked)
    assert any("labels.csv: a table of data elsewhere that names them" in line for line in result["left"])
    gone = [item["place"] for item in result["removed"] if item["what"] == "mirror"]
    assert gone
    assert all(f"/{asked}/" in place for place in gone)
    assert not [file for file in mirror.rglob("*") if asked in file.parts]
    assert f"/{asked}/" not in "".join(file.read_text() for file in (home / "mirrors" / ".listings").glob("*.json"))
    assert [file for file in images.rglob("*") if asked in file.parts]
    assert not [item for item in erase(asked)["removed"] if item["what"] == "mirror"]


def test_nothing_found_is_said_and_proven(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stdout = io.StringIO()
    assert answer(cli.app, ["erase", "--subject", "nobody"], stdout) == 0
    assert "keeps nothing" in capsys.readouterr().err
    assert not json.loads(stdout.getvalue())["found"]
    assert len(list((home / "erasures").iterdir())) == 1


@pytest.mark.parametrize("way", ["subject", "case", "pseudonym"])
def test_who_is_meant(home: Path, tmp_path: Path, way: str) -> None:
    """By subject id, case id or pseudonym, and also where the dataset is gone."""
    folder = record(home, "one", tmp_path / "gone", "P7", ["class0/P7/a.png", "class0/P7/b.png"])
    code = pseudonyms.pseudonym("P7", pseudonyms.key())
    result = erase({"subject": "P7", "case": "class0/P7/a.png", "pseudonym": code}[way])
    assert result["found"]
    split = (folder / "shared" / "split.csv").read_text().splitlines()
    assert len(split) == 2, "both cases of the subject went, nobody else's"
    assert len((folder / "shared" / "refused.csv").read_text().splitlines()) == 2
    assert "P7" not in (folder / "cases.csv").read_text()
    assert "other" in (folder / "cases.csv").read_text()
    assert any("cannot be looked at" in text for text in result["left"])


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_models_are_named_by_what_they_saw(home: Path, tmp_path: Path, split: str) -> None:
    record(home, "one", tmp_path, "P7", ["a.png"], split)
    assert erase("P7")["models"] == [{"run": "one", "fate": FATES[split]}]


def test_equal_case_names_of_two_datasets_are_two_people(home: Path, tmp_path: Path) -> None:
    record(home, "one", tmp_path / "a", "P7", ["scan.png"])
    other = record(home, "two", tmp_path / "b", "Q9", ["scan.png"])
    erase("P7")
    assert len((other / "shared" / "split.csv").read_text().splitlines()) == 3


def test_a_run_that_did_not_finish_is_named(home: Path, images: Path) -> None:
    folder = home / "runs" / "broken"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "experiment.yaml").write_text(to_yaml(tiny(images)))
    (entry,) = erase("P001")["models"]
    assert entry["run"] == "broken"
    assert "delete it" in entry["fate"]


def test_stores_that_hold_others_stay(home: Path, images: Path, tmp_path: Path) -> None:
    others = draw_folder(tmp_path / "others", cases=40, size=18)
    for name, place in (("one", images), ("two", others)):
        record(home, name, place, "nobody", ["x"])
        prepare(tiny(place), home / "stores")
    old = home / "stores" / ("0" * 24)
    old.mkdir()
    (old / "index.json").write_text("{}")
    (old / "images.npy").write_bytes(b"of whom?")
    removed = [item for item in erase("P001")["removed"] if item["what"] == "store"]
    assert len(removed) == 2, "the one that holds them, and the one that does not say whom it holds"
    assert len(list((home / "stores").glob("*/index.json"))) == 1


def test_other_folders_and_what_is_no_table(home: Path, tmp_path: Path) -> None:
    folder = record(home, "one", tmp_path / "gone", "P7", ["a.png"])
    code = pseudonyms.pseudonym("P7", pseudonyms.key())
    (folder / "notes.json").write_text(json.dumps({"worst": code}))
    write_rows(
        tmp_path / "out" / "predictions.csv", ["file", "score"], ["/data/P7/a.png", "1"], ["/data/P8/a.png", "7"]
    )
    (tmp_path / "out" / "page.html").write_text("a picture")
    write_rows(home / "deid-1.csv", ["source", "target"], ["P7/a.dcm", "x/y.dcm"], ["P8/a.dcm", "z/y.dcm"])
    result = erase("P7", also=(tmp_path / "out",))
    assert any("notes.json mentions" in text for text in result["left"])
    assert "P7" not in (tmp_path / "out" / "predictions.csv").read_text()
    assert "P8" in (tmp_path / "out" / "predictions.csv").read_text()
    assert not (tmp_path / "out" / "page.html").exists()
    assert (home / "deid-1.csv").read_text().splitlines() == ["source,target", "P8/a.dcm,z/y.dcm"]


def test_artifacts_elsewhere_are_said(database: Path) -> None:
    mlflow = client(f"sqlite:///{database}")
    mlflow.create_experiment("far", artifact_location="s3://bucket/far")
    start(mlflow, "far", "run")
    assert any("s3://bucket" in text for text in erase("P7")["left"])


@pytest.mark.parametrize(("subject", "also"), [("", ()), ("  ", ()), ("P7", (Path("/nope"),))])
def test_who_and_where_must_be_named(home: Path, subject: str, also: tuple[Path, ...]) -> None:
    with pytest.raises(ConfigError, match=r"--subject|--also"):
        erase(subject, also=also)
    assert not (home / "erasures").exists()


def test_numbers_are_no_names(home: Path, tmp_path: Path) -> None:
    """A subject called '1' must not cost rows in which 1 is a measurement."""
    folder = record(home, "one", tmp_path, "1", ["a.png"])
    write_rows(folder / "shared" / "per_class.csv", ["split", "class", "recall"], ["val", "x", "1"])
    erase("1")
    assert len((folder / "shared" / "per_class.csv").read_text().splitlines()) == 2


def test_files_that_were_forgotten_are_not_remembered_by_their_erasure(home: Path, images: Path) -> None:
    """Their store is found by what their files hold, and no hash is written for it, in a dry run or a real one."""
    record(home, "one", images, "nobody", ["x"])
    prepare(tiny(images), home / "stores")
    cache = home / "stores" / "hashes.sqlite"
    theirs = next(path for path in cached(cache) if "/P001/" in path)
    with contextlib.closing(sqlite3.connect(cache)) as table, table:
        table.execute("delete from hash where path = ?", (theirs,))
    before = cache.read_bytes()
    dry = erase("P001", dry_run=True)
    assert cache.read_bytes() == before
    assert "store" in {item["what"] for item in dry["removed"]}
    erase("P001")
    assert len(cached(cache)) == 38
    assert not any("/P001/" in path for path in cached(cache))
    assert not list((home / "stores").glob("*/images.npy"))


def test_a_store_is_found_by_files_alone(home: Path, images: Path) -> None:
    record(home, "one", images, "nobody", ["x"])
    prepare(tiny(images), home / "stores")
    (home / "stores" / "hashes.sqlite").unlink()
    assert "store" in {item["what"] for item in erase("P001")["removed"]}


def test_hashes_of_others_stay(home: Path, images: Path) -> None:
    record(home, "one", images, "nobody", ["x"])
    prepare(tiny(images), home / "stores")
    erase("P001")
    paths = cached(home / "stores" / "hashes.sqlite")
    assert len(paths) == 38
    assert not any("/P001/" in path for path in paths)


def cached(cache: Path) -> list[str]:
    """The paths that the cache of hashes remembers."""
    with contextlib.closing(sqlite3.connect(cache)) as table:
        return [path for (path,) in table.execute("select path from hash")]
