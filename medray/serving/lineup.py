"""Which versions are served: aliases are resolved once, and what was resolved last stands in for a registry that is
down."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medray.bundle import BundleError, load
from medray.cluster import home
from medray.config import ConfigError
from medray.serving.messages import Entry, Part


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


def lineup(wish: Wish) -> tuple[Entry, ...]:
    """The versions that are meant, their bundles on this machine.

    Raises:
        RegistryError, ConfigError, BundleError: there is no such model, or it cannot be used.
    """
    entries = [of_bundle(folder) for folder in wish.bundles]
    if wish.models or not wish.bundles:
        entries += [of_registry(reference, wish.tracking) for reference in wish.models or ("",)]
    for reference, part in ((wish.canary, "canary"), (wish.shadow, "shadow")):
        if reference:
            entries.append(_beside(entries, of_registry(reference, wish.tracking), part, wish.share))
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


def of_registry(reference: str, uri: str | None) -> Entry:
    """A version in the registry, by alias or number; empty: the newest champion.

    Where the registry cannot be asked, the version that it last said, if its bundle is here and unaltered.

    Raises:
        RegistryError: there is no such model.
        ConfigError: the registry cannot be asked, and nothing is known of the model here.
    """
    from medray.tracking import registry
    from medray.tracking.run import client

    try:
        mlflow = client(uri)
        name, _, alias = (reference or registry.newest_champion(mlflow)).partition("@")
        folder, said = registry.fetch(mlflow, f"{name}@{alias or registry.CHAMPION}")
    except (registry.RegistryError, BundleError):
        raise
    except Exception as error:  # of many libraries, all of which mean that it does not answer
        return _recalled(reference, type(error).__name__)
    entry = Entry(name, said.rpartition("/")[2], load(folder).digest, str(folder), alias or registry.CHAMPION)
    _remember(reference, entry)
    return entry


def _memory(reference: str) -> Path:
    """Where it is written what a reference meant."""
    return home() / "models" / ".resolved" / f"{reference.replace('/', '_') or 'champion'}.json"


def _remember(reference: str, entry: Entry) -> None:
    file = _memory(reference)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(entry.as_dict()), encoding="utf-8")
    temporary.replace(file)


def _recalled(reference: str, why: str) -> Entry:
    file = _memory(reference)
    if file.is_file():
        entry = Entry.of(json.loads(file.read_text(encoding="utf-8")))
        if load(Path(entry.folder)).digest == entry.digest:
            return entry
    raise ConfigError(
        [f"the registry cannot be asked ({why}), and '{reference or 'the champion'}' was never served from here"]
    )
