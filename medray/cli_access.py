"""The verbs of who may ask a service, and of its record: key and audit. They belong to medray/cli.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from cyclopts import App

from medray.config import ConfigError
from medray.console import Result

GATE = 4
"""Exit code of a record that is not whole."""


def register(app: App) -> None:
    """Add the verbs to `app`."""
    key = App(name="key", help="Keys of who may ask a service.")
    key.command(add)
    key.command(listed, name="list")
    key.command(remove)
    audit = App(name="audit", help="The record of who asked what of which model.")
    audit.command(verify)
    app.command(key)
    app.command(audit)


def add(
    name: str, *, role: Literal["viewer", "user", "admin"] = "user", days: int | None = None, keys: Path | None = None
) -> Result:
    """Make a key, and show it this once: the file keeps only a hash of it.

    A viewer sees what there is, a user asks for predictions, an admin sees what others asked.

    Args:
        name: of the key; the record says who asked by it.
        role: what its bearer may do.
        days: until it counts no longer; by default it counts until it is removed.
        keys: the key file; by default keys.json in medray's home folder.
    """
    from medray.serving import keys as keyring

    file = keys or keyring.default_path()
    key = keyring.add(file, name, role, days)
    entry = next(entry for entry in keyring.entries(file) if entry.id == name)
    sys.stderr.write("this key is shown only now; send it as X-API-Key\n")
    return Result(key=key, **_public(entry.as_dict()), file=str(file))


def listed(*, keys: Path | None = None) -> Result:
    """Name the keys that there are, and what each may do.

    Args:
        keys: the key file; by default keys.json in medray's home folder.
    """
    from medray.serving import keys as keyring

    file = keys or keyring.default_path()
    entries = keyring.entries(file)
    for entry in entries:
        ends = (
            "" if entry.expires is None else f"  {'expired' if entry.expired() else 'until'} {entry.expires:%Y-%m-%d}"
        )
        sys.stderr.write(f"{entry.id:24} {entry.role:6}{ends}\n")
    there = [_public(entry.as_dict()) | {"expired": entry.expired()} for entry in entries]
    return Result(file=str(file), keys=there)


def remove(name: str, *, keys: Path | None = None) -> Result:
    """Take a key away; a service that is running knows within some seconds.

    Args:
        name: of the key.
        keys: the key file; by default keys.json in medray's home folder.
    """
    from medray.serving import keys as keyring

    file = keys or keyring.default_path()
    keyring.remove(file, name)
    return Result(removed=name, file=str(file))


def verify(folder: Path | None = None) -> Result:
    """Whether a record is as it was written: no line changed, taken out, put in or moved. Exit code 4 where it is not.

    Args:
        folder: of the record; by default audit in medray's home folder.
    """
    from medray.serving import audit

    place = folder or audit.default_folder()
    try:
        verdict = audit.verify(place)
    except OSError as error:
        raise ConfigError([f"'{place}' cannot be read: {error.strerror}"]) from None
    for fault in verdict.faults:
        sys.stderr.write(f"{fault}\n")
    outcome = Result(
        folder=str(place), lines=verdict.lines, first=verdict.first, last=verdict.last, faults=len(verdict.faults)
    )
    outcome.exit_code = GATE if verdict.faults else 0
    return outcome


def _public(entry: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in entry.items() if name != "sha256"}
