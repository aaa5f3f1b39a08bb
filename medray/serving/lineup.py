"""Which versions are served: aliases are resolved once, and what was resolved last stands in for a registry that is
down."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medray.bundle import BundleError, load
from medray.cluster import home
from medray.config import ConfigError
from medray.serving.messages import Entry, Part

logger = logging.getLogger(__name__)
Say = Callable[[str], None]
IMPATIENT: Mapping[str, str] = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person asks to be served."""

    models: tuple[str, ...] = ()
    """name@alias or name@version; none, and no bundles: the newest champion."""
    bundles: tuple[Path, ...] = ()
    canary: str = ""
    share: float = 0.1
    shadow: str = ""
    tracking: str | None = None
    """The registry."""


def lineup(wish: Wish, say: Say = logger.warning) -> tuple[Entry, ...]:
    """The versions that are meant, their bundles on this machine; `say` tells a person where memory stood in.

    Raises:
        RegistryError, ConfigError, BundleError: there is no such model, or it cannot be used.
    """
    entries = [of_bundle(folder) for folder in wish.bundles]
    if wish.models or not wish.bundles:
        entries += [of_registry(reference, wish.tracking, say) for reference in wish.models or ("",)]
    for reference, part in ((wish.canary, "canary"), (wish.shadow, "shadow")):
        if reference:
            entries.append(_beside(entries, of_registry(reference, wish.tracking, say), part, wish.share))
    names = [entry.reference for entry in entries]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError([f"--model: {twice[0]} is served already"])
    return tuple(entries)


def _beside(entries: Sequence[Entry], entry: Entry, part: str, share: float) -> Entry:
    if entry.name not in {one.name for one in entries}:
        raise ConfigError([f"--{part}: '{entry.name}' is not served; a {part} is another version of a model that is"])
    if not 0 < share <= 1:
        raise ConfigError([f"--share: {share} is no share of the images; take more than 0, at most 1"])
    kind: Part = "canary" if part == "canary" else "shadow"
    return replace(entry, part=kind, share=share if part == "canary" else 1.0)


def of_bundle(folder: Path) -> Entry:
    """A bundle that is in no registry; its version is the start of its digest.

    Raises:
        BundleError: it is none, or altered.
    """
    bundle = load(folder.absolute())
    return Entry(bundle.experiment.name, bundle.digest[:12], bundle.digest, str(folder.absolute()))


def of_registry(reference: str, uri: str | None, say: Say | None = logger.warning) -> Entry:
    """A version in the registry, by alias or number; empty: the newest champion.

    Where the registry cannot be asked and there is somebody to `say` it to, the version that it last named, if its
    bundle is here and unaltered.

    Raises:
        RegistryError: there is no such model.
        ConfigError: the registry cannot be asked, and nothing is known of the model here.
    """
    # By default MLflow tries for minutes.
    for name, value in IMPATIENT.items():
        os.environ.setdefault(name, value)
    from medray.tracking import registry
    from medray.tracking.run import TrackingError, client

    try:
        mlflow = client(uri)
        name, _, alias = (reference or registry.newest_champion(mlflow)).partition("@")
        folder, said = registry.fetch(mlflow, f"{name}@{alias or registry.CHAMPION}")
    except (TrackingError, OSError) as error:
        found = _recalled(reference, uri)
        if say is None or found is None:
            fact = f"the registry cannot be asked ({type(error).__name__})"
            meant = reference or "the champion"
            raise ConfigError([f"{fact}, and no verified copy of '{meant}' is here"]) from None
        say(f"note: the registry does not answer ({type(error).__name__}); {found.reference} is what it named last")
        return found
    alias = alias or registry.CHAMPION
    number = said.rpartition("/")[2]
    entry = Entry(name, number, load(folder).digest, str(folder), "" if alias == number else alias)
    _remember(reference, uri, entry)
    return entry


def _memory(reference: str, uri: str | None) -> Path:
    """Where it is written what a reference to a registry meant."""
    digest = hashlib.sha256(f"{uri or ''}\n{reference}".encode()).hexdigest()
    return home() / "models" / ".resolved" / f"{digest[:32]}.json"


def _remember(reference: str, uri: str | None, entry: Entry) -> None:
    file = _memory(reference, uri)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(entry.as_dict()), encoding="utf-8")
    temporary.replace(file)


def _recalled(reference: str, uri: str | None) -> Entry | None:
    """What a reference meant when it was asked for last; None where that is not known, or is not whole."""
    try:
        entry = Entry.of(json.loads(_memory(reference, uri).read_text(encoding="utf-8")))
        return entry if load(Path(entry.folder)).digest == entry.digest else None
    except (OSError, ValueError, TypeError, BundleError):
        return None
