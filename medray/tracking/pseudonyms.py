"""Keyed pseudonyms of case ids: what logs and MLflow see. The map stays in the run's local folder."""

from __future__ import annotations

import csv
import hashlib
import hmac
import os
from collections.abc import Iterable
from pathlib import Path

from medray.cluster import home
from medray.config import ConfigError
from medray.imaging.deid.keyed import load_key

CHARACTERS = 12


def key() -> bytes:
    """The secret of this installation, made once, readable by its owner alone.

    Raises ConfigError where its file holds no key.
    """
    try:
        return load_key(home() / "pseudonym.key")
    except ValueError as error:
        raise ConfigError([str(error)]) from None


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
