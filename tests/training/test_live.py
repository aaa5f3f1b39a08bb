"""A run in MLflow: nothing lost, nothing doubled, and nobody waits, whatever MLflow does."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import tiny
from mlflow.exceptions import MlflowException
from run_folder import PREPARED, begun, ended, epochs, has_champion, models, state
from test_bundle import make

from medray.config import Experiment
from medray.tracking import journal, registry
from medray.tracking.line import Line
from medray.tracking.run import client, tagged
from medray.training import delivery as deliveries
from medray.training import handover, live
from medray.training.delivery import RUN, Delivery, outcome_of, settle
from medray.training.handover import Contest, End
from medray.training.live import LiveRecord

pytestmark = pytest.mark.usefixtures("database")
WRITES = {
    "create_run",
    "update_run",
    "log_batch",
    "log_artifacts",
    "create_registered_model",
    "create_model_version",
    "set_registered_model_alias",
    "set_model_version_tag",
    "set_terminated",
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "EVERY_S", 0.02)
    monkeypatch.setattr("medray.training.provenance.revision", lambda: "0" * 40)


@pytest.fixture
def experiment() -> Experiment:
    return tiny(Path("images"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    """A bundle that is trained by nobody."""
    return make(tmp_path_factory.mktemp("model") / "bundle", image_folder).folder


def steps(folder: Path, experiment: Experiment) -> list[int]:
    history = state(folder, experiment)["history"]
    assert {name: [entry[0] for entry in points] for name, points in history.items() if name != "val/auroc"} == {
        "epoch": [entry[0] for entry in history["val/auroc"]]
    }
    return [entry[0] for entry in history["val/auroc"]]


def wait_until(found: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# From the folder alone


def test_a_finished_run_is_all_there(home: Path, experiment: Experiment, model: Path) -> None:
    folder = begun(home, experiment)
    epochs(folder, 1, 2, 3)
    ended(folder, model)
    delivered = Delivery(folder, client(None)).finish()
    found = state(folder, experiment)
    assert found["status"] == "FINISHED"
    assert found["params"]["optimizer.lr"] == "0.01"
    assert (found["tags"]["medray.data"], found["tags"]["env.revision"]) == ("data", "0" * 40)
    assert found["times"] == (True, 2_000_000_000_000)
    assert found["history"] == {
        "epoch": [(n, float(n), 1000 * (10**9 + n)) for n in (1, 2, 3)],
        "val/auroc": [(n, n / 100, 1000 * (10**9 + n)) for n in (1, 2, 3)],
        "best/val/auroc": [(0, 0.75, 2_000_000_000_000)],
        "best_epoch": [(0, 2.0, 2_000_000_000_000)],
    }
    assert {"split.csv", "figures/curves.png", "bundle/weights.safetensors"} <= set(found["files"])
    assert models("net")["aliases"] == {"candidate": "1", "champion": "1"}
    assert json.loads((folder / "run.json").read_text()) == {"run_id": delivered.run_id}
    said = outcome_of(delivered)
    assert said["model"] == "net/1"
    assert said["tracked"]
    assert said["champion"]


class Broken:
    """A client that fails at one of its calls, before or after the server has done what was asked."""

    def __init__(self, real: Any, at: int, done: bool, calls: list[str]) -> None:
        self._real, self._at, self._done, self._calls = real, at, done, calls

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if name not in WRITES:
            return found

        def write(*arguments: Any, **named: Any) -> Any:
            self._calls.append(name)
            if len(self._calls) != self._at:
                return found(*arguments, **named)
            if self._done:
                found(*arguments, **named)
            raise ConnectionError(f"no answer to {name}")

        return write


@pytest.mark.parametrize("done", [False, True], ids=["lost on the way", "done, its answer lost"])
def test_whichever_write_fails_the_end_is_that_of_an_unbroken_delivery(
    home: Path, experiment: Experiment, model: Path, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    monkeypatch.setattr(deliveries, "flatten", lambda tree: {"seed": tree["seed"]})  # params in one write

    def run(at: int) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
        name, calls = f"{at:03d}", list[str]()
        folder = begun(home, experiment, f"tiny-{name}")
        epochs(folder, 1, 2, 3, 2, 3)
        ended(folder, model, f"net{name}")
        has_champion(f"net{name}", model)
        broken: Any = Broken(client(None), at, done, calls)
        if at:
            with pytest.raises(ConnectionError):
                Delivery(folder, broken).finish()
        again = Delivery(folder, broken).finish()
        better = f"val/auroc 0.7500 is better than 0.5000 of net{name}/1"
        assert again.registered is not None
        assert again.registered.verdict.partition(": ")[2] == better
        return (
            calls,
            state(folder, experiment),
            json.loads(json.dumps(models(f"net{name}")).replace(f"net{name}", "net")),
        )

    calls, *whole = run(0)
    assert [step for step, *_ in whole[0]["history"]["epoch"]] == [1, 2, 3]
    assert whole[1]["aliases"] == {"candidate": "2", "champion": "2"}
    assert set(calls) == WRITES - {"update_run", "create_registered_model"}
    for at in range(1, len(calls) + 1):
        assert run(at)[1:] == tuple(whole), calls[at - 1]


def test_a_restart_in_between_repeats_no_epoch_and_keeps_the_first(home: Path, experiment: Experiment) -> None:
    folder = begun(home, experiment)
    epochs(folder, 1, 2, 3)
    Delivery(folder, client(None)).catch_up()
    epochs(folder, 2, 3, 4, shift=0.5)
    (folder / "run.json").unlink()
    Delivery(folder, client(None)).catch_up()
    assert steps(folder, experiment) == [1, 2, 3, 4]
    values = [value for _, value, _ in state(folder, experiment)["history"]["val/auroc"]]
    assert values == [0.01, 0.02, 0.03, 0.54]


def test_an_epoch_repeated_while_its_answer_was_lost_is_not_doubled(home: Path, experiment: Experiment) -> None:
    """The request was carried out, then the workers restarted, and the same epochs came with other times."""
    folder = begun(home, experiment)
    Delivery(folder, client(None)).catch_up()
    epochs(folder, 1, 2)
    broken: Any = Broken(client(None), 1, True, [])
    found = Delivery(folder, broken)
    with pytest.raises(ConnectionError):
        found.catch_up()
    epochs(folder, 1, 2, 3, shift=0.5)
    found.catch_up()
    assert steps(folder, experiment) == [1, 2, 3]


def test_a_request_that_is_carried_out_hours_later_is_not_doubled(home: Path, experiment: Experiment) -> None:
    """MLflow was asked, said that it had nothing, and then did what it had been told before."""
    folder = begun(home, experiment)
    found = Delivery(folder, client(None))
    found.catch_up()
    epochs(folder, 1, 2)
    Delivery(folder, client(None)).catch_up()
    found.catch_up()
    assert steps(folder, experiment) == [1, 2]


@pytest.mark.parametrize("done", [False, True])
def test_a_long_curve_that_gets_through_by_halves_is_whole_afterwards(
    home: Path, experiment: Experiment, done: bool
) -> None:
    folder = begun(home, experiment)
    Delivery(folder, client(None)).catch_up()
    epochs(folder, *range(1, 701))
    broken: Any = Broken(client(None), 2, done, [])
    found = Delivery(folder, broken)
    with pytest.raises(ConnectionError):
        found.catch_up()
    assert len(steps(folder, experiment)) in (500, 700)
    found.catch_up()
    assert steps(folder, experiment) == list(range(1, 701))


@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_epoch_of_more_figures_than_mlflow_takes_at_once(home: Path, experiment: Experiment, at: int) -> None:
    folder = begun(home, experiment)
    Delivery(folder, client(None)).catch_up()
    figures = {f"val/class{index}": float(index) for index in range(2100)}
    journal.append(folder / journal.JOURNAL, {"epoch": 1, **figures, "at/end": 1e9})
    broken: Any = Broken(client(None), at, True, [])
    found = Delivery(folder, broken)
    with pytest.raises(ConnectionError):
        found.catch_up()
    found.catch_up()
    (run,) = tagged(client(None), experiment.name, RUN, folder.name)
    assert dict(run.metrics) == {**figures, "epoch": 1.0}
    assert len(client(None).get_metric_history(run.record.run_id, "val/class0")) == 1


def test_a_server_that_comes_back_without_the_run_gets_all_of_it_again(home: Path, experiment: Experiment) -> None:
    folder = begun(home, experiment)
    epochs(folder, 1, 2)
    found = Delivery(folder, client(None))
    client(None).delete_run(found.catch_up().run_id)
    epochs(folder, 3)
    with pytest.raises(MlflowException, match="must be in the 'active' state"):
        found.catch_up()
    found.catch_up()
    assert steps(folder, experiment) == [1, 2, 3]
    assert state(folder, experiment)["params"]["optimizer.lr"] == "0.01"


def test_a_model_that_was_rolled_back_is_not_promoted_again(home: Path, experiment: Experiment, model: Path) -> None:
    folder = begun(home, experiment)
    ended(folder, model)
    has_champion("net", model)
    Delivery(folder, client(None)).finish()
    registry.rollback(client(None), "net", "worse in the ward")
    again = Delivery(folder, client(None)).finish().registered
    assert again is not None
    assert not again.champion
    assert models("net")["aliases"] == {"candidate": "2", "champion": "1"}


def test_where_the_data_are_gone_the_champion_stays(home: Path, experiment: Experiment, model: Path) -> None:
    folder = begun(home, experiment)
    ended(folder, model)
    has_champion("net", model)
    end = handover.end_of(folder)
    assert end is not None
    assert end.contest is not None
    handover.end(folder, replace(end, contest=replace(end.contest, split="another")))
    found = Delivery(folder, client(None)).finish().registered
    assert found is not None
    assert not found.champion
    assert "the champion stays: this run's cases, to measure it on, are not there: " in found.verdict
    assert models("net")["aliases"] == {"candidate": "2", "champion": "1"}
    assert state(folder, experiment)["status"] == "FINISHED"


def test_an_undefined_score_and_metric_survive_the_folder(home: Path, experiment: Experiment) -> None:
    folder = begun(home, experiment)
    contest = Contest("net", "val/auroc", float("nan"), 1, "data", "split")
    handover.end(folder, End("FINISHED", 2e9, {"a": 1.0, "b": float("nan")}, contest))
    found = handover.end_of(folder)
    assert found is not None
    assert found.contest is not None
    assert found.metrics == {"a": 1.0}
    assert found.contest.score != found.contest.score


def test_a_run_that_nobody_could_end_was_killed_and_goes_on_after_a_restart(home: Path, experiment: Experiment) -> None:
    folder = begun(home, experiment)
    epochs(folder, 1)
    Delivery(folder, client(None)).finish()
    assert state(folder, experiment)["status"] == "KILLED"
    Delivery(folder, client(None)).catch_up()
    assert state(folder, experiment)["status"] == "RUNNING"
    handover.end(folder, End("FAILED", 2e9))
    Delivery(folder, client(None)).finish()
    assert state(folder, experiment)["status"] == "FAILED"
    handover.begin(folder, PREPARED, None)
    Delivery(folder, client(None)).finish()
    assert state(folder, experiment)["status"] == "FAILED", "what MLflow knows of the end stays"


def test_folds_make_their_whole_once(home: Path, experiment: Experiment) -> None:
    whole = begun(home, experiment, "cv")
    parts = [begun(home, experiment, f"cv-fold{fold}", parent="cv") for fold in range(4)]
    threads = [threading.Thread(target=Delivery(part, client(None)).catch_up) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (parent,) = tagged(client(None), experiment.name, RUN, "cv")
    nested = tagged(client(None), experiment.name, "mlflow.parentRunId", parent.record.run_id)
    assert sorted(run.tags[RUN] for run in nested) == [part.name for part in parts]
    assert parent.params == {}
    Delivery(whole, client(None)).catch_up()
    assert state(whole, experiment)["params"]["seed"] == "0"


def test_a_result_says_what_became_of_the_run(home: Path, experiment: Experiment, model: Path) -> None:
    folder = begun(home, experiment)
    ended(folder, model)
    (folder / "result.json").write_text(json.dumps({"run": folder.name, **outcome_of(None)}))
    delivered = Delivery(folder, client(None)).finish()
    settle(folder, delivered)
    found = json.loads((folder / "result.json").read_text())
    assert (found["run"], found["run_id"]) == (folder.name, delivered.run_id)
    assert (found["model"], found["champion"], found["tracked"]) == ("net/1", True, True)


# While it is being trained


class Server:
    """MLflow that can be away, or that takes a question and says nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.up = True
        self.asked = 0
        self.answers = threading.Event()
        self.answers.set()
        monkeypatch.setattr("medray.tracking.run.client", lambda _: self)
        self._real = client(None)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        return partial(self._answer, found) if callable(found) else found

    def _answer(self, found: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        self.asked += 1
        self.answers.wait(30)
        if not self.up:
            raise ConnectionError("connection refused")
        return found(*arguments, **named)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    return Server(monkeypatch)


def test_an_outage_is_said_once_and_everything_is_there_afterwards(
    home: Path, experiment: Experiment, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = begun(home, experiment)
    record = LiveRecord(experiment, folder, PREPARED)
    record.open()
    epochs(folder, 1, 2)
    wait_until(lambda: bool(tagged(client(None), experiment.name, RUN, folder.name)))
    server.up = False
    epochs(folder, 3, 4, 3, 4, 5)
    asked = server.asked
    wait_until(lambda: server.asked > asked + 3)
    server.up = True
    epochs(folder, 6)
    ended(folder)
    assert record.deliver() is not None
    found = state(folder, experiment)
    assert [step for step, *_ in found["history"]["val/auroc"]] == [1, 2, 3, 4, 5, 6]
    assert found["status"] == "FINISHED"
    assert capsys.readouterr().err.splitlines() == [
        f"MLflow cannot be written: connection refused; the run goes on, all is kept in {folder}",
        "MLflow can be written again; it has all that came in between",
    ]


def test_an_end_without_mlflow_is_an_end(
    home: Path, experiment: Experiment, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.up = False
    folder = begun(home, experiment)
    record = LiveRecord(experiment, folder, PREPARED)
    record.open()
    epochs(folder, 1, 2)
    wait_until(lambda: server.asked > 2)
    ended(folder)
    began = time.monotonic()
    assert record.deliver() is None
    assert time.monotonic() - began < 2, "an outage that is known is not waited for"
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[1] == "MLflow does not have all of tiny-1; when it answers: medray sync tiny-1"
    record.abandon("FAILED")
    assert handover.end_of(folder).status == "FINISHED"


def test_a_failure_at_the_very_end_is_tried_again(
    home: Path, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Path] = []
    whole = deliveries.deliver_end

    def fails_once(record: Any, place: Path, *more: Any) -> Any:
        tried.append(place)
        if len(tried) == 1:
            raise ConnectionError("connection reset")
        return whole(record, place, *more)

    monkeypatch.setattr(deliveries, "deliver_end", fails_once)
    folder = begun(home, experiment)
    record = LiveRecord(experiment, folder, PREPARED)
    record.open()
    epochs(folder, 1)
    ended(folder)
    assert record.deliver() is not None
    assert len(tried) == 2
    assert state(folder, experiment)["status"] == "FINISHED"


@pytest.mark.parametrize("how", ["deliver", "abandon"])
def test_mlflow_that_takes_a_question_and_says_nothing_holds_up_no_end(
    home: Path, experiment: Experiment, server: Server, how: str
) -> None:
    folder = begun(home, experiment)
    record = LiveRecord(experiment, folder, PREPARED)
    record.open()
    epochs(folder, 1)
    wait_until(lambda: server.asked > 0)
    server.answers.clear()
    asked = server.asked
    wait_until(lambda: server.asked > asked)
    began = time.monotonic()
    if how == "deliver":
        ended(folder)
        assert record.deliver(0.3) is None
    else:
        record.abandon("KILLED", 0.3)
    assert time.monotonic() - began < 5
    asked = server.asked
    server.answers.set()
    record._thread.join(20)
    assert not record._thread.is_alive()
    assert server.asked == asked, "whoever was hung up on asks nothing more"
    Delivery(folder, client(None)).finish()
    found = state(folder, experiment)
    assert found["status"] == ("FINISHED" if how == "deliver" else "KILLED")
    assert [step for step, *_ in found["history"]["val/auroc"]] == [1]


def test_a_run_that_is_to_stop_is_not_held_up_by_what_is_done_for_mlflow(
    home: Path, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No question is open: the thread may be importing MLflow, or making files."""
    busy = threading.Event()
    monkeypatch.setattr(Delivery, "catch_up", lambda *_, **__: busy.wait())
    folder = begun(home, experiment)
    record = LiveRecord(experiment, folder, PREPARED)
    record.open()
    began = time.monotonic()
    record.abandon("KILLED", 0.3)
    assert 0.3 < time.monotonic() - began < 3
    busy.set()
    record._thread.join(20)
    assert not record._thread.is_alive()


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_a_run_that_breaks_off_says_so_and_goes_on_in_the_same_run(
    home: Path, experiment: Experiment, status: str
) -> None:
    folder = begun(home, experiment)
    first = LiveRecord(experiment, folder, PREPARED)
    first.open()
    epochs(folder, 1)
    wait_until((folder / handover.RUN_ID).is_file)
    first.abandon(status)
    assert state(folder, experiment)["status"] == status
    assert steps(folder, experiment) == [1]
    second = LiveRecord(experiment, folder, PREPARED)
    second.open()
    assert handover.end_of(folder) is None
    epochs(folder, 1, 2, shift=0.5)
    wait_until(lambda: state(folder, experiment)["status"] == "RUNNING")
    ended(folder)
    assert second.deliver() is not None
    assert state(folder, experiment)["status"] == "FINISHED"
    assert [step for step, *_ in state(folder, experiment)["history"]["val/auroc"]] == [1, 2]


def test_a_record_that_was_never_opened_can_be_abandoned(home: Path, experiment: Experiment) -> None:
    folder = begun(home, experiment)
    LiveRecord(experiment, folder, PREPARED).abandon("FAILED")
    assert handover.end_of(folder) is None


def test_the_folder_names_no_case(home: Path, experiment: Experiment) -> None:
    folder = begun(home, experiment)
    handover.end(folder, End("FAILED"))
    text = (folder / handover.START).read_text() + (folder / handover.END).read_text()
    assert "case" not in text


def test_a_line_patiently_makes_tables_and_uploads() -> None:
    release = threading.Event()
    asking = SimpleNamespace(log_artifacts=lambda: release.wait(20), get_run=lambda: release.wait(20))
    for name, patient in [("log_artifacts", True), ("get_run", False)]:
        release.clear()
        line = Line(lambda: asking)
        assert not line.silent(0.0)
        thread = threading.Thread(target=getattr(line, name))
        thread.start()
        time.sleep(0.05)
        assert line.silent(0.01) is not patient
        release.set()
        thread.join()
        assert not line.silent(0.0)
