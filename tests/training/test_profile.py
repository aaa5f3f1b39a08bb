"""What `train.profile` leaves, and that it changes nothing else."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw_folder, tiny
from torch import distributed, multiprocessing

from medray.cluster import Allotment
from medray.config import Experiment
from medray.pipeline.prepare import Prepared, prepare
from medray.tracking import journal
from medray.training import profile as profiles
from medray.training.alone import train_alone
from medray.training.checkpoint import CHECKPOINTS, FINISHED, load
from medray.training.learner import Learner, unmarked
from medray.training.loop import EpochDone, StepDone, fit
from medray.training.notes import NOTES
from medray.training.profile import PLACE, Plan, planned, profiled
from medray.training.profile_table import OPERATORS, PAGE, PARTS, TABLE, TRACE, lines_of, parts_of
from medray.training.progress import Progress
from medray.training.worker import Quiet, work
from medray.training.world import World, joined_world

RANDOM = {"flip": {"p": 0.5, "axes": [0, 1]}, "noise": {"p": 1, "std": 0.1}}


def on(epochs: int, **more: Any) -> dict[str, Any]:
    return {"epochs": epochs, "batch_size": 8, "precision": "fp32", "profile": True, **more}


def table_in(folder: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((folder / PLACE / TABLE).read_text())
    return table


def names_in(folder: Path) -> list[str]:
    trace = json.loads(gzip.decompress((folder / PLACE / TRACE).read_bytes()))
    return [event["name"] for event in trace["traceEvents"]]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 9, 20, 60, 10_000])
def test_a_plan_fits_into_its_training(steps: int) -> None:
    plan = planned(steps)
    assert plan.untraced + plan.traced <= steps
    assert plan.timed >= 1
    assert plan.traced >= 1 or steps < 2
    assert steps < 60 or plan == Plan(5, 10, 20, 10)


def test_parts_add_up_and_a_missing_one_has_no_row() -> None:
    steps = [{"wait": 0.001, "forward": 0.002}, {"wait": 0.003, "forward": 0.002}, {"wait": 0.002, "forward": 0.002}]
    parts = parts_of(steps)
    assert list(parts) == ["wait", "forward", "step"]
    assert parts["wait"]["median_ms"] == pytest.approx(2)
    assert parts["step"]["mean_ms"] == pytest.approx(4)
    assert parts["wait"]["share"] + parts["forward"]["share"] == pytest.approx(1)


def test_a_training_leaves_trace_table_and_lines(image_folder: Path, stores: Path, tmp_path: Path) -> None:
    """24 cases to train on are three steps an epoch: the profile reaches over many."""
    experiment = tiny(image_folder, train=on(20), augment=RANDOM)
    outcome = train_alone(experiment, prepare(experiment, stores), tmp_path, Allotment(1, 1, gpu=False))
    table, place = table_in(tmp_path), tmp_path / PLACE
    assert table["steps"] == [15, 34]
    assert set(table["parts"]) == {*PARTS, "step"} - {"reduce"}
    parts = {name: row["mean_ms"] for name, row in table["parts"].items()}
    assert sum(parts.values()) - parts["step"] == pytest.approx(parts["step"], rel=0.01)
    assert all(value >= 0 for value in parts.values())
    assert table["cases_per_s"] == pytest.approx(8 / table["step_s"])
    names = names_in(tmp_path)
    assert names.count(PARTS["forward"]) == 3, "an epoch's end ends the trace"
    assert "aten::convolution" in names
    assert "aten::convolution" in (place / OPERATORS).read_text()
    assert f"| {PARTS['backward']} |" in (place / PAGE).read_text()
    assert sorted(file.name for file in place.iterdir()) == sorted([TRACE, OPERATORS, TABLE, PAGE])
    assert "case0" not in (place / PAGE).read_text() + json.dumps(names)
    said = (tmp_path / NOTES).read_text().splitlines()
    assert set(lines_of(table)) < set(said)
    assert len({len(line) for line in said if " ms " in line and line.endswith("%")}) == 1, "columns"
    rows = outcome.history
    assert sum("profile/forward_ms" in row for row in rows) == 1
    assert "profile/epoch_s" in rows[2]
    assert "profile/epoch_s" not in rows[-1]


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_short_training_is_profiled_as_far_as_it_goes(
    image_folder: Path, stores: Path, tmp_path: Path, epochs: int
) -> None:
    experiment = tiny(image_folder, train=on(epochs))
    train_alone(experiment, prepare(experiment, stores), tmp_path, Allotment(1, 1, gpu=False))
    assert table_in(tmp_path)["parts"]["step"]["mean_ms"] > 0
    assert PARTS["forward"] in names_in(tmp_path)


def test_it_changes_no_loss_no_weight_and_no_draw(image_folder: Path, stores: Path, tmp_path: Path) -> None:
    states = []
    for profile in (False, True):
        folder = tmp_path / str(profile)
        folder.mkdir()
        network = {"name": "plain", "widths": [8, 8], "norm": "batch", "dropout": 0.3}
        train = on(16) | {"profile": profile}
        experiment = tiny(image_folder, train=train, augment=RANDOM, network=network)
        train_alone(experiment, prepare(experiment, stores), folder, Allotment(1, 1, gpu=False))
        losses = [row["train/loss"] for row in journal.epochs(folder / journal.JOURNAL)]
        states.append((losses, load(folder / CHECKPOINTS / FINISHED), torch.get_rng_state()))
        assert (folder / PLACE / TRACE).exists() == profile
    (plain, before, draws), (same, after, same_draws) = states
    assert plain == same
    assert torch.equal(draws, same_draws)
    assert before.shared.tensors.keys() == after.shared.tensors.keys()
    assert all(torch.equal(tensor, after.shared.tensors[name]) for name, tensor in before.shared.tensors.items())


def test_without_it_nobody_hears_the_loop(image_folder: Path, stores: Path, tmp_path: Path) -> None:
    experiment = tiny(image_folder)
    one = Learner(experiment, prepare(experiment, stores), World())
    with profiled(one, tmp_path) as profile:
        assert profile is None
        assert one.mark is unmarked


def test_it_is_over_once_the_trace_is_written(image_folder: Path, stores: Path, tmp_path: Path) -> None:
    experiment = tiny(image_folder, train=on(3))
    prepared = prepare(experiment, stores)
    one = Learner(experiment, prepared, World())
    with profiled(one, tmp_path) as profile:
        for event in fit(one):
            if isinstance(event, EpochDone) and event.epoch == 3:
                assert profile is not None
                assert "profile/epoch_s" in profile.figures(event.metrics)
                assert one.mark is unmarked
    with profiled(Learner(experiment, prepared, World()), tmp_path) as again:
        assert again is None, "the folder has its trace"


def test_one_that_is_broken_off_within_the_trace_is_done_again(
    image_folder: Path, stores: Path, tmp_path: Path
) -> None:
    experiment = tiny(image_folder, train=on(20))
    prepared = prepare(experiment, stores)
    one = Learner(experiment, prepared, World())
    with profiled(one, tmp_path) as profile:
        assert profile is not None
        next(event for event in fit(one) if isinstance(event, StepDone) and profile._tracer is not None)
    assert (tmp_path / PLACE / TABLE).is_file()
    assert not (tmp_path / PLACE / TRACE).exists()
    with profiled(one, tmp_path) as again:
        assert again is not None
        for _ in fit(one):
            pass
    assert PARTS["forward"] in names_in(tmp_path)


def test_a_gpu_is_waited_for_at_the_borders_of_timed_steps_alone(
    image_folder: Path, stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a GPU that is none: its timed steps are not what others will take, and not what the forecast is made of."""
    waited: list[int] = []
    experiment = tiny(image_folder, train=on(20))
    one = Learner(experiment, prepare(experiment, stores), World())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: waited.append(one.step))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "none")
    with profiled(one, tmp_path) as profile:
        assert profile is not None
        profile._gpu = True
        rows = [profile.figures(event.metrics) for event in fit(one) if isinstance(event, EpochDone)]
    # The eighth border of a step is the next one's beginning; evaluations end at a border too.
    assert set(waited) == set(range(15, 36))
    assert all(waited.count(step) >= 7 for step in range(16, 35))
    steady = table_in(tmp_path)["step_s"]
    assert table_in(tmp_path)["device"] == "none"
    assert rows[6] == {}, "timed steps alone, and no table yet"
    assert rows[12]["profile/epoch_s"] > 3 * steady, "traced steps alone: its validation, and steps as they are"
    assert rows[13] == {}


