"""A study in MLflow: one parent, a run per trial, and nothing doubled or lost by restarts and failures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import tiny

from medray.config import Experiment
from medray.tracking import journal
from medray.tracking.run import PARENT, client
from medray.tuning import mirror as mirrors
from medray.tuning.mirror import STUDY, TAG, Mirror
from medray.tuning.trials import JOURNAL, Trial, folder_of, load_all, save

pytestmark = pytest.mark.usefixtures("database")
PREPARED: Any = SimpleNamespace(
    fingerprint="data", split_fingerprint="split", split=SimpleNamespace(method="fraction"), refused=()
)
MEASURED = {"val/auroc": 0.75, "best_epoch": 2.0}


@pytest.fixture(autouse=True)
def revision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking git is not what is tested."""
    monkeypatch.setattr("medray.training.provenance.revision", lambda: "0" * 40)


@pytest.fixture
def experiment() -> Experiment:
    return tiny(Path("images"))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-20260101"
    folder.mkdir()
    return folder


def epochs(study: Path, index: int, rows: dict[int, float], *, again: bool = False) -> None:
    """Write rows as the trial's own process does."""
    folder_of(study, index).mkdir(parents=True, exist_ok=True)
    for epoch, value in rows.items():
        row = {"epoch": epoch, "val/auroc": value, "val/gone": None, "at/worker": 1.7e9, "twice": float(again)}
        journal.append(folder_of(study, index) / JOURNAL, row)


def four_trials(study: Path) -> None:
    """Finished, stopped, failed, running."""
    save(study, Trial(0, {}, {}, "finished", measured=MEASURED))
    epochs(study, 0, {1: 0.5, 2: 0.75, 3: 0.7})
    save(study, Trial(1, {"optimizer.lr": 0.02}, {"optimizer.lr": 0.02}, "stopped"))
    epochs(study, 1, {1: 0.4, 2: 0.41})
    save(study, Trial(2, {"optimizer.lr": 90.0}, {"optimizer.lr": 90.0}, "failed", "NonFiniteLoss: inf"))
    epochs(study, 2, {1: 0.3})
    save(study, Trial(3, {"network": {"name": "plain", "widths": [8]}}, {"network": "plain"}, "running"))
    epochs(study, 3, {1: 0.5, 2: 0.6})


def mirror(experiment: Experiment, study: Path) -> Mirror:
    """The mirror of a start, which begins with all trials."""
    return Mirror(experiment, study, PREPARED, set(load_all(study)))


