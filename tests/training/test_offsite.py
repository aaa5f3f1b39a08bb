"""Runs copied to an object store while they are run: nothing there is whole that is not; another machine goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from conftest import tiny
from object_store import BUCKET, names, served

from medray.config import ConfigError, Experiment, override
from medray.training import checkpoint, offsite
from medray.training.checkpoint import SUMS, State
from medray.training.folder import new_folder
from medray.training.offsite import Copy, bring, bring_back, copied
from medray.training.train import train


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[str]:  # noqa: ARG001
    with served(monkeypatch) as url:
        monkeypatch.setenv("MEDRAY_STORAGE", f"{url}/medray/")
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
    copy._fs = fs = Recorded(copy._fs)
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
    again._fs = fs = Recorded(again._fs)
    again.sync()
    assert "put checkpoints/step-00000001/network.safetensors" not in fs.acts
    shutil.rmtree(folder)
    assert bring(folder.name)
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
    assert said.count("cannot be written: ConnectionError: no route to host; the run goes on") == 1
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
