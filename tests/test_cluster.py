"""Ray's front door: what the cluster has, what a training takes of it, work in parallel, the launcher file."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from medray import cluster
from medray.config import ConfigError
from medray.sections.training import ScalingSection


def allot(cpus: float, gpus: int, share: int = 1, **scaling: object) -> cluster.Allotment:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "resources", lambda: (cpus, gpus))
        patch.setattr(cluster, "nodes", lambda: [cpus])
        return cluster.allot(ScalingSection.model_validate(scaling), share)


def test_auto_takes_what_there_is() -> None:
    assert allot(8, 0) == cluster.Allotment(1, 8, False)
    assert allot(16, 4) == cluster.Allotment(4, 4, True)
    assert allot(16, 4, gpu=False) == cluster.Allotment(1, 16, False)
    assert allot(8, 0, workers=3) == cluster.Allotment(3, 2, False)
    assert allot(8, 4, share=2) == cluster.Allotment(2, 2, True)
    assert allot(2, 0, share=4) == cluster.Allotment(1, 0.5, False)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        (
            {"workers": 2, "cpus_per_worker": 8, "gpu": False},
            "2 workers of 8 CPUs were asked for; the cluster has 4 CPUs",
        ),
        ({"workers": 2, "gpu": True}, "2 workers with a GPU each were asked for; the cluster has 1 GPUs"),
    ],
)
def test_what_can_never_be_given_is_said_at_once(scaling: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        allot(4, 1, **scaling)


def test_no_worker_is_torn_between_nodes() -> None:
    assert cluster._even_cpus([8, 4], 1) == 8
    assert cluster._even_cpus([8, 4], 3) == 4
    assert cluster._even_cpus([2, 2, 16], 2) == 8
    assert cluster._even_cpus([2], 4) == 0.5


def test_home_is_absolute_and_moves_with_its_variable(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster.home() == home
    monkeypatch.delenv("MEDRAY_HOME")
    assert cluster.home() == Path.home() / "medray"


def test_the_environment_keeps_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY")
    cluster.prepare_environment()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_short_work_stays_in_this_process() -> None:
    import ray

    found = list(cluster.parallel_map(lambda item: (item, os.getpid()), range(5)))
    assert found == [(item, os.getpid()) for item in range(5)]
    assert not ray.is_initialized()


@pytest.mark.slow
def test_long_work_is_spread_in_order_and_errors_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(cluster, "LOCAL_PATIENCE_S", 0.0)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    try:
        # A partial: what is called need not be a function.
        found = list(
            cluster.parallel_map(partial(lambda item, process: (item, process()), process=os.getpid), range(40))
        )
        assert [item for item, _ in found] == list(range(40))
        assert os.getpid() not in {process for _, process in found}
        with pytest.raises(ZeroDivisionError):
            list(cluster.parallel_map(lambda item: 1 // (item - 5), range(10)))
    finally:
        ray.shutdown()
