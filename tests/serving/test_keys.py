"""API keys: what the file keeps, who may change it at once, and what a service makes of a broken one."""

from __future__ import annotations

import json
import os
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from medray.config import ConfigError
from medray.serving import keys
from medray.serving.keys import KeyFile
from medray.serving.watched import KEPT_S, LOOK_S


class Clock:
    """Seconds that a test moves on."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "keys.json"


def test_the_file_keeps_a_hash_and_is_its_owners(file: Path) -> None:
    key = keys.add(file, "ward-3", "viewer", 7)
    text = file.read_text()
    assert key.startswith("mk_")
    assert len(key) == 46
    assert key not in text
    assert key.removeprefix("mk_") not in text
    assert file.stat().st_mode & 0o777 == 0o600
    entry = KeyFile(file).find(key)
    assert entry is not None
    assert (entry.id, entry.role) == ("ward-3", "viewer")
    assert entry.expires is not None
    assert entry.expires - entry.created == timedelta(days=7)
    assert not entry.expired()
    assert entry.expired(datetime.now(UTC) + timedelta(days=7))


def test_a_role_and_no_end_by_default(file: Path) -> None:
    keys.add(file, "a")
    (entry,) = keys.entries(file)
    assert (entry.role, entry.expires) == ("user", None)
    assert not entry.expired(datetime(9999, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize("name", ["", "a b", "local", "../x", "ä", "a\n", ".a", "oidc:1", "a" * 65])
def test_names(file: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name"):
        keys.add(file, name)
    assert not file.exists()


def test_all_mistakes_at_once(file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        keys.add(file, "a b", "root", 0)  # type: ignore[arg-type]
    assert len(caught.value.mistakes) == 3


def test_a_name_is_taken_once_and_can_be_removed(file: Path) -> None:
    first = keys.add(file, "a")
    with pytest.raises(ConfigError, match="already"):
        keys.add(file, "a")
    keys.add(file, "b")
    keys.remove(file, "a")
    assert KeyFile(file).find(first) is None
    with pytest.raises(ConfigError, match="no key 'a'; there are: b"):
        keys.remove(file, "a")


def test_many_at_once_lose_none(file: Path) -> None:
    threads = [threading.Thread(target=keys.add, args=(file, f"key{number}")) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {entry.id for entry in keys.entries(file)} == {f"key{number}" for number in range(12)}
    assert not file.with_name(".keys.json.part").exists()


def test_a_link_to_the_file_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "keys.json"
    link.symlink_to(tmp_path / "real" / "there.json")
    keys.add(link, "a")
    assert link.is_symlink()
    assert [entry.id for entry in keys.entries(tmp_path / "real" / "there.json")] == ["a"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        keys.add(tmp_path / "file" / "keys.json", "a")


def test_strangers_keys(file: Path) -> None:
    key = keys.add(file, "a")
    there = KeyFile(file)
    hostile = ["", "mk_", key[:-1], key + "A", key + "\n", key.replace("mk_", "MK_"), "mk_" + "\0" * 43, "\ud800" * 46]
    hostile += ["mk_" + "ä" * 43, "mk_" + "A" * 10_000_000, key.swapcase(), "mk_" + "A" * 43]
    assert [there.find(other) for other in hostile] == [None] * len(hostile)
    assert there.find(key) is not None


def test_ten_thousand_wrong_keys_are_fast_and_look_at_the_file_seldom(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys.add(file, "a")
    there = KeyFile(file)
    looks = []
    stat = Path.stat
    monkeypatch.setattr(Path, "stat", lambda self, **options: looks.append(self) or stat(self, **options))
    begin = time.monotonic()
    assert not any(there.find(f"mk_{number:043d}") for number in range(10_000))
    spent = time.monotonic() - begin
    assert spent < 5
    assert len(looks) <= spent / LOOK_S + 1


def test_every_entry_is_compared(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [keys.add(file, f"key{number}") for number in range(5)]
    there, compared = KeyFile(file), []
    compare = keys.hmac.compare_digest
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda a, b: compared.append(a) or compare(a, b))
    found = there.find(made[0])
    assert found is not None
    assert found.id == "key0"
    assert len(compared) == 5


def test_changes_are_seen_a_second_later(file: Path) -> None:
    clock = Clock()
    there = KeyFile(file, clock=clock)
    assert there.entries() == ()
    first = keys.add(file, "a")
    assert there.find(first) is None, "the file is looked at once a second"
    clock.now += LOOK_S
    assert there.find(first) is not None
    keys.remove(file, "a")
    clock.now += LOOK_S
    assert there.find(first) is None


@pytest.mark.parametrize("harm", ["broken", "gone", "a folder", "half"])
def test_a_moment_of_trouble_is_bridged_and_a_minute_is_not(file: Path, harm: str) -> None:
    clock = Clock()
    key = keys.add(file, "a")
    there = KeyFile(file, clock=clock)
    content = file.read_bytes()
    file.unlink()
    if harm == "a folder":
        file.mkdir()
    elif harm != "gone":
        file.write_bytes(b"{" if harm == "broken" else content[: len(content) // 2])
    for _ in range(3):
        clock.now += LOOK_S
        assert there.find(key) is not None
        assert there.trouble
    clock.now += KEPT_S
    assert there.find(key) is None, "a file that stays broken lets nobody in"
    if file.is_dir():
        file.rmdir()
    file.write_bytes(content)
    clock.now += LOOK_S
    assert there.find(key) is not None
    assert not there.trouble


def test_a_trouble_that_comes_back_has_its_own_minute(file: Path) -> None:
    clock = Clock()
    key = keys.add(file, "a")
    there = KeyFile(file, clock=clock)
    content = file.read_bytes()
    for _ in range(4):
        file.write_bytes(b"no")
        clock.now += KEPT_S / 2
        assert there.find(key) is not None
        file.write_bytes(content)
        clock.now += KEPT_S / 2
        assert there.find(key) is not None


ENTRY = {"id": "a", "role": "user", "sha256": "0" * 64, "created": "2026-01-01T00:00:00Z", "expires": None}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[]",
        b'{"format": 2, "keys": []}',
        b'{"format": 1, "keys": {}}',
        json.dumps({"format": 1, "keys": [ENTRY, ENTRY]}).encode(),
        *(
            json.dumps({"format": 1, "keys": [{**ENTRY, **change}]}).encode()
            for change in (
                {"role": "root"},
                {"role": []},
                {"id": "local"},
                {"id": 3},
                {"sha256": "0"},
                {"created": None},
                {"created": "2026-01-01T00:00:00"},
                {"expires": "soon"},
                {"key": "mk_secret"},
            )
        ),
    ],
)
def test_a_broken_file_is_named_at_the_start(file: Path, content: bytes) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"keys\.json'") as caught:
        KeyFile(file)
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError):
        keys.add(file, "b")
    assert file.read_bytes() == content, "what cannot be read is not written over"


def test_an_unreadable_or_huge_file(file: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        KeyFile(file, must_exist=True)
    file.parent.mkdir()
    with file.open("wb") as stream:
        os.truncate(stream.fileno(), 5 << 20)
    with pytest.raises(ConfigError, match="more than 4 MiB"):
        KeyFile(file)