@dataclass
class Copied:
    """A trial in MLflow."""

    status: str
    tags: dict[str, str]
    params: dict[str, str]
    history: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Metric -> (step, value) of each entry."""


def parents(experiment: Experiment, study: Path) -> list[Any]:
    mlflow = client(None)
    found = mlflow.get_experiment_by_name(experiment.name)
    return list(mlflow.search_runs([found.experiment_id], f"tags.`{STUDY}` = '{study.name}'"))


def copied(experiment: Experiment, study: Path) -> dict[int, Copied]:
    """All trials of the study in MLflow; exactly one run each, below exactly one parent."""
    mlflow = client(None)
    (parent,) = parents(experiment, study)
    found: dict[int, Copied] = {}
    for run in mlflow.search_runs([parent.info.experiment_id], f"tags.`{PARENT}` = '{parent.info.run_id}'"):
        index = int(run.data.tags[TAG])
        assert index not in found, f"trial {index} has two runs"
        history = {
            name: sorted((point.step, point.value) for point in mlflow.get_metric_history(run.info.run_id, name))
            for name in run.data.metrics
        }
        found[index] = Copied(run.info.status, dict(run.data.tags), dict(run.data.params), history)
    return found


def test_a_study_is_one_run_with_a_nested_run_per_trial(experiment: Experiment, study: Path) -> None:
    four_trials(study)
    mirror(experiment, study).sync()
    (parent,) = parents(experiment, study)
    assert parent.info.status == "RUNNING"
    assert parent.data.tags["mlflow.runName"] == study.name
    assert parent.data.tags["medray.data"] == "data"
    assert parent.data.params["optimizer.lr"] == "0.01"
    found = copied(experiment, study)
    assert sorted(found) == [0, 1, 2, 3]
    assert [found[index].tags["medray.state"] for index in range(4)] == ["finished", "stopped", "failed", "running"]
    assert [found[index].status for index in range(4)] == ["FINISHED", "FINISHED", "FAILED", "RUNNING"]
    assert [found[index].tags["mlflow.runName"] for index in range(4)] == [f"trial {index}" for index in range(4)]
    assert found[2].tags["medray.error"] == "NonFiniteLoss: inf"
    assert not any("medray.error" in found[index].tags for index in (0, 1, 3))
    assert found[0].params == {}
    assert found[1].params == {"optimizer.lr": "0.02"}
    assert found[3].params == {"network": "{'name': 'plain', 'widths': [8]}"}


def test_epochs_are_metrics_at_their_steps_and_the_best_weights_figures_beside_them(
    experiment: Experiment, study: Path
) -> None:
    four_trials(study)
    mirror(experiment, study).sync()
    found = copied(experiment, study)[0].history
    assert found["val/auroc"] == [(1, 0.5), (2, 0.75), (3, 0.7)]
    assert found["best/val/auroc"] == [(0, 0.75)]
    assert found["best_epoch"] == [(0, 2.0)]
    assert not any(name.startswith("at/") for name in found), "moments are no metrics"
    assert "val/gone" not in found
    assert "best/val/auroc" not in copied(experiment, study)[1].history


def test_only_what_is_new_is_added_while_a_study_runs(experiment: Experiment, study: Path) -> None:
    changed: set[int] = set()
    copying = Mirror(experiment, study, PREPARED, changed)
    save(study, Trial(0, {"optimizer.lr": 0.5}, {}, "running"))
    for epoch in range(1, 5):
        epochs(study, 0, {epoch: 0.1 * epoch})
        changed.add(0)
        copying.sync()
        assert changed == set()
        assert [step for step, _ in copied(experiment, study)[0].history["val/auroc"]] == list(range(1, epoch + 1))
    copying.sync()
    save(study, Trial(0, {"optimizer.lr": 0.5}, {}, "stopped"))
    changed.add(0)
    copying.sync()
    found = copied(experiment, study)[0]
    assert len(found.history["val/auroc"]) == 4
    assert (found.status, found.tags["medray.state"]) == ("FINISHED", "stopped")


def test_a_restart_doubles_nothing_and_adds_what_came_while_mlflow_was_away(
    experiment: Experiment, study: Path
) -> None:
    four_trials(study)
    mirror(experiment, study).sync()
    before = copied(experiment, study)
    mirror(experiment, study).sync()
    again = copied(experiment, study)
    assert {index: trial.history["val/auroc"] for index, trial in again.items()} == {
        index: trial.history["val/auroc"] for index, trial in before.items()
    }
    assert {index: replace(trial, history={}) for index, trial in again.items()} == {
        index: replace(trial, history={}) for index, trial in before.items()
    }
    epochs(study, 3, {3: 0.9, 4: 0.8})
    save(study, Trial(3, {}, {}, "finished", measured=MEASURED))
    save(study, Trial(4, {"optimizer.lr": 0.5}, {}, "running"))
    mirror(experiment, study).sync()
    after = copied(experiment, study)
    assert sorted(after) == [0, 1, 2, 3, 4]
    assert after[3].history["val/auroc"] == [(1, 0.5), (2, 0.6), (3, 0.9), (4, 0.8)]
    assert after[3].history["best/val/auroc"] == [(0, 0.75)]
    assert (after[3].status, after[4].status) == ("FINISHED", "RUNNING")


def test_a_restart_does_not_double_the_figures_of_the_best_weights(experiment: Experiment, study: Path) -> None:
    four_trials(study)
    mirror(experiment, study).sync()
    mirror(experiment, study).sync()
    assert copied(experiment, study)[0].history["best/val/auroc"] == [(0, 0.75)]


def test_a_restart_leaves_the_end_of_a_run_where_it_was(experiment: Experiment, study: Path) -> None:
    four_trials(study)

    def ends() -> list[int]:
        (parent,) = parents(experiment, study)
        runs = client(None).search_runs([parent.info.experiment_id], "tags.`medray.state` = 'stopped'")
        return [run.info.end_time for run in runs]

    mirror(experiment, study).sync()
    before = ends()
    mirror(experiment, study).sync()
    assert ends() == before


def test_epochs_that_are_done_again_after_a_restart_are_not_doubled(experiment: Experiment, study: Path) -> None:
    save(study, Trial(0, {}, {}, "running"))
    epochs(study, 0, {1: 0.1, 2: 0.2, 3: 0.3})
    mirror(experiment, study).sync()
    epochs(study, 0, {2: 0.2, 3: 0.3, 4: 0.4}, again=True)
    after = mirror(experiment, study)
    after.sync()
    assert copied(experiment, study)[0].history["val/auroc"] == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    epochs(study, 0, {5: 0.5})
    after._changed.add(0)
    after.sync()
    assert [step for step, _ in copied(experiment, study)[0].history["val/auroc"]] == [1, 2, 3, 4, 5]


def test_an_epoch_done_twice_before_mlflow_heard_of_it_is_there_once(experiment: Experiment, study: Path) -> None:
    save(study, Trial(0, {}, {}, "running"))
    epochs(study, 0, {1: 0.1, 2: 0.2})
    epochs(study, 0, {2: 0.25, 3: 0.3}, again=True)
    mirror(experiment, study).sync()
    assert copied(experiment, study)[0].history["val/auroc"] == [(1, 0.1), (2, 0.25), (3, 0.3)]


def test_two_studies_of_an_experiment_do_not_mix(experiment: Experiment, study: Path, tmp_path: Path) -> None:
    other = tmp_path / "tiny-20260102"
    for folder in (study, other):
        save(folder, Trial(0, {}, {}, "running"))
        mirror(experiment, folder).sync()
    epochs(study, 0, {1: 0.1})
    mirror(experiment, study).sync()
    assert copied(experiment, study)[0].history["val/auroc"] == [(1, 0.1)]
    assert copied(experiment, other)[0].history == {}


def test_an_interrupted_study_is_killed_in_mlflow_and_runs_again_after_a_restart(
    experiment: Experiment, study: Path
) -> None:
    four_trials(study)
    first = mirror(experiment, study)
    first.open()
    epochs(study, 3, {3: 0.9})
    first.abandon("KILLED")
    assert [run.info.status for run in parents(experiment, study)] == ["KILLED"]
    assert copied(experiment, study)[3].history["val/auroc"][-1] == (3, 0.9)
    second = mirror(experiment, study)
    second.open()
    second.sync()
    assert [run.info.status for run in parents(experiment, study)] == ["RUNNING"]
    second.close()
    second.parent().finish("FINISHED")
    assert [run.info.status for run in parents(experiment, study)] == ["FINISHED"]
    assert sorted(copied(experiment, study)) == [0, 1, 2, 3]


def test_what_a_study_writes_is_copied_while_it_runs(
    experiment: Experiment, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "EVERY_S", 0.01)
    four_trials(study)
    copying = mirror(experiment, study)
    copying.open()
    for _ in range(1000):
        if not copying._changed:
            break
        copying._over.wait(0.02)
    assert copying._changed == set()
    copying.close()
    assert sorted(copied(experiment, study)) == [0, 1, 2, 3]


# MLflow that fails


class Flaky:
    """A client whose write number `at` of a kind does not get through."""

    def __init__(self, real: Any, kind: str, at: int, calls: Iterator[int]) -> None:
        self._real, self._kind, self._at, self._calls = real, kind, at, calls

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)

        def write(*arguments: Any, **named: Any) -> Any:
            kind = next(iter(named)) if name == "log_batch" else name
            if kind == self._kind and next(self._calls) == self._at:
                raise ConnectionError("no answer")
            return found(*arguments, **named)

        return write if callable(found) else found


def sync_with_failure(experiment: Experiment, study: Path, kind: str, at: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Copy two ended trials; returns how many writes of that kind there were."""
    save(study, Trial(0, {"optimizer.lr": 0.5}, {}, "finished", measured=MEASURED))
    epochs(study, 0, {1: 0.5, 2: 0.75})
    save(study, Trial(1, {"optimizer.lr": 0.1}, {}, "failed", "ValueError"))
    calls = count()
    with monkeypatch.context() as patch:
        patch.setattr(mirrors, "client", lambda uri: Flaky(client(uri), kind, at, calls))
        copying = mirror(experiment, study)
        if at >= 0:
            with pytest.raises(ConnectionError):
                copying.sync()
            assert copying._changed, "what could not be written is tried again"
        copying.sync()
        assert copying._changed == set()
    return next(calls)