def test_a_disk_that_does_not_take_it_ends_nothing(
    image_folder: Path, stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(profiles, "write_table", full)
    monkeypatch.setattr(profiles, "write_trace", full)
    experiment = tiny(image_folder, train=on(2))
    train_alone(experiment, prepare(experiment, stores), tmp_path, Allotment(1, 1, gpu=False))
    assert (tmp_path / NOTES).read_text().count("cannot be written: No space left") == 2


def test_what_is_left_is_foretold_without_start_and_profiler(
    image_folder: Path, stores: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(0.0)
    experiment = tiny(image_folder, train=on(11))
    progress.announce(experiment, prepare(experiment, stores), Allotment(1, 1, gpu=False))
    row = {"epoch": 1.0, "epoch_s": 100.0, "profile/epoch_s": 6.0, "samples_per_s": 1.0, "train/loss": 1.0}
    progress.epoch(row)
    assert "100.0 s" in (said := capsys.readouterr().err)
    assert "1:00 left" in said


def _worker(rank: int, port: int, prepared: Prepared, experiment: Experiment, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    assert work(experiment, prepared, joined_world(torch.device("cpu")), folder, Quiet())
    distributed.barrier()
    distributed.destroy_process_group()
    # Gloo's threads may outlive the interpreter's teardown and abort a process that has done its work.
    os._exit(0)


def test_two_workers_have_one_trace_and_a_row_for_what_they_wait_for_each_other(tmp_path: Path) -> None:
    experiment = tiny(draw_folder(tmp_path / "images"), train=on(16, accumulate=2), scaling={"workers": 2})
    prepared = prepare(experiment, tmp_path / "stores")
    folder = tmp_path / "run"
    folder.mkdir()
    port = 20_000 + os.getpid() % 20_000 + 3
    multiprocessing.spawn(_worker, (port, prepared, experiment, folder), nprocs=2)
    table = table_in(folder)
    assert len(table["wait_ms_by_worker"]) == 2
    assert set(table["parts"]) == {*PARTS, "step"}
    assert table["parts"]["reduce"]["mean_ms"] > 0
    shares = [row["share"] for name, row in table["parts"].items() if name != "step"]
    assert np.sum(shares) == pytest.approx(1)
    assert [file.name for file in (folder / PLACE).glob("*.gz")] == [TRACE]
    assert any("gloo:all_reduce" in name for name in names_in(folder))
