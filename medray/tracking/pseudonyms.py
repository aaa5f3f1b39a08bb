"""Keyed pseudonyms of case ids: what logs and MLflow see. The map stays in the run's local folder."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import hmac
import os
import secrets
import tempfile
from collections.abc import Iterable
from pathlib import Path

from medray.cluster import home

CHARACTERS = 12


def key() -> bytes:
    """The secret of this installation, made once, readable by its owner alone."""
    file = home() / "pseudonym.key"
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.is_file():
        with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=".key-", encoding="ascii") as stream:
            stream.write(secrets.token_hex(32))
            stream.flush()
            # A link appears whole or not at all, and the first of several processes wins.
            with contextlib.suppress(FileExistsError):
                os.link(stream.name, file)
    return bytes.fromhex(file.read_text(encoding="ascii"))


def pseudonym(case_id: str, secret: bytes) -> str:
    """The same case has the same pseudonym under the same key, and nobody without it can go back."""
    return hmac.new(secret, case_id.encode(errors="surrogateescape"), hashlib.sha256).hexdigest()[:CHARACTERS]


def write_map(file: Path, case_ids: Iterable[str], secret: bytes) -> None:
    """The way back, as CSV, readable by its owner alone."""
    with os.fdopen(
        os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8", errors="surrogateescape"
    ) as stream:
        writer = csv.writer(stream)
        writer.writerow(["pseudonym", "case_id"])
        writer.writerows([pseudonym(case_id, secret), case_id] for case_id in case_ids)
