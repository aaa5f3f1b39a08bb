"""Who may ask: keys, tokens, roles, and what is open on loopback."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from medray.config import ConfigError
from medray.sections.service import ServeSection
from medray.serving import access, keys, watched
from medray.serving.access import ROLES, Access, Caller, check_start, require
from medray.serving.problems import Refused


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Key files are looked at for every request."""
    monkeypatch.setattr(watched, "LOOK_S", 0.0)


def config(**changes: Any) -> ServeSection:
    return ServeSection.model_validate(changes)


def code_of(asked: Access, headers: Mapping[str, str]) -> str:
    with pytest.raises(Refused) as caught:
        asked.caller(headers)
    refused = caught.value
    assert refused.status == 401
    assert refused.hint
    assert refused.headers["WWW-Authenticate"].startswith("Bearer")
    for value in headers.values():
        assert len(value) < 8 or value not in f"{refused.detail}{refused.hint}{refused.headers}"
    return refused.code


def test_roles() -> None:
    assert [[Caller("a", mine).may(role) for role in ROLES] for mine in ROLES] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]
    require(Caller("a", "user"), "viewer")
    with pytest.raises(Refused) as caught:
        require(Caller("a", "user"), "admin")
    assert (caught.value.status, caught.value.code) == (403, "role_too_low")
    assert "admin" in caught.value.detail


def test_loopback_without_keys_is_open_to_everybody() -> None:
    asked = Access(config())
    assert not asked.may_wait
    for headers in ({}, {"x-api-key": "mk_wrong"}, {"authorization": "Bearer x"}):
        assert asked.caller(headers) == Caller("local", "admin")


def test_from_the_first_key_on_loopback_is_closed_and_stays_so(home: Path) -> None:
    asked = Access(config())
    assert asked.caller({}).id == "local"
    key = keys.add(home / "keys.json", "a", "viewer")
    assert code_of(asked, {}) == "no_key"
    assert asked.caller({"x-api-key": key}) == Caller("a", "viewer")
    keys.remove(home / "keys.json", "a")
    assert code_of(asked, {}) == "no_key"
    assert code_of(asked, {"x-api-key": key}) == "bad_key"
    (home / "keys.json").unlink()
    assert code_of(asked, {}) == "no_key"
    assert asked.troubles() == ("the key file cannot be used",)


def test_off_loopback_nothing_is_open() -> None:
    asked = Access(config(host="0.0.0.0"))  # noqa: S104
    assert code_of(asked, {}) == "no_key"
    assert code_of(asked, {"x-api-key": "mk_" + "A" * 43}) == "bad_key"


@pytest.fixture
def closed(home: Path) -> tuple[Access, str]:
    """A service with a key."""
    key = keys.add(home / "keys.json", "a")
    return Access(config()), key


