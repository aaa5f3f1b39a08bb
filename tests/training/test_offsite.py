"""Runs copied to an object store while they are run: nothing there is whole that is not; another machine goes on."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import fsspec
import pytest
from conftest import tiny
from object_store import BUCKET, names, served

from medray.config import ConfigError, Experiment, override
from medray.training import checkpoint, offsite, offsite_store
from medray.training.checkpoint import SUMS, State, StorageError
from medray.training.folder import RunLocked, new_folder
from medray.training.offsite import Copy, copied
from medray.training.offsite_store import bring, bring_back
from medray.training.train import train


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[str]:  # noqa: ARG001
    with served(monkeypatch) as url:
        monkeypatch.setenv("MEDRAY_STORAGE", f"{url}/medray/")
        monkeypatch.setattr(offsite_store, "POLL_S", 0.02)
        monkeypatch.setattr(offsite_store, "ALIVE_S", 0.3)
        monkeypatch.setattr(offsite, "CLAIM_S", 0.0)
        yield f"{url}/medray"


def keep(folder: Path, step: int, value: float) -> None:
    """A whole checkpoint."""
    import torch

    partial = folder / "checkpoints" / f"{step}.partial"
    partial.mkdir(parents=True)
    sums = checkpoint.write(partial, State({"network/w": torch.full((2,), value)}, {"step": step}), "values")
    checkpoint.commit(partial, folder / "checkpoints" / checkpoint.name_of(step), sums)


def there(folder: Path) -> list[str]:
    """Names of what the storage has of a run."""
    return [name.removeprefix(f"medray/runs/{folder.name}/") for name in names()]


class Recorded:
    """A file system that notes in which order it is written."""

    def __init__(self, real: Any) -> None:
        self.real, self.acts = real, list[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def put_file(self, here: str, to: str) -> None:
        self.acts.append(f"put {to.rpartition('/runs/')[2].partition('/')[2]}")
        self.real.put_file(here, to)

    def rm_file(self, name: str) -> None:
        self.acts.append(f"rm {name.rpartition('/runs/')[2].partition('/')[2]}")
        self.real.rm_file(name)


def test_sums_come_last_and_go_first(storage: str, image_folder: Path) -> None:
    folder = new_folder(tiny(image_folder))
    keep(folder, 1, 1.0)
    copy = Copy(folder, storage)
    fs = Recorded(copy._place.fs)
    copy._place = replace(copy._place, fs=fs)
    copy.sync()
    keep(folder, 2, 2.0)
    (folder / "checkpoints" / "step-00000003.abc.partial").mkdir()
    (folder / "checkpoints" / "step-00000003.abc.partial" / "network.safetensors").write_bytes(b"half")
    checkpoint.prune(folder, 1)
    (folder / "lock").write_text("me")
    copy.sync()
    one, two = "checkpoints/step-00000001", "checkpoints/step-00000002"
    assert fs.acts.index(f"put {two}/{SUMS}") > fs.acts.index(f"put {two}/network.safetensors")
    assert fs.acts.index(f"put {two}/{SUMS}") > fs.acts.index(f"put {two}/values.json")
    assert fs.acts.index(f"rm {one}/{SUMS}") < fs.acts.index(f"rm {one}/network.safetensors")
    assert set(there(folder)) == {
        "experiment.yaml",
        "owner.json",
        *(f"{two}/{name}" for name in (SUMS, "network.safetensors", "values.json")),
    }
    sent = len(fs.acts)
    copy.sync()
    assert len(fs.acts) == sent, "what has not changed is not sent again"


def test_another_start_sends_what_differs_alone(storage: str, image_folder: Path) -> None:
    """A checkpoint of the same step may have been written anew meanwhile."""
    folder = new_folder(tiny(image_folder))
    keep(folder, 1, 1.0)
    keep(folder, 2, 2.0)
    Copy(folder, storage).sync()
    keep(folder, 2, 3.0)
    again = Copy(folder, storage)
    fs = Recorded(again._place.fs)
    again._place = replace(again._place, fs=fs)
    again.sync()
    assert "put checkpoints/step-00000001/network.safetensors" not in fs.acts
    shutil.rmtree(folder)
    bring(folder.name)
    assert float(checkpoint.load(folder / "checkpoints" / "step-00000002").shared.tensors["network/w"][0]) == 3.0
    assert checkpoint.problem_of(folder / "checkpoints" / "step-00000002") == ""


@pytest.mark.usefixtures("storage")
def test_a_run_ends_where_it_would_have_on_another_machine(
    image_folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Broken off in the middle, its machine lost: the same command elsewhere ends with the same weights."""
    experiment = override(tiny(image_folder), {"train.epochs": 3, "train.checkpoint_every": "1 epoch"})
    whole = train(experiment, new=True)
    shutil.rmtree(home / "runs")
    _empty()
    monkeypatch.setattr(offsite, "EVERY_S", 0.05)
    _break_off(experiment, monkeypatch, after=2)
    shutil.move(home / "runs", tmp_path / "lost machine")
    result = train(experiment)
    assert result["reason"] == whole["reason"]
    assert result["metrics"] == whole["metrics"]
    done = json.loads(_read(f"medray/runs/{result['run']}/result.json"))
    assert done["metrics"] == json.loads(json.dumps(result["metrics"]))
    assert f"medray/runs/{result['run']}/bundle/weights.safetensors" in names()


