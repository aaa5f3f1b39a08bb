"""What one trial of a search takes of the machine, and how many run at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import tiny

from medray import cluster
from medray.cluster import Allotment
from medray.config import ConfigError
from medray.tuning.study import allot_trials

AUTO = {"workers": "auto", "cpus_per_worker": "auto"}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine of so many CPUs and GPUs."""

    def has(cpus: float, gpus: int) -> None:
        monkeypatch.setattr(cluster, "resources", lambda: (cpus, gpus))
        monkeypatch.setattr(cluster, "nodes", lambda: [cpus])

    return has


def allotted(scaling: dict[str, Any], **tune: Any) -> tuple[Allotment, int]:
    return allot_trials(tiny(Path("images"), scaling=scaling, tune=tune))


@pytest.mark.parametrize(("asked", "share", "cpus"), [(1, 1, 8), (2, 2, 4), (3, 3, 2), (4, 4, 2), (99, 8, 1)])
def test_trials_that_run_at_once_share_the_cpus(machine: Any, asked: int, share: int, cpus: int) -> None:
    machine(8.0, 0)
    assert allotted(AUTO, concurrent=asked) == (Allotment(1, cpus, False), share)


@pytest.mark.parametrize(("each", "share"), [(1, 4), (3, 2), (8, 1)])
def test_no_more_trials_run_than_have_the_cpus_that_were_asked_for(machine: Any, each: int, share: int) -> None:
    machine(8.0, 0)
    found = allotted({"workers": 1, "cpus_per_worker": each}, concurrent=4)
    assert found == (Allotment(1, each, False), share)


def test_a_trial_that_the_machine_can_never_give_its_cpus_is_refused(machine: Any) -> None:
    machine(8.0, 0)
    with pytest.raises(ConfigError, match="1 workers of 9 CPUs were asked for; the cluster has 8 CPUs"):
        allotted({"workers": 1, "cpus_per_worker": 9})


@pytest.mark.parametrize(("asked", "share"), [(1, 1), (2, 2), (9, 2)])
def test_each_trial_has_a_gpu_where_there_are_any(machine: Any, asked: int, share: int) -> None:
    machine(8.0, 2)
    assert allotted(AUTO, concurrent=asked) == (Allotment(1, 8 // share, True), share)


def test_trials_run_on_cpus_where_the_gpu_is_declined(machine: Any) -> None:
    machine(8.0, 2)
    assert allotted({**AUTO, "gpu": False}, concurrent=4) == (Allotment(1, 2, False), 4)


@pytest.mark.parametrize(("asked", "share"), [(2, 2), (4, 4), (9, 4)])
def test_trials_can_share_a_gpu(machine: Any, asked: int, share: int) -> None:
    machine(8.0, 2)
    assert allotted(AUTO, concurrent=asked, trials_per_gpu=2) == (Allotment(1, 8 // share, True), share)


def test_trials_of_several_workers_share_what_there_is(machine: Any) -> None:
    machine(8.0, 0)
    assert allotted({**AUTO, "workers": 2}, concurrent=2) == (Allotment(2, 2, False), 2)


@pytest.mark.parametrize(
    ("tune", "reason"),
    [
        ({"scheduler": "pbt"}, "scheduler pbt hands checkpoints from trial to trial"),
        ({"scheduler": "hyperband"}, "scheduler hyperband hands checkpoints from trial to trial"),
        ({"trials_per_gpu": 2}, "tune.trials_per_gpu: is for trials of one worker"),
    ],
    ids=str,
)
def test_what_trials_of_several_workers_cannot_do_is_refused(machine: Any, tune: dict[str, Any], reason: str) -> None:
    machine(8.0, 2)
    with pytest.raises(ConfigError) as caught:
        allotted({**AUTO, "workers": 2}, **tune)
    assert reason in str(caught.value)
