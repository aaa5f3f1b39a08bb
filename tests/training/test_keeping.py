"""What a run keeps: checkpoints that are whole or not there, rows in order, over disks that fill up and go away."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from medray.tracking import journal
from medray.training import checkpoint
from medray.training.checkpoint import State, StorageError
from medray.training.keeper import Keeper
from medray.training.world import World

OWN = State({"random/cpu": torch.arange(5, dtype=torch.uint8), "loss": torch.tensor(1.5)}, {"workers": 1})


def shared(step: int, size: int = 1000) -> State:
    return State({"network/w": torch.full((size,), float(step)), "best/w": torch.zeros(3)}, {"step": step})


@pytest.fixture
def keeper(tmp_path: Path) -> Keeper:
    return Keeper(tmp_path, World(), patience_s=5.0)


def names(folder: Path) -> list[str]:
    return [place.name for place in checkpoint.whole(folder)]


def test_what_was_written_comes_back(keeper: Keeper, tmp_path: Path) -> None:
    keeper.save("step-00000003", shared(3), OWN)
    place = keeper.wait()
    assert place == tmp_path / "checkpoints" / "step-00000003"
    saved = checkpoint.load(place)
    assert saved.shared.values == {"step": 3}
    assert torch.equal(saved.shared.tensors["network/w"], torch.full((1000,), 3.0))
    assert saved.own[0].values == {"workers": 1}
    assert {name: tensor.tolist() for name, tensor in saved.own[0].tensors.items()} == {
        "random/cpu": [0, 1, 2, 3, 4],
        "loss": 1.5,
    }
    assert not [
        file for file in place.iterdir() if file.suffix not in (".json", ".safetensors") and file.name != "SHA256SUMS"
    ]


def test_the_two_newest_are_kept(keeper: Keeper, tmp_path: Path) -> None:
    for step in range(1, 6):
        keeper.save(checkpoint.name_of(step), shared(step), OWN)
        keeper.wait()
    assert names(tmp_path) == ["step-00000005", "step-00000004"]
    keeper.save("finished", shared(5), OWN)
    keeper.insist()
    assert names(tmp_path) == ["finished", "step-00000005"]
    checkpoint.prune(tmp_path, 1)
    assert names(tmp_path) == ["finished"]


def test_a_row_is_on_the_disk_before_the_checkpoint_that_follows_it(
    keeper: Keeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = checkpoint.commit
    seen = []

    def looking(*arguments: object) -> None:
        seen.append(len(journal.epochs(tmp_path / journal.JOURNAL)))
        commit(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "commit", looking)
    for epoch in (1, 2):
        keeper.row({"epoch": float(epoch)})
        keeper.save(checkpoint.name_of(epoch), shared(epoch), OWN)
        keeper.wait()
    assert seen == [1, 2]


def test_a_disk_that_is_away_costs_nothing_and_nobody_waits_for_it(tmp_path: Path) -> None:
    """A file in the place of the folder stands for it."""
    keeper = Keeper(tmp_path / "run", World(), patience_s=60.0)
    (tmp_path / "run").touch()
    begun = time.monotonic()
    keeper.row({"epoch": 1.0})
    keeper.save("step-00000001", shared(1), OWN)
    assert time.monotonic() - begun < 0.5
    time.sleep(0.5)
    assert keeper.busy
    (tmp_path / "run").unlink()
    (tmp_path / "run").mkdir()
    keeper.insist()
    assert names(tmp_path / "run") == ["step-00000001"]
    assert [row["epoch"] for row in journal.epochs(tmp_path / "run" / journal.JOURNAL)] == [1]
    assert "can be written again" in (tmp_path / "run" / "notes.txt").read_text()


def test_a_disk_that_stays_away_is_said_and_ends_what_must_be_kept(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / "run", World(), patience_s=0.2)
    (tmp_path / "run").touch()
    keeper.save("step-00000001", shared(1), OWN)
    assert keeper.wait() is None, "the training goes on without it"
    keeper.row({"epoch": 1.0})
    with pytest.raises(StorageError, match=r"the journal cannot be written to .*run"):
        keeper.insist()


def test_no_checkpoint_is_made_before_the_rows_that_a_disk_did_not_take(
    keeper: Keeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, answers = journal.append, [False, False, True]

    def sometimes(file: Path, row: dict[str, float | None]) -> None:
        if not (answers.pop(0) if answers else True):
            raise OSError(errno.EIO, "away")
        append(file, row)

    monkeypatch.setattr(journal, "append", sometimes)
    monkeypatch.setattr(keeper, "_patience_s", 0.0)
    for epoch in (1, 2):
        keeper.row({"epoch": float(epoch)})
    with pytest.raises(StorageError, match="the journal cannot be written"):
        keeper.wait()
    keeper.save("step-00000002", shared(2), OWN)
    keeper.insist()
    assert [row["epoch"] for row in journal.epochs(tmp_path / journal.JOURNAL)] == [1, 2]
    assert names(tmp_path) == ["step-00000002"]


def test_a_full_disk_costs_the_new_checkpoint_and_never_the_old(
    keeper: Keeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper.save("step-00000001", shared(1), OWN)
    keeper.insist()
    commit = checkpoint.commit

    def full(partial: Path, *_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(partial))

    monkeypatch.setattr(checkpoint, "commit", full)
    keeper.save("step-00000002", shared(2), OWN)
    begun = time.monotonic()
    with pytest.raises(StorageError, match=r"the checkpoint cannot be written to .*No space left.*MiB are free"):
        keeper.insist()
    assert time.monotonic() - begun < 3
    assert names(tmp_path) == ["step-00000001"]
    assert not list((tmp_path / "checkpoints").glob("*.partial"))
    monkeypatch.setattr(checkpoint, "commit", commit)
    keeper.save("step-00000003", shared(3), OWN)
    keeper.insist()
    assert names(tmp_path) == ["step-00000003", "step-00000001"]


def test_room_is_looked_for_before_it_is_taken(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SPARE_BYTES", 1 << 62)
    monkeypatch.setattr(checkpoint, "write", lambda *_: pytest.fail("it was begun"))
    keeper.save("step-00000001", shared(1), OWN)
    with pytest.raises(StorageError, match=r"no room, it takes 4398046511104.0 MiB; \d+.\d MiB are free"):
        keeper.insist()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_checkpoint_holds_a_nan(keeper: Keeper, tmp_path: Path, value: float) -> None:
    state = shared(1)
    state.tensors["network/w"][7] = value
    keeper.save("step-00000001", state, OWN)
    with pytest.raises(FloatingPointError, match="network/w is not finite"):
        keeper.wait()
    assert names(tmp_path) == []


def test_the_same_step_again_takes_the_place_of_the_first(keeper: Keeper, tmp_path: Path) -> None:
    """A validation, or another trial's weights, may lie between."""
    for value in (1, 2):
        keeper.save("step-00000001", shared(value), OWN)
        keeper.insist()
    assert checkpoint.load(tmp_path / "checkpoints" / "step-00000001").shared.values == {"step": 2}
    assert [place.name for place in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_errors_of_the_disk_below_safetensors_are_errors_of_the_disk(
    keeper: Keeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    keeper.save("step-00000001", shared(1), OWN)
    with pytest.raises(StorageError, match="No space left on device"):
        keeper.insist()
    assert names(tmp_path) == []


def test_what_a_killed_writer_left_is_cleared_away(keeper: Keeper, tmp_path: Path) -> None:
    keeper.save("step-00000001", shared(1), OWN)
    keeper.insist()
    for name in ("step-00000002.abcd.partial", "step-00000003", "step-00000004.corrupt"):
        (tmp_path / "checkpoints" / name).mkdir()
    checkpoint.clear_partial(tmp_path)
    left = sorted(place.name for place in (tmp_path / "checkpoints").iterdir())
    assert left == ["step-00000001", "step-00000004.corrupt"]


def test_what_a_run_goes_on_without_is_forgotten(keeper: Keeper, tmp_path: Path) -> None:
    for step in (4, 9):
        keeper.save(checkpoint.name_of(step), shared(step), OWN)
        keeper.wait()
    checkpoint.forget(tmp_path, after=5)
    assert names(tmp_path) == ["step-00000004"]


def test_killed_at_any_moment_of_a_save_the_newest_is_whole(tmp_path: Path) -> None:
    """A child saves without end and is killed; 100 times in the benchmark of faults, 12 times here."""
    torch.set_num_threads(1)
    last = 0
    for round_ in range(12):
        pid = os.fork()
        if pid == 0:
            try:
                keeper = Keeper(tmp_path, World(), 5.0)
                for step in range(last + 1, last + 1000):
                    keeper.save(checkpoint.name_of(step), shared(step, 200_000), OWN)
                    keeper.insist()
            finally:
                os._exit(1)
        time.sleep(0.05 + 0.013 * round_)
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        newest = checkpoint.newest(tmp_path, pytest.fail)
        if newest is not None:
            found = checkpoint.load(newest).shared
            assert checkpoint.step_of(newest) == found.values["step"] >= last
            assert bool((found.tensors["network/w"] == found.values["step"]).all())
            last = int(found.values["step"])
    assert last > 12
    checkpoint.clear_partial(tmp_path)
    assert not list((tmp_path / "checkpoints").glob("*.partial"))


def test_a_torn_line_of_the_journal_costs_that_line_alone(tmp_path: Path) -> None:
    file = tmp_path / journal.JOURNAL
    journal.append(file, {"epoch": 1.0})
    with file.open("ab") as stream:
        stream.write(b'{"epoch": 2.0, "lo')
    journal.append(file, {"epoch": 2.0})
    journal.append(file, {"epoch": 3.0})
    assert [row["epoch"] for row in journal.read(file)[0]] == [1, 2, 3]


def test_of_an_epoch_that_was_done_again_the_later_row_counts(tmp_path: Path) -> None:
    file = tmp_path / journal.JOURNAL
    for epoch, loss in ((1, 0.9), (2, 0.8), (3, 0.7), (2, 0.81), (3, 0.71), (4, 0.6)):
        journal.append(file, {"epoch": float(epoch), "loss": loss})
    assert [(row["epoch"], row["loss"]) for row in journal.epochs(file)] == [(1, 0.9), (2, 0.81), (3, 0.71), (4, 0.6)]
