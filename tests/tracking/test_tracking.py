"""The journal, pseudonyms, MLflow runs, the registry and the gate of the champion."""

from __future__ import annotations

import math
import stat
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from test_bundle import make

from medray.config import ConfigError
from medray.tracking import journal, pseudonyms, registry
from medray.tracking.line import reason
from medray.tracking.registry import RegistryError, Standing
from medray.tracking.run import batches, client, flatten, start, tagged


def test_journal_rows_come_back_in_order_with_nan(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    heard: list[journal.Row] = []
    with journal.followed(file, heard.append):
        for epoch in (1, 2, 2, 3):
            journal.append(file, journal.plain({"epoch": epoch, "val/auroc": math.nan if epoch == 1 else 0.5}))
    assert [row["epoch"] for row in heard] == [1, 2, 2, 3]
    assert math.isnan(heard[0]["val/auroc"])


def test_a_half_written_line_waits(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    file.write_text('{"epoch": 1}\n{"epo')
    rows, position = journal.read(file)
    assert [row["epoch"] for row in rows] == [1]
    with file.open("a") as stream:
        stream.write('ch": 2}\n')
    assert [row["epoch"] for row in journal.read(file, position)[0]] == [2]


def test_a_listener_that_fails_is_heard(tmp_path: Path) -> None:
    def broken(_: journal.Row) -> None:
        raise OSError("no server")

    file = tmp_path / "journal.jsonl"
    with pytest.raises(OSError, match="no server"), journal.followed(file, broken):
        journal.append(file, {"epoch": 1.0})


def test_pseudonyms_are_keyed_and_stable(home: Path, tmp_path: Path) -> None:
    secret = pseudonyms.key()
    assert pseudonyms.key() == secret
    assert stat.S_IMODE((home / "pseudonym.key").stat().st_mode) == 0o600
    one = pseudonyms.pseudonym("patient-7", secret)
    assert one == pseudonyms.pseudonym("patient-7", secret)
    assert one != pseudonyms.pseudonym("patient-7", b"another")
    pseudonyms.write_map(tmp_path / "map.csv", ["patient-7"], secret)
    assert (tmp_path / "map.csv").read_text().splitlines()[1] == f"{one},patient-7"
    assert stat.S_IMODE((tmp_path / "map.csv").stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["", "ab", "ab" * 15, "no key" * 20])
def test_what_is_no_key_makes_no_pseudonyms(home: Path, text: str) -> None:
    (home / "pseudonym.key").write_text(text)
    with pytest.raises(ConfigError, match="holds no key"):
        pseudonyms.key()


def test_flatten_gives_command_line_keys() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}


@pytest.fixture
def mlflow(database: Path) -> MlflowClient:
    return client(f"sqlite:///{database}")


def standing(score: float, **changes: Any) -> Standing:
    values = {"monitor": "val/auroc", "score": score, "sign": 1, "data": "d", "split": "s"}
    return Standing(**{**values, **changes})


def test_a_run_is_opened_once(mlflow: MlflowClient) -> None:
    record = start(mlflow, "exp", "first")
    record.log_params({f"key{index}": "x" * 600 for index in range(230)})
    record.log_metrics({"val/auroc": 0.5, "val/kappa": math.nan}, step=1)
    record.finish("FINISHED")
    again = start(mlflow, "exp", "first", run_id=record.run_id)
    assert again.run_id == record.run_id
    run = mlflow.get_run(record.run_id)
    assert run.info.status == "RUNNING"
    assert len(run.data.params) == 230
    assert run.data.metrics == {"val/auroc": 0.5}


def test_epochs_have_their_own_times_and_are_kept_once(mlflow: MlflowClient) -> None:
    record = start(mlflow, "exp", "curve", began=10.5)
    rows = [{"epoch": epoch, "val/auroc": 0.5, "val/gone": math.nan, "at/end": 100.0 + epoch} for epoch in (1.0, 2.0)]
    for _ in range(2):
        record.log_rows(rows)
        record.log_metrics({"best/val/auroc": 0.5}, at=200.0)
    record.finish("FINISHED", 300.0)
    run = mlflow.get_run(record.run_id)
    assert (run.info.start_time, run.info.end_time) == (10_500, 300_000)
    assert run.data.metrics == {"epoch": 2.0, "val/auroc": 0.5, "best/val/auroc": 0.5}
    found = [(point.step, point.timestamp) for point in mlflow.get_metric_history(record.run_id, "val/auroc")]
    assert sorted(found) == [(1, 101_000), (2, 102_000)]
    assert len(mlflow.get_metric_history(record.run_id, "best/val/auroc")) == 1


def test_batches_are_whole_epochs_of_at_most_what_mlflow_takes() -> None:
    rows = [{"epoch": float(epoch), **{f"m{index}": 1.0 for index in range(299)}, "at/end": 1.0} for epoch in range(7)]
    assert [[row["epoch"] for row in batch] for batch in batches(rows)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(batches([])) == []


def test_of_several_runs_with_a_tag_the_oldest_is_the_first(mlflow: MlflowClient) -> None:
    for began in (30.0, 10.0, 20.0):
        start(mlflow, "exp", f"{began}", tags={"medray.run": "same"}, began=began)
    start(mlflow, "exp", "other", tags={"medray.run": "another"}, began=5.0)
    assert [run.tags["mlflow.runName"] for run in tagged(mlflow, "exp", "medray.run", "same")] == [
        "10.0",
        "20.0",
        "30.0",
    ]


def test_why_a_request_got_no_answer_is_said_in_a_line() -> None:
    error = MlflowException("API request to http://a/b failed with exception Pool(host=...)")
    error.__context__ = ValueError("retries exceeded")
    error.__context__.__cause__ = ConnectionRefusedError(111, "Connection refused")
    assert reason(error) == "API request to http://a/b: [Errno 111] Connection refused"
    assert reason(ValueError("two\n lines")) == "two lines"


def test_artifacts_of_the_embedded_store_lie_in_the_home(mlflow: MlflowClient, home: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    record = start(mlflow, "exp", "run")
    record.log_folder(tmp_path)
    assert list((home / "artifacts" / "exp").rglob("a.txt"))


def test_register_fetch_promote(mlflow: MlflowClient, tmp_path: Path, image_folder: Path) -> None:
    with pytest.raises(RegistryError, match="no champion yet; train one"):
        registry.newest_champion(mlflow)
    bundle = make(tmp_path / "bundle", image_folder)
    version = registry.register(start(mlflow, "exp", "run"), "net", bundle.folder, standing(0.7))
    folder, name = registry.fetch(mlflow, "net@candidate")
    assert (name, version) == ("net/1", "1")
    assert folder != bundle.folder
    found = registry.find(mlflow, "net", "candidate")
    assert found is not None
    assert Standing.of(found) == standing(0.7)
    registry.promote(mlflow, "net", "1", "looks right")
    assert registry.newest_champion(mlflow) == "net@champion"
    assert registry.fetch(mlflow, "net@1") == (folder, "net/1")


@pytest.mark.parametrize(
    ("reference", "message"),
    [("net", "write name@champion"), ("nett@champion", r"has no 'nett@champion'; there are: net \(@candidate\)")],
)
def test_unknown_models_are_explained(
    mlflow: MlflowClient, tmp_path: Path, image_folder: Path, reference: str, message: str
) -> None:
    registry.register(start(mlflow, "exp", "run"), "net", make(tmp_path / "b", image_folder).folder, standing(0.7))
    with pytest.raises(RegistryError, match=message):
        registry.fetch(mlflow, reference)


def test_swapped_files_are_not_served(mlflow: MlflowClient, tmp_path: Path, image_folder: Path) -> None:
    record = start(mlflow, "exp", "run")
    registry.register(record, "net", make(tmp_path / "b", image_folder).folder, standing(0.7))
    mlflow.set_model_version_tag("net", "1", "medray.digest", "0" * 64)
    with pytest.raises(RegistryError, match="not those that were registered"):
        registry.fetch(mlflow, "net@1")


def test_who_beats_whom() -> None:
    assert standing(0.8).beats(0.7)
    assert not standing(0.7).beats(0.7)
    assert standing(0.2, sign=-1).beats(0.3)
    assert standing(0.1).comparable(standing(0.9))
    assert not standing(0.1).comparable(standing(0.1, split="other"))