def summary(found: dict[int, Copied]) -> dict[int, tuple[Any, ...]]:
    kept = ("val/auroc", "epoch", "best/val/auroc")
    return {
        index: (
            trial.status,
            trial.params,
            trial.tags.get("medray.state"),
            trial.tags.get("medray.error"),
            {name: trial.history.get(name) for name in kept},
        )
        for index, trial in found.items()
    }


@pytest.mark.parametrize(
    "kind",
    [
        "create_run",
        "tags",
        "metrics",
        "params",
        "set_terminated",
    ],
)
def test_a_client_that_fails_once_loses_and_doubles_nothing(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Whichever write of the kind it is that does not get through."""
    writes = sync_with_failure(experiment, tmp_path / "whole", kind, -1, monkeypatch)
    whole = summary(copied(experiment, tmp_path / "whole"))
    assert [trial[0] for _, trial in sorted(whole.items())] == ["FINISHED", "FAILED"]
    assert writes >= 2
    for at in range(writes):
        folder = tmp_path / f"failure {at}"
        sync_with_failure(experiment, folder, kind, at, monkeypatch)
        assert summary(copied(experiment, folder)) == whole


@pytest.mark.parametrize("restarted", [False, True])
def test_a_long_curve_that_gets_through_by_halves_is_whole_afterwards(
    experiment: Experiment, study: Path, monkeypatch: pytest.MonkeyPatch, restarted: bool
) -> None:
    """MLflow takes 1000 figures in one call."""
    save(study, Trial(0, {}, {}, "running"))
    epochs(study, 0, {epoch: epoch / 400 for epoch in range(1, 401)})
    calls = count()
    with monkeypatch.context() as patch:
        patch.setattr(mirrors, "client", lambda uri: Flaky(client(uri), "metrics", 1, calls))
        copying = mirror(experiment, study)
        with pytest.raises(ConnectionError):
            copying.sync()
    (mirror(experiment, study) if restarted else copying).sync()
    found = copied(experiment, study)[0].history["val/auroc"]
    assert [step for step, _ in found] == list(range(1, 401))


def test_a_study_goes_on_without_mlflow_and_says_so_once(
    experiment: Experiment, study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[str | None] = []

    def refuse(uri: str | None) -> Any:
        tried.append(uri)
        raise ConnectionError("no answer")

    monkeypatch.setattr(mirrors, "client", refuse)
    monkeypatch.setattr(mirrors, "EVERY_S", 0.001)
    save(study, Trial(0, {}, {}, "running"))
    copying = mirror(experiment, study)
    copying.open()
    for _ in range(1000):
        if len(tried) > 3:
            break
        copying._over.wait(0.01)
    copying.abandon("FAILED")
    assert len(tried) > 3
    said = capsys.readouterr().err
    assert said == f"MLflow cannot be written: no answer; the study goes on, its records are in {study}\n"
    with pytest.raises(ConnectionError):
        copying.close()
    monkeypatch.setattr(mirrors, "client", client)
    copying.sync()
    assert sorted(copied(experiment, study)) == [0]