def test_ways_to_send_a_key(closed: tuple[Access, str]) -> None:
    asked, key = closed
    ways = [{"x-api-key": key}, {"x-api-key": f" {key} "}, {"authorization": f"Bearer {key}"}]
    ways += [{"authorization": f"bearer   {key}"}, {"x-api-key": key, "authorization": "Basic YTpi"}]
    for headers in ways:
        assert asked.caller(headers) == Caller("a", "user")


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "no_key"),
        ({"x-api-key": ""}, "no_key"),
        ({"x-api-key": "   "}, "no_key"),
        ({"authorization": ""}, "no_key"),
        ({"authorization": "Bearer"}, "no_key"),
        ({"authorization": "Bearer   "}, "no_key"),
        ({"authorization": "Basic YTpi"}, "no_key"),
        ({"authorization": "mk_" + "A" * 43}, "no_key"),
        ({"x-api-key": "mk_" + "A" * 43}, "bad_key"),
        ({"x-api-key": "x" * 10_000_000}, "bad_key"),
        ({"authorization": "Bearer " + "x" * 10_000_000}, "bad_key"),
        ({"authorization": "Bearer a.b.c"}, "bad_key"),
        ({"authorization": " " * 1_000_000}, "no_key"),
        ({"x-api-key": "mk_" + "\0" * 43}, "bad_key"),
        ({"x-api-key": "mk_schlüssel-für-alle"}, "bad_key"),
        ({"x-api-key": "mk_\ud800\udfff"}, "bad_key"),
        ({"x-api-key": "../../etc/passwd"}, "bad_key"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_strangers(closed: tuple[Access, str], headers: dict[str, str], code: str) -> None:
    began = time.monotonic()
    assert code_of(closed[0], headers) == code
    assert time.monotonic() - began < 1


def test_an_expired_key(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = keys.add(home / "keys.json", "a", days=1)
    asked = Access(config())
    assert asked.caller({"x-api-key": key}).id == "a"

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(days=1)

    monkeypatch.setattr(keys, "datetime", Later)
    assert code_of(asked, {"x-api-key": key}) == "expired_key"


def test_keys_and_tokens_side_by_side(home: Path, tmp_path: Path) -> None:
    from test_tokens import AUDIENCE, ISSUER, key_set, public, signed

    (tmp_path / "jwks.json").write_bytes(key_set(public("RS", "one")))
    section = {"jwks": str(tmp_path / "jwks.json"), "issuer": ISSUER, "audience": AUDIENCE}
    asked = Access(config(access=section))
    assert asked.may_wait
    assert code_of(asked, {}) == "no_key", "a service with an issuer is not open on loopback"
    found = asked.caller({"authorization": f"Bearer {signed()}"})
    assert found.id.startswith("oidc:")
    assert "anna" not in found.id
    assert found.role == "user"
    assert code_of(asked, {"authorization": "Bearer mk_" + "A" * 43}) == "bad_key"
    assert code_of(asked, {"authorization": "Bearer nonsense"}) == "bad_token"
    key = keys.add(home / "keys.json", "a", "admin")
    assert asked.caller({"authorization": f"Bearer {key}"}) == Caller("a", "admin")
    (tmp_path / "jwks.json").write_bytes(b"")
    asked.caller({"x-api-key": key})
    with pytest.raises(Refused):
        asked.caller({"authorization": f"Bearer {signed(kid='x')}"})
    assert len(asked.troubles()) == 1
    assert str(tmp_path) not in asked.troubles()[0]


def test_a_start_that_others_can_reach_needs_keys(home: Path, tmp_path: Path) -> None:
    check_start(config())
    far = config(host="0.0.0.0")  # noqa: S104
    with pytest.raises(ConfigError, match="medray key add NAME"):
        check_start(far)
    keys.add(home / "keys.json", "a", days=1)
    check_start(far)
    named = config(host="10.0.0.1", access={"keys": str(tmp_path / "other.json")})
    with pytest.raises(ConfigError, match=r"serve\.access\.keys.*no such file"):
        check_start(named)
    with pytest.raises(ConfigError, match="no such file"):
        check_start(config(access={"keys": str(tmp_path / "other.json")}))
    keys.add(tmp_path / "other.json", "a")
    check_start(named)
    keys.remove(tmp_path / "other.json", "a")
    with pytest.raises(ConfigError, match=r"medray key add NAME --keys '.*other\.json'"):
        check_start(named)
    issuer = {"issuer": "i", "audience": "a"}
    check_start(config(host="0.0.0.0", access={"jwks": "https://issuer.example/jwks", **issuer}))  # noqa: S104
    with pytest.raises(ConfigError, match=r"serve\.access\.jwks"):
        check_start(config(access={"jwks": "http://issuer.example/jwks", **issuer}))


def test_keys_that_are_over_do_not_let_a_service_start(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys.add(home / "keys.json", "a", days=1)
    monkeypatch.setattr(keys.Entry, "expired", lambda _: True)
    with pytest.raises(ConfigError, match="no keys that count"):
        check_start(config(host="0.0.0.0"))  # noqa: S104
    assert code_of(Access(config()), {}) == "no_key", "on loopback they keep it closed"


def test_a_broken_key_file_stops_the_start(home: Path) -> None:
    (home / "keys.json").write_text("{")
    for start in (check_start, Access):
        with pytest.raises(ConfigError, match=r"serve\.access\.keys.*no JSON"):
            start(config())


def test_plain_text_is_warned_of(tmp_path: Path) -> None:
    assert access.warnings(config()) == ()
    (line,) = access.warnings(config(host="0.0.0.0"))  # noqa: S104
    assert "plain text" in line
    secure = {"certificate": str(tmp_path / "a"), "private_key": str(tmp_path / "b")}
    assert access.warnings(config(host="0.0.0.0", **secure)) == ()  # noqa: S104
