"""Who stops a training, wakes it, and keeps others out of its folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import tiny

from medray.config import ConfigError
from medray.networks import memory
from medray.sections.training import rhythm_of
from medray.training import folder as folders
from medray.training.folder import RunLocked, interrupted, locked, new_folder
from medray.training.loop import Wish
from medray.training.watch import Watch


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("30 s", (30, "s")),
        ("1.5min", (90, "s")),
        ("2 h", (7200, "s")),
        ("500 steps", (500, "step")),
        ("1 step", (1, "step")),
        ("3 epochs", (3, "epoch")),
        ("never", None),
    ],
)
def test_a_rhythm_is_seconds_steps_or_epochs(text: str, found: tuple[float, str] | None) -> None:
    assert rhythm_of(text) == found


@pytest.mark.parametrize("text", ["", "often", "0 s", "-1 s", "1.5 steps", "5", "1e3 s"])
def test_what_is_no_rhythm_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"checkpoint_every: (write 30 s, 5 min|steps and epochs are)"):
        tiny(tmp_path, train={"checkpoint_every": text})


def a_learner(step: int = 0, epoch: int = 0, rank: int = 0) -> Any:
    return SimpleNamespace(step=step, epoch=epoch, world=SimpleNamespace(rank=rank, any=lambda flag: flag))


def test_a_checkpoint_is_due_by_the_clock_of_rank_0(tmp_path: Path) -> None:
    first, other = (Watch(tmp_path, a_learner(rank=rank), (0.05, "s"), lambda: False) for rank in (0, 1))
    assert not first().save
    time.sleep(0.06)
    assert first() == Wish(save=True)
    assert other() == Wish()
    first.saved()
    assert not first().save


def test_a_checkpoint_is_due_by_steps_after_the_one_that_was_taken(tmp_path: Path) -> None:
    learner = a_learner()
    watch = Watch(tmp_path, learner, (3, "step"), lambda: True)
    due = []
    for learner.step in range(8):
        wish = watch()
        assert wish.busy
        due.append(wish.save)
        if learner.step == 4:  # the loop counts the step, then has the checkpoint taken: later than it was due
            learner.step += 1
            watch.saved()
    assert due == [False, False, True, True, True, False, False, True]


def test_a_file_in_the_folder_stops_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medray.training.watch.LOOK_S", 0.0)
    watch = Watch(tmp_path, a_learner(), None, lambda: False)
    assert not watch().stop
    (tmp_path / "stop").touch()
    assert watch().stop


def test_a_worker_that_stands_still_writes_down_where_and_ends(tmp_path: Path) -> None:
    with python(
        """
        import sys, time
        from pathlib import Path
        from medray.training.watch import awake
        begun = time.monotonic()
        def waits_for_ever():
            time.sleep(60)
        with awake(Path(sys.argv[1]), 3, 1.0, lambda: max(begun, 0)):
            waits_for_ever()
        """,
        str(tmp_path),
    ) as process:
        assert process.wait(timeout=40) == 75
        (stacks,) = (tmp_path / "stacks").glob("*-rank3.txt")
        assert "waits_for_ever" in stacks.read_text()
        assert "worker 3 has not moved for" in (tmp_path / "notes.txt").read_text()


def test_a_worker_that_moves_is_left_alone(tmp_path: Path) -> None:
    from medray.training.watch import awake

    with awake(tmp_path, 0, 0.2, time.monotonic):
        time.sleep(0.6)
    assert not (tmp_path / "stacks").exists()


STOPPABLE = """
    import signal, sys, time
    from pathlib import Path
    from medray.training.stopping import stoppable
    signal.signal(signal.SIGINT, signal.default_int_handler)
    def ended(*_): sys.exit(75)
    signal.signal(signal.SIGTERM, ended)
    folder = Path(sys.argv[1])
    with stoppable(float(sys.argv[3]) if sys.argv[3:] else 60) as stopping:
        with stopping.guarded(folder):
            print("ready", flush=True)
            while not (folder / "stop").exists() or sys.argv[2] == "deaf":
                time.sleep(0.01)
        print("saved", flush=True)
        stopping.deliver()
    print("not reached")
"""


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, -2)])
def test_a_signal_is_delivered_when_the_training_has_saved(tmp_path: Path, kind: signal.Signals, code: int) -> None:
    with python(STOPPABLE, str(tmp_path), "hears") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(kind)
        out, said = process.communicate(timeout=30)
        assert out == "saved\n"
        assert process.returncode in (code, 130, 1), said
        assert f"{kind.name}: saving a checkpoint" in said
        assert ("KeyboardInterrupt" in said) == (kind == signal.SIGINT)
        assert not (tmp_path / "stop").exists()


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    with python(STOPPABLE, str(tmp_path), "deaf") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert "saving a checkpoint" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 75
        assert process.stdout.read() == ""


def test_a_training_that_does_not_stop_is_ended(tmp_path: Path) -> None:
    with python(STOPPABLE, str(tmp_path), "deaf", "0.5") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 75
        assert process.stdout.read() == ""


def test_a_run_is_one_process_s_alone(tmp_path: Path) -> None:
    refused = pytest.raises(RunLocked, match=rf"is being run by process {os.getpid()} on .*--new")
    with locked(tmp_path), refused, locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_lock_goes_with_its_process(tmp_path: Path) -> None:
    with python(
        """
        import sys, time
        from pathlib import Path
        from medray.training.folder import locked
        with locked(Path(sys.argv[1])):
            print("locked", flush=True)
            time.sleep(60)
        """,
        str(tmp_path),
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(RunLocked), locked(tmp_path):
            pass
        process.kill()
        process.wait()
        with locked(tmp_path):
            pass


def test_the_same_experiment_finds_its_interrupted_run(home: Path, tmp_path: Path) -> None:
    mine, other = tiny(tmp_path), tiny(tmp_path, train={"epochs": 7})

    def any_kind(folder: Path) -> bool:
        return folder.is_dir()

    assert interrupted(mine, any_kind) is None
    first = new_folder(mine)
    os.utime(first / folders.EXPERIMENT, (1, 1))
    second = new_folder(mine)
    assert first.parent == home / "runs"
    assert interrupted(mine, any_kind) == second
    assert interrupted(mine, lambda folder: folder == first) == first
    assert interrupted(other, any_kind) is None
    (second / folders.FAILURE).write_text("StorageError: the disk was full")
    assert interrupted(mine, any_kind) == second
    (second / folders.FAILURE).write_text("NonFiniteLoss: at step 3")
    assert interrupted(mine, any_kind) is None, "nor is one that was left for it gone on with"


@pytest.mark.parametrize(
    ("error", "ran_out"),
    [
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_what_ran_out_of_memory_is_told_from_other_errors(error: Exception, ran_out: bool) -> None:
    assert memory.ran_out(error) == ran_out
    need = memory.Memory(1 << 30, 1 << 30, 1 << 30, 0)
    said = memory.explain(error, need, "cpu")
    assert "a step was thought to need" in said
    assert "lower train.batch_size" in said