def test_what_is_finished_or_another_experiment_is_left_where_it_is(
    storage: str, image_folder: Path, home: Path
) -> None:
    experiment = tiny(image_folder)
    for done, seed in ((True, 0), (False, 5)):
        folder = new_folder(override(tiny(image_folder), {"seed": seed}))
        if done:
            (folder / "result.json").write_text("{}")
        Copy(folder, storage).sync()
        shutil.rmtree(folder)
    bring_back(experiment)
    assert not list((home / "runs").iterdir())


@pytest.mark.usefixtures("storage")
def test_a_storage_that_is_away_holds_up_nothing(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(offsite, "EVERY_S", 0.02)
    monkeypatch.setattr(offsite, "PATIENCE_S", 0.0)
    monkeypatch.setattr(offsite, "PAUSE_S", 0.01)
    folder = new_folder(tiny(image_folder))

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    with monkeypatch.context() as away:
        away.setattr(Copy, "sync", refuse)
        with copied(folder):
            keep(folder, 1, 1.0)
    said = capsys.readouterr().err
    assert said.count("cannot be written: ConnectionError: no route to host; the run's folder has all") == 1
    assert f"does not have all of {folder.name}; {folder} has it" in said
    with copied(folder):
        pass
    assert f"checkpoints/step-00000001/{SUMS}" in there(folder)


def test_a_storage_that_nobody_can_write_to_is_said_at_once(
    image_folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDRAY_STORAGE", "gs://bucket/medray")
    with pytest.raises(ConfigError, match="install gcsfs"):
        train(tiny(image_folder))
    assert not (home / "runs").is_dir() or not list((home / "runs").iterdir())


def test_a_folder_that_is_not_there_deletes_nothing(storage: str, image_folder: Path, tmp_path: Path) -> None:
    folder = new_folder(tiny(image_folder))
    keep(folder, 1, 1.0)
    copy = Copy(folder, storage)
    copy.sync()
    before = set(there(folder))
    shutil.move(folder, tmp_path / "away")
    with pytest.raises(OSError, match=r"No such file|not there"):
        copy.sync()
    folder.mkdir()
    with pytest.raises(FileNotFoundError):
        copy.sync()
    assert set(there(folder)) == before


def test_what_another_machine_has_brought_further_is_taken_and_not_overwritten(
    storage: str, image_folder: Path, tmp_path: Path, home: Path
) -> None:
    experiment = tiny(image_folder)
    folder = new_folder(experiment)
    keep(folder, 1, 1.0)
    Copy(folder, storage).sync()
    shutil.copytree(folder, tmp_path / "elsewhere" / folder.name)
    (tmp_path / "elsewhere" / folder.name / offsite_store.NAME).unlink()
    other = Copy(tmp_path / "elsewhere" / folder.name, storage)
    keep(tmp_path / "elsewhere" / folder.name, 2, 2.0)
    time.sleep(0.4)
    other.sync()
    late = Copy(folder, storage)
    time.sleep(0.4)
    with pytest.raises(RunLocked, match="further"):
        late.sync()
    assert f"checkpoints/step-00000002/{SUMS}" in there(folder)
    time.sleep(0.4)
    bring_back(experiment)
    assert (folder / "checkpoints" / "step-00000002" / SUMS).is_file()
    (aside,) = (home / "runs" / ".older").iterdir()
    assert (aside / "checkpoints" / "step-00000001" / SUMS).is_file()


def test_a_run_is_one_machines_alone(storage: str, image_folder: Path, home: Path) -> None:
    experiment = tiny(image_folder)
    folder = new_folder(experiment)
    first = Copy(folder, storage)
    first.sync()
    shutil.move(folder, home / "elsewhere")
    beating = threading.Event()

    def beat() -> None:
        while not beating.wait(0.05):
            first._place.claim(first._me)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(RunLocked, match="is being run on"):
            bring_back(experiment)
    finally:
        beating.set()
        thread.join()
    bring_back(experiment)
    assert folder.is_dir(), "whoever says nothing any more has ended"


@pytest.mark.usefixtures("storage")
def test_folds_are_copied_too(image_folder: Path) -> None:
    experiment = override(
        tiny(image_folder),
        {"split.method": "auto", "train.folds": 2, "train.epochs": 1, "tracking.register_model": False},
    )
    result = train(experiment)
    results = [name for name in names() if name.endswith("/result.json")]
    assert len(results) == 3, results
    assert result["run"] in results[0]


@pytest.mark.usefixtures("storage")
def test_names_that_lead_elsewhere_and_folders_are_no_files(image_folder: Path, home: Path) -> None:
    client = boto3.client("s3")
    folder = new_folder(tiny(image_folder))
    shutil.rmtree(folder)
    client.put_object(Bucket=BUCKET, Key=f"medray/runs/{folder.name}/", Body=b"")
    client.put_object(Bucket=BUCKET, Key=f"medray/runs/{folder.name}/experiment.yaml", Body=b"x")
    client.put_object(Bucket=BUCKET, Key=f"medray/runs/{folder.name}/../../../../stolen", Body=b"x")
    with pytest.raises(StorageError, match="would lie outside"):
        bring(folder.name)
    client.delete_object(Bucket=BUCKET, Key=f"medray/runs/{folder.name}/../../../../stolen")
    bring(folder.name)
    assert [file.name for file in folder.iterdir()] == ["experiment.yaml"]
    assert not list(home.parent.rglob("stolen"))


def test_a_storage_that_does_not_answer_at_the_start_is_for_later(
    storage: str, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(StorageError, match=f"MEDRAY_STORAGE: {storage} cannot be read"):
        train(tiny(image_folder))
    monkeypatch.setattr(offsite, "PATIENCE_S", 0.0)
    once = override(tiny(image_folder), {"train.epochs": 1, "tracking.register_model": False})
    assert train(once, new=True)["tracked"], "a run that begins anew needs nothing of it"


def test_a_folder_on_another_disk_is_a_storage_too(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDRAY_STORAGE", str(tmp_path / "vault"))
    result = train(override(tiny(image_folder), {"train.epochs": 1, "tracking.register_model": False}))
    assert (tmp_path / "vault" / "runs" / result["run"] / "bundle" / "weights.safetensors").is_file()


def _break_off(experiment: Experiment, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """The process dies, as far as a test can: an error that nobody expects, after some epochs."""
    from medray.training import worker

    close = worker._Worker._close_epoch

    def close_some(self: Any, event: Any) -> None:
        close(self, event)
        if event.epoch == after:
            self.keeper.wait()
            raise SystemError("gone")

    with monkeypatch.context() as dying:
        dying.setattr(worker._Worker, "_close_epoch", close_some)
        with pytest.raises(SystemError):
            train(experiment, new=True)


def _empty() -> None:
    client = boto3.client("s3")
    for name in names():
        client.delete_object(Bucket=BUCKET, Key=name)


def _read(name: str) -> str:
    return str(boto3.client("s3").get_object(Bucket=BUCKET, Key=name)["Body"].read().decode())
