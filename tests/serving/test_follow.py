"""What a service that follows an alias does about what the registry says; no process is started."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from pydantic.warnings import PydanticDeprecatedSince20

from medray.config import ConfigError
from medray.serving.messages import Entry

ONE = Entry("net", "1", "a" * 64, "/one", alias="champion")
TWO = Entry("net", "2", "b" * 64, "/two", alias="champion")


@pytest.fixture(scope="module")
def follow() -> ModuleType:
    """Ray Serve's own use of pydantic warns when it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PydanticDeprecatedSince20)
        from medray.serving import follow as module
    return module


def looked(
    follow: ModuleType, monkeypatch: pytest.MonkeyPatch, lineup: Sequence[Entry], names: Any, fails: bool = False
) -> tuple[list[tuple[Entry, ...]], list[str]]:
    """What is changed to, and said, over two looks at a registry that `names` an entry or raises."""
    changed: list[tuple[Entry, ...]] = []
    said: list[str] = []
    service = SimpleNamespace(lineup=tuple(lineup))

    def change(new: Sequence[Entry]) -> None:
        changed.append(tuple(new))
        if fails:
            raise RuntimeError("its golden answer is another")
        service.lineup = tuple(new)

    def of_registry(*_: Any, **__: Any) -> Entry:
        if isinstance(names, Exception):
            raise names
        return names  # type: ignore[no-any-return]

    service.change = change
    monkeypatch.setattr(follow, "of_registry", of_registry)
    follower = follow.Follower(service, "champion", None, said.append)
    follower.look()
    follower.look()
    return changed, said


def test_a_new_champion_is_changed_to_once(follow: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    changed, said = looked(follow, monkeypatch, [ONE], TWO)
    assert changed == [(TWO,)]
    assert len(said) == 1


def test_a_candidate_that_fails_is_tried_once(follow: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    changed, said = looked(follow, monkeypatch, [ONE], TWO, fails=True)
    assert changed == [(TWO,)]
    assert "is not taken" in said[0]
    assert len(said) == 1


def test_a_silent_registry_changes_nothing_and_is_said_once(
    follow: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed, said = looked(follow, monkeypatch, [ONE], ConfigError(["down"]))
    assert (changed, len(said)) == ([], 1)


def test_a_pinned_version_is_not_followed(follow: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert looked(follow, monkeypatch, [replace(ONE, alias="")], TWO) == ([], [])


def test_a_canary_that_becomes_the_champion_is_served_once(follow: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = replace(TWO, alias="candidate", part="canary", share=0.1)
    assert looked(follow, monkeypatch, [ONE, canary], TWO)[0] == [(TWO,)]
