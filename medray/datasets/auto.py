"""Which layout a path is: told from names and a few first bytes, with what was seen and why; never a guess."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import ConfigDict, ValidationError

from medray.config import ConfigError, load_plugin, nearest, plugins
from medray.datasets.files import absolute
from medray.datasets.seen import look
from medray.datasets.signs import SIGNS, Found
from medray.remote import here
from medray.sections.base import AbsolutePath, DatasetSection
from medray.types import Dataset


class Config(DatasetSection):
    """Where the dataset is; all other settings are those of the layout that it turns out to be."""

    model_config = ConfigDict(extra="allow")

    name: Literal["auto"] = "auto"
    path: AbsolutePath


def detect(cfg: Config) -> Found:
    """The one layout that fits the path.

    Names are listed, and the first bytes of at most 20 files are read.

    Raises:
        ConfigError: nothing at the path, no layout fits it, or several do.
    """
    seen = look(absolute(cfg.path))
    found = [answer for sign in SIGNS if (answer := sign(seen))]
    if not found:
        known = ", ".join(name for name in plugins("datasets") if name != cfg.name)
        raise ConfigError([f"dataset.path: no layout fits '{seen.path}' ({seen.summary}); layouts are {known}"])
    if len(found) > 1:
        fits = "; ".join(f"{answer.layout} ({answer.why})" for answer in found)
        raise ConfigError([f"dataset.path: several layouts fit '{seen.path}': {fits}; name one: dataset.name=..."])
    return found[0]


def scan(cfg: Config) -> Dataset:
    """The dataset in the layout that fits, with a note of what was seen and why.

    Raises:
        ConfigError: no layout fits or several do, or a setting that the layout does not have.
        InputError: as the layout's own scan.
    """
    found = detect(cfg)
    module = load_plugin("datasets", found.layout)
    given = {key: getattr(cfg, key) for key in sorted(cfg.model_fields_set - {"name", "path"})}
    dataset: Dataset = module.scan(here(_settings(module.Config, {**found.settings, **given}, found.layout)))
    return replace(dataset, notes=(f"looks like {found.layout}: {found.why}", *dataset.notes))


def _settings(config: type[DatasetSection], values: Mapping[str, Any], layout: str) -> DatasetSection:
    """The layout's settings, checked by itself."""
    try:
        return config.model_validate(dict(values))
    except ValidationError as error:
        mistakes = []
        for item in error.errors():
            where = ".".join(map(str, item["loc"]))
            unknown = item["type"] == "extra_forbidden"
            near = nearest(where, config.model_fields) if unknown else ""
            mistakes.append(f"dataset.{where}: " + (f"{layout} has no such setting{near}" if unknown else item["msg"]))
        raise ConfigError(mistakes) from None
