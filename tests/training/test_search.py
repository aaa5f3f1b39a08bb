"""The search's settings, without a cluster: what is drawn, how many at once, who is stopped and when."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import tiny
from ray.tune.experiment import Experiment as Study

from medray import cluster
from medray.config import Experiment, override
from medray.training import search


@pytest.fixture
def base(image_folder: Path) -> Experiment:
    return tiny(image_folder, train={"epochs": 9})


def study(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the search hands to Ray Tune: trainable, param_space, tune_config, run_config."""
    found = SimpleNamespace()

    def tuner(trainable: Any, **settings: Any) -> SimpleNamespace:
        found.__dict__.update(settings, trainable=trainable)
        return SimpleNamespace(fit=lambda: None)

    monkeypatch.setattr(search.tune, "Tuner", tuner)
    space = search.parameter_space(experiment)
    search._run_trials(experiment, None, space, cluster.Allotment(1, 1.0, False), Path("run"))  # type: ignore[arg-type]
    return found


def trials(found: SimpleNamespace, folder: Path) -> list[dict[str, Any]]:
    """The settings of the trials that start before any has ended."""
    settings = found.tune_config
    study = Study(
        "tune", found.trainable, config=found.param_space, num_samples=settings.num_samples, storage_path=str(folder)
    )
    settings.search_alg.add_configurations([study])
    started = []
    while (trial := settings.search_alg.next_trial()) is not None:
        started.append(trial.config)
    return started


@pytest.mark.parametrize(
    ("entry", "allowed"),
    [
        ({"uniform": [0.2, 0.4]}, lambda value: 0.2 <= value <= 0.4),
        ({"loguniform": [0.2, 0.4]}, lambda value: 0.2 <= value <= 0.4),
        ({"choice": [0.1, 0.7]}, lambda value: value in (0.1, 0.7)),
    ],
    ids=str,
)
def test_numbers_are_drawn_as_the_space_says(base: Experiment, entry: dict[str, Any], allowed: Any) -> None:
    found = search.parameter_space(override(base, {"tune.space": {"optimizer.lr": entry}}))["optimizer.lr"]
    drawn = found.sample(size=50, random_state=0)
    assert all(allowed(value) for value in drawn)
    assert len(set(drawn)) == (2 if "choice" in entry else 50)


def test_uniform_is_even_and_loguniform_even_in_the_logarithm(base: Experiment) -> None:
    entries = {"optimizer.lr": {"uniform": [0.001, 1]}, "optimizer.weight_decay": {"loguniform": [0.001, 1]}}
    space = search.parameter_space(override(base, {"tune.space": entries}))
    below = {key: sum(value < 0.1 for value in space[key].sample(size=600, random_state=0)) for key in space}
    assert below["optimizer.lr"] == pytest.approx(60, abs=25)
    assert below["optimizer.weight_decay"] == pytest.approx(400, abs=40)


def test_randint_draws_whole_numbers_that_the_experiment_takes(base: Experiment) -> None:
    space = search.parameter_space(override(base, {"tune.space": {"train.batch_size": {"randint": [4, 8]}}}))
    drawn = {space["train.batch_size"].sample(random_state=seed) for seed in range(50)}
    assert drawn == {4, 5, 6, 7}
    assert {override(base, {"train.batch_size": value}).train.batch_size for value in drawn} == drawn


def test_the_seed_decides_what_is_drawn(base: Experiment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn = []
    for seed in (0, 0, 1):
        cfg = override(base, {"tune.seed": seed, "tune.concurrent": 4, "tune.trials": 4})
        drawn.append(trials(study(cfg, monkeypatch), tmp_path))
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    assert [set(settings) for settings in drawn[0]] == 4 * [{"optimizer.lr", "optimizer.weight_decay"}]


@pytest.mark.parametrize(("asked", "count", "started"), [(2, 5, 2), (3, 5, 3), (4, 3, 3)])
def test_so_many_trials_run_at_once(
    base: Experiment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: int, count: int, started: int
) -> None:
    cfg = override(base, {"tune.concurrent": asked, "tune.trials": count})
    assert len(trials(study(cfg, monkeypatch), tmp_path)) == started


@pytest.mark.parametrize(("asked", "cpus"), [(1, 8), (2, 4), (4, 2), (99, 1)])
def test_trials_that_run_at_once_share_the_cpus(
    base: Experiment, monkeypatch: pytest.MonkeyPatch, asked: int, cpus: int
) -> None:
    monkeypatch.setattr(cluster, "resources", lambda: (8.0, 0))
    monkeypatch.setattr(cluster, "nodes", lambda: [8.0])
    scaling = {"workers": 1, "cpus_per_worker": "auto"}
    allotment = search._allot_trials(override(base, {"tune.concurrent": asked, "scaling": scaling}))
    assert allotment == cluster.Allotment(1, cpus, False)


@pytest.mark.parametrize(
    ("grace", "reduction", "score", "stopped"),
    [
        (1, 2, 0.5, 1),
        (4, 2, 0.5, 4),
        (4, 4, 2.0, 4),
        (4, 2, 2.0, None),
        (20, 2, 0.5, 9),
    ],
)
def test_a_weak_trial_is_stopped_after_its_grace(
    base: Experiment, monkeypatch: pytest.MonkeyPatch, grace: int, reduction: int, score: float, stopped: int | None
) -> None:
    """After four trials with scores 0 to 3: reduction 2 keeps the better half, 4 the best quarter."""
    cfg = override(base, {"tune.grace_epochs": grace, "tune.reduction": reduction})
    settings = study(cfg, monkeypatch).tune_config
    scheduler = settings.scheduler
    scheduler.set_search_properties(settings.metric, settings.mode)

    def end_of(name: str, value: float) -> int | None:
        """The epoch at which a trial with this score is stopped."""
        trial = SimpleNamespace(trial_id=name)
        scheduler.on_trial_add(None, trial)
        for epoch in range(1, cfg.train.epochs + 1):
            result = {"training_iteration": epoch, "score": value}
            if scheduler.on_trial_result(None, trial, result) == scheduler.STOP:
                return epoch
        return None

    assert [end_of(f"trial{value}", value) for value in range(4)] == 4 * [None]
    assert end_of("weak", score) == stopped
