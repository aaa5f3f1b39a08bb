"""`medray key` and `medray audit`, as they are run: what they print, write and return."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from cyclopts import App

from medray import cli_access
from medray.console import answer
from medray.serving.audit import AuditLog
from medray.serving.keys import KeyFile

REQUEST = {"time": "2026-11-25T23:00:00Z", "request": "0" * 32, "caller": "a", "status": 200}


def run(*arguments: object) -> tuple[int, dict[str, Any]]:
    """Exit code and the last line of stdout, {} where there is none."""
    app, stdout = App(name="medray"), io.StringIO()
    cli_access.register(app)
    code = answer(app, [*map(str, arguments)], stdout)
    found = stdout.getvalue().splitlines()
    return code, json.loads(found[-1]) if found else {}


def test_the_life_of_a_key(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, made = run("key", "add", "ward-3", "--role", "viewer", "--days", "30")
    assert code == 0
    assert made["file"] == str(home / "keys.json")
    assert (made["id"], made["role"]) == ("ward-3", "viewer")
    assert made["expires"] > made["created"]
    assert made["key"] not in capsys.readouterr().err
    entry = KeyFile(home / "keys.json").find(made["key"])
    assert entry is not None
    assert entry.id == "ward-3"
    run("key", "add", "pacs")
    code, there = run("key", "list")
    assert code == 0
    assert [(key["id"], key["role"], key["expired"]) for key in there["keys"]] == [
        ("ward-3", "viewer", False),
        ("pacs", "user", False),
    ]
    assert "sha256" not in json.dumps(there)
    assert made["key"] not in json.dumps(there)
    assert "ward-3" in capsys.readouterr().err
    assert run("key", "remove", "ward-3") == (0, {"removed": "ward-3", "file": str(home / "keys.json")})
    assert [key["id"] for key in run("key", "list")[1]["keys"]] == ["pacs"]


def test_another_file(tmp_path: Path, home: Path) -> None:
    file = tmp_path / "other.json"
    assert run("key", "add", "a", "--keys", file)[1]["file"] == str(file)
    assert len(run("key", "list", "--keys", file)[1]["keys"]) == 1
    assert run("key", "remove", "a", "--keys", file)[0] == 0
    assert not (home / "keys.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("key", "add", "a b"), "cannot be the name"),
        (("key", "add", "a", "--role", "root"), "root"),
        (("key", "add", "a", "--days", "0"), "days: 0"),
        (("key", "add", "a", "--days", "99999999999999999999"), "is not between"),
        (("key", "remove", "a"), "no key 'a'; there are: none"),
        (("audit", "verify"), "No such file"),
        (("audit", "verify", "/dev/null"), "Not a directory"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == (2, {})
    assert said in capsys.readouterr().err


def test_a_record_is_verified(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = AuditLog(home / "audit", 400)
    log.append([REQUEST] * 3)
    log.close()
    code, found = run("audit", "verify")
    assert (code, found["lines"], found["faults"], found["last"]) == (0, 4, 0, REQUEST["time"])
    (file,) = (home / "audit").glob("*.jsonl")
    file.write_bytes(file.read_bytes().replace(b'"status":200', b'"status":201', 2))
    code, found = run("audit", "verify", home / "audit")
    assert (code, found["faults"]) == (4, 2)
    said = capsys.readouterr().err
    assert f"{file.name}:3 does not follow" in said
    assert f"{file.name}:4 does not follow" in said
