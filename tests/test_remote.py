"""Data at a URL: mirrored, brought up to date, read without a network; the same dataset as from a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from conftest import draw_folder
from object_store import BUCKET, put, served

from medray import remote
from medray.config import ConfigError, load, to_yaml
from medray.datasets.scan import scan
from medray.pipeline.prepare import prepare
from medray.remote import local
from medray.sections.base import is_remote, url_of


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[str]:  # noqa: ARG001
    with served(monkeypatch) as url:
        yield url


def settings(url: str) -> list[str]:
    return ["dataset.name=folder", f"dataset.path={url}", "preprocess.size=[16,16]"]


def test_a_url_stays_one_on_its_way_through_an_experiment(tmp_path: Path) -> None:
    experiment = load(None, settings("s3://ward/chest"))
    assert "path: s3://ward/chest" in to_yaml(experiment)
    (tmp_path / "again.yaml").write_text(to_yaml(experiment), encoding="utf-8")
    assert load(tmp_path / "again.yaml") == experiment
    assert load(None, settings("file:///data/chest")).dataset.path == Path("/data/chest")  # type: ignore[attr-defined]
    assert url_of(experiment.dataset.path) == "s3://ward/chest"  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ["/data/chest", "chest", "C:/chest", "~/s3"])
def test_a_path_is_no_url(text: str) -> None:
    assert not is_remote(Path(text))


def test_a_dataset_in_a_bucket_is_the_dataset_in_a_folder(tmp_path: Path, bucket: str, home: Path) -> None:
    folder = draw_folder(tmp_path / "chest", cases=12, size=16)
    put(folder, "data/chest")
    there = prepare(load(None, settings(f"{bucket}/data/chest")), home / "stores")
    here = prepare(load(None, settings(str(folder))), tmp_path / "stores")
    assert (there.fingerprint, there.split_fingerprint) == (here.fingerprint, here.split_fingerprint)
    assert (home / "mirrors" / "s3" / BUCKET / "data" / "chest").is_dir()


def test_only_what_has_changed_is_fetched(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        (tmp_path / "data" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_text(name)
    put(tmp_path / "data", "set")
    url = Path(f"{bucket}/set")
    mirror = local(url)
    assert {file.name: file.read_text() for file in mirror.iterdir()} == {"a": "a", "b": "b", "c": "c"}
    fetched: list[str] = []
    fetch = remote._fetch
    monkeypatch.setattr(remote, "_fetch", lambda fs, place, names: (fetched.extend(names), fetch(fs, place, names)))
    local(url)
    assert fetched == []
    client = boto3.client("s3")
    client.put_object(Bucket=BUCKET, Key="set/b", Body=b"B")
    client.delete_object(Bucket=BUCKET, Key="set/c")
    (mirror / "a").unlink()
    local(url)
    assert sorted(fetched) == [f"{BUCKET}/set/a", f"{BUCKET}/set/b"]
    assert {file.name: file.read_text() for file in mirror.iterdir()} == {"a": "a", "b": "B"}


def test_without_a_network_the_mirror_serves(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").write_text("a")
    put(tmp_path / "data", "set")
    mirror = local(Path(f"{bucket}/set"))

    def away(*_: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(remote, "_find", away)
    assert local(Path(f"{bucket}/set")) == mirror
    assert "cannot be reached (ConnectionError: no route to host)" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="s3://ward/other: cannot be read: ConnectionError"):
        local(Path(f"{bucket}/other"))


def test_one_that_was_broken_off_goes_on(
    tmp_path: Path, bucket: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    for number in range(6):
        (tmp_path / "data" / f"{number}").write_text(f"{number}")
    put(tmp_path / "data", "set")
    monkeypatch.setattr(remote, "BATCH", 2)
    fetch, batches = remote._fetch, list[list[str]]()

    def fails_once(fs: object, place: Path, names: list[str]) -> None:
        batches.append(names)
        if len(batches) == 2:
            raise ConnectionError("reset by peer")
        fetch(fs, place, names)

    monkeypatch.setattr(remote, "_fetch", fails_once)
    with pytest.raises(ConfigError, match="broken off: ConnectionError: reset by peer; the same command goes on"):
        local(Path(f"{bucket}/set"))
    listing = json.loads(next((home / "mirrors" / ".listings").glob("*.json")).read_text())
    assert (len(listing["files"]), listing["whole"]) == (2, False)
    mirror = local(Path(f"{bucket}/set"))
    assert len(batches) == 4
    assert {file.read_text() for file in mirror.iterdir()} == set("012345")


def test_a_table_and_its_files_stay_together(tmp_path: Path, bucket: str) -> None:
    images = draw_folder(tmp_path / "data" / "images", cases=8, size=16)
    lines = [f"{file.relative_to(images)},{file.parent.name}" for file in sorted(images.rglob("*.png"))]
    (tmp_path / "data" / "labels.csv").write_text("\n".join(["file,label", *lines]))
    put(tmp_path / "data", "study")
    experiment = load(None, ["dataset.name=table", f"dataset.path={bucket}/study/labels.csv"])
    put(images, "study")
    assert len(scan(experiment.dataset).refs) == 8


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("s3://ward/nothing", "s3://ward/nothing: nothing is there"),
        ("s3://no-such-bucket/x", "no-such-bucket/x: "),
        ("xyz://bucket/x", "xyz://bucket/x: xyz:// cannot be read here"),
        ("gs://bucket/x", r"install gcsfs on every node, for example with 'medray\[gs\]'"),
        ("s3://ward/../x", "has no place in the path of a mirror"),
    ],
)
@pytest.mark.usefixtures("bucket")
def test_what_cannot_be_read_is_one_line(url: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        local(Path(url))
    assert len(caught.value.mistakes) == 1


def test_a_disk_without_room_is_said_before(
    tmp_path: Path, bucket: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").write_text("a" * 100)
    put(tmp_path / "data", "set")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="no room for its mirror"):
        local(Path(f"{bucket}/set"))
    assert not list((home / "mirrors").rglob("a"))
