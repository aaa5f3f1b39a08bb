"""Rollback: who was champion before is champion again, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from prediction_phantom import classifier

from medray.tracking import registry
from medray.tracking.registry import CANDIDATE, CHAMPION, PREVIOUS, RegistryError, Standing
from medray.tracking.run import client, start

STANDING = Standing("val/auroc", 0.7, 1, "d", "s")


@pytest.fixture
def mlflow(database: Path, tmp_path: Path) -> MlflowClient:
    """A registry with net/1, net/2 and net/3, none of them champion."""
    found = client(f"sqlite:///{database}")
    record = start(found, "exp", "run")
    bundle = classifier(tmp_path / "net").folder
    for _ in range(3):
        registry.register(record, "net", bundle, STANDING)
    return found


def champion(mlflow: MlflowClient) -> str:
    found = registry.find(mlflow, "net", CHAMPION)
    assert found is not None
    return str(found.version)


def promote(mlflow: MlflowClient, *versions: str) -> None:
    for version in versions:
        registry.promote(mlflow, "net", version, "a test")


def test_the_champion_before_is_champion_again(mlflow: MlflowClient) -> None:
    promote(mlflow, "1", "2")
    assert registry.rollback(mlflow, "net", "it misses nodules") == ("1", "2")
    assert champion(mlflow) == "1"
    assert registry.fetch(mlflow, "net@champion")[1] == "net/1"
    tags = mlflow.get_model_version("net", "2").tags
    assert tags["medray.rolled_back"] == "it misses nodules"
    assert registry.find(mlflow, "net", CANDIDATE).version == 3, "the candidate stays"  # type: ignore[union-attr]


def test_step_by_step_back_to_the_first_and_no_further(mlflow: MlflowClient) -> None:
    promote(mlflow, "1", "3", "2")
    assert registry.rollback(mlflow, "net", "x") == ("3", "2")
    assert registry.rollback(mlflow, "net", "x") == ("1", "3")
    with pytest.raises(RegistryError, match=r"net/1 has no champion before it; medray promote net@VERSION"):
        registry.rollback(mlflow, "net", "x")
    assert champion(mlflow) == "1"


def test_forward_again_after_a_rollback(mlflow: MlflowClient) -> None:
    promote(mlflow, "1", "2")
    registry.rollback(mlflow, "net", "x")
    promote(mlflow, "3")
    assert registry.rollback(mlflow, "net", "x") == ("1", "3"), "not to the one that was rolled back"


def test_promoting_the_champion_again_does_not_make_it_its_own_predecessor(mlflow: MlflowClient) -> None:
    promote(mlflow, "1", "2", "2")
    assert registry.rollback(mlflow, "net", "x") == ("1", "2")


def test_a_champion_of_two_times_does_not_bring_back_what_was_rolled_back(mlflow: MlflowClient) -> None:
    promote(mlflow, "1", "2", "1")
    assert registry.rollback(mlflow, "net", "x") == ("2", "1")
    assert registry.rollback(mlflow, "net", "x") == ("1", "2")
    with pytest.raises(RegistryError):
        registry.rollback(mlflow, "net", "x")


@pytest.mark.parametrize("versions", [(), ("1",)])
def test_without_one_before_nothing_changes(mlflow: MlflowClient, versions: tuple[str, ...]) -> None:
    promote(mlflow, *versions)
    with pytest.raises(RegistryError, match="no champion before it" if versions else "has no 'net@champion'"):
        registry.rollback(mlflow, "net", "x")
    if versions:
        assert champion(mlflow) == "1"
        assert "medray.rolled_back" not in mlflow.get_model_version("net", "1").tags


def test_of_a_model_that_is_not_there_it_is_said_what_there_is(mlflow: MlflowClient) -> None:
    with pytest.raises(RegistryError, match=r"no 'other@champion'; there are: net \(@candidate\)"):
        registry.rollback(mlflow, "other", "x")


def test_a_champion_before_that_was_deleted_does_not_come_back(mlflow: MlflowClient) -> None:
    promote(mlflow, "1", "2")
    mlflow.delete_model_version("net", "1")
    with pytest.raises(RegistryError, match="no champion before it"):
        registry.rollback(mlflow, "net", "x")
    assert champion(mlflow) == "2"
    assert "medray.rolled_back" not in mlflow.get_model_version("net", "2").tags


def test_a_registry_that_does_not_answer_is_not_one_that_has_nothing(
    mlflow: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(mlflow, "1", "2")

    def broken(*_: object) -> None:
        raise MlflowException("the database is locked")

    monkeypatch.setattr(mlflow, "get_model_version", broken)
    with pytest.raises(MlflowException, match="locked"):
        registry.rollback(mlflow, "net", "x")
    monkeypatch.undo()
    assert champion(mlflow) == "2"


def test_who_was_it_before_is_written_down_with_the_promotion(mlflow: MlflowClient) -> None:
    promote(mlflow, "1", "2")
    assert PREVIOUS not in mlflow.get_model_version("net", "1").tags
    assert mlflow.get_model_version("net", "2").tags[PREVIOUS] == "1"
