"""Experiment: one frozen, typed description of a run, from a YAML file and dotted `key=value` overrides.

Every mistake is reported at once, each with the nearest right key. A plug-in's settings are the class
`Config` in the file that its name names: `network: {name: resnet}` is medray/networks/resnet.py.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, cast, get_args

from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import BaseModel, BeforeValidator, Field, SerializeAsAny, ValidationError
from pydantic_core import PydanticCustomError
from yaml import YAMLError

from medray.sections.augment import AugmentSection
from medray.sections.base import DatasetSection, NetworkSection, Plugin, Section, TaskSection
from medray.sections.data import PreprocessSection, SplitSection
from medray.sections.inference import WindowSection
from medray.sections.service import ServeSection, TrackingSection
from medray.sections.training import OptimizerSection, ScalingSection, ScheduleSection, TrainSection
from medray.sections.trust import TrustSection
from medray.sections.tuning import TuneSection

PACKAGE = Path(__file__).parent
EXPERIMENTS = PACKAGE / "experiments"
DEFAULT_EXPERIMENT = "phantom"
MAX_YAML_BYTES = 1 << 20


class ConfigError(Exception):
    """Everything that is wrong with an experiment, one line per mistake."""

    def __init__(self, mistakes: Iterable[str]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(self.mistakes))


def plugins(folder: str) -> tuple[str, ...]:
    """Names of the plug-ins in medray/`folder`: the files that define a `Config`."""
    files = sorted((PACKAGE / folder).glob("*.py"))
    return tuple(file.stem for file in files if re.search(r"^class Config\(", file.read_text(encoding="utf-8"), re.M))


def load_plugin(folder: str, name: str) -> ModuleType:
    """The module medray/`folder`/`name`.py."""
    return import_module(f"medray.{folder}.{name}")


def _resolve(folder: str, value: object) -> Plugin:
    """Settings of the plug-in that `value` names, checked by the plug-in's own Config."""
    if isinstance(value, Plugin):
        return value
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        known = ", ".join(plugins(folder))
        raise PydanticCustomError("plugin", "needs a name, one of: {known}", {"known": known})
    name = value["name"]
    if name not in plugins(folder):
        known = ", ".join(plugins(folder))
        near = nearest(name, plugins(folder))
        raise PydanticCustomError(
            "plugin", "'{name}' not found{near}; there are: {known}", {"name": name, "near": near, "known": known}
        )
    config = cast(type[Plugin], load_plugin(folder, name).Config)
    return config.model_validate(dict(value))


class Experiment(Section):
    """One run, whole: what flows unchanged through prepare, train, tune, track and serve."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]
    """Names the MLflow experiment, the run folders and the registered model."""
    seed: int = 0
    dataset: Annotated[SerializeAsAny[DatasetSection], BeforeValidator(partial(_resolve, "datasets"))]
    split: SplitSection = SplitSection()
    preprocess: PreprocessSection = PreprocessSection()
    window: WindowSection = WindowSection()
    augment: AugmentSection = AugmentSection()
    task: Annotated[SerializeAsAny[TaskSection], BeforeValidator(partial(_resolve, "tasks"))]
    network: Annotated[SerializeAsAny[NetworkSection], BeforeValidator(partial(_resolve, "networks"))]
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    train: TrainSection = TrainSection()
    trust: TrustSection = TrustSection()
    scaling: ScalingSection = ScalingSection()
    tracking: TrackingSection = TrackingSection()
    tune: TuneSection = TuneSection()
    serve: ServeSection = ServeSection()

    @property
    def model_name(self) -> str:
        """Name in the model registry."""
        return self.tracking.model or self.name


PLUGIN_FOLDERS = {"dataset": "datasets", "task": "tasks", "network": "networks"}


def load(source: str | Path | None = None, overrides: Iterable[str] = ()) -> Experiment:
    """The experiment in a YAML file, or the packaged one of that name, with `key=value` overrides.

    Raises:
        ConfigError: with every mistake in file and overrides.
    """
    file = _find(source or DEFAULT_EXPERIMENT)
    return parse(_override(_read_yaml(file), overrides))


def parse(tree: Mapping[str, Any]) -> Experiment:
    """The experiment in a plain tree of settings; relative paths are taken from the working folder.

    Raises:
        ConfigError: with every mistake.
    """
    try:
        return Experiment.model_validate(dict(tree))
    except ValidationError as error:
        raise ConfigError(_explain(error, tree)) from None


def override(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """The experiment with dotted keys set to plain values, checked again.

    Raises:
        ConfigError: with every mistake.
    """
    config = OmegaConf.create(experiment.model_dump(mode="json"))
    if mistakes := _set_all(config, values):
        raise ConfigError(mistakes)
    return parse(_plain(config))


def to_yaml(experiment: Experiment) -> str:
    """The whole experiment, defaults included, as YAML that `load` takes."""
    return str(OmegaConf.to_yaml(OmegaConf.create(experiment.model_dump(mode="json"))))


def _find(source: str | Path) -> Path:
    """The file that `source` names."""
    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError([f"experiment file '{path}' does not exist (looked in {Path.cwd()})"])
        return path
    packaged = EXPERIMENTS / f"{source}.yaml"
    if not packaged.is_file():
        known = sorted(file.stem for file in EXPERIMENTS.glob("*.yaml"))
        near = nearest(str(source), known)
        raise ConfigError(
            [f"experiment '{source}' not found{near}; packaged are: {', '.join(known)}; or give a .yaml file"]
        )
    return packaged


def _read_yaml(file: Path) -> Any:
    """The tree in a YAML file, safely loaded."""
    if file.stat().st_size > MAX_YAML_BYTES:
        raise ConfigError([f"{file.name} is {file.stat().st_size} bytes; an experiment has at most {MAX_YAML_BYTES}"])
    try:
        config = OmegaConf.load(file)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ConfigError([f"{file.name} is not valid YAML: {' '.join(str(error).split())}"]) from None
    if not OmegaConf.is_dict(config):
        raise ConfigError([f"{file.name} holds no sections; expected 'dataset:', 'network:', ..."])
    return config


def _override(config: Any, overrides: Iterable[str]) -> dict[str, Any]:
    """The tree with `key=value` settings in it."""
    mistakes, values = [], {}
    for item in overrides:
        key, separator, value = item.partition("=")
        if not separator or not key:
            mistakes.append(f"'{item}' is not a setting; write key=value, for example train.epochs=50")
            continue
        try:
            values[key] = OmegaConf.from_dotlist([f"value={value}"]).value
        except (OmegaConfBaseException, YAMLError) as error:
            mistakes.append(f"'{item}': {' '.join(str(error).split())}")
    mistakes += _set_all(config, values)
    if mistakes:
        raise ConfigError(mistakes)
    return _plain(config)


def _set_all(config: Any, values: Mapping[str, Any]) -> list[str]:
    """Set dotted keys; a mapping replaces a mapping, and another plug-in the settings of the one before."""
    mistakes = []
    for section in PLUGIN_FOLDERS:
        if isinstance(config.get(section), str):
            config[section] = {"name": config[section]}
    # A bare name is the short form of a plug-in without settings.
    values = {f"{k}.name" if k in PLUGIN_FOLDERS and isinstance(v, str) else k: v for k, v in values.items()}
    # Names first: they may clear a section whose other settings are given beside them.
    for key in sorted(values, key=lambda key: not key.endswith(".name")):
        section = key.removesuffix(".name")
        try:
            if section in PLUGIN_FOLDERS and OmegaConf.select(config, f"{section}.name") not in (None, values[key]):
                OmegaConf.update(config, section, {}, merge=False)
            OmegaConf.update(config, key, values[key], merge=False, force_add=True)
        except (OmegaConfBaseException, TypeError, ValueError) as error:
            mistakes.append(f"'{key}': {' '.join(str(error).split())}")
    return mistakes


def _plain(config: Any) -> dict[str, Any]:
    """The tree as plain dicts and lists, interpolations resolved."""
    try:
        return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    except MissingMandatoryValue as error:
        raise ConfigError([f"{error.full_key}: is missing; give it as {error.full_key}=..."]) from None
    except OmegaConfBaseException as error:
        raise ConfigError([" ".join(str(error).split())]) from None


def _explain(error: ValidationError, tree: Mapping[str, Any]) -> Iterator[str]:
    """One line per mistake: where, what, and the nearest right key."""
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            near = nearest(str(item["loc"][-1]), _fields(item["loc"][:-1], tree))
            yield f"{where}: no such setting{near}"
        elif item["type"] == "missing":
            yield f"{where}: is missing"
        else:
            message = item["msg"].removeprefix("Value error, ")
            given = item["input"]
            shown = "" if isinstance(given, Mapping | BaseModel) else f" (got {given!r})"
            yield f"{where}: {message}{shown}"


def _fields(loc: tuple[int | str, ...], tree: Mapping[str, Any]) -> list[str]:
    """Names of the settings at a place of the experiment."""
    section: type[BaseModel] = Experiment
    value: Any = tree
    for part in loc:
        value = value.get(part) if isinstance(value, Mapping) else None
        if section is Experiment and part in PLUGIN_FOLDERS:
            name = value if isinstance(value, str) else (value or {}).get("name")
            section = load_plugin(PLUGIN_FOLDERS[str(part)], str(name)).Config
            continue
        inner = [section.model_fields[str(part)].annotation] if str(part) in section.model_fields else []
        inner += [argument for annotation in inner for argument in get_args(annotation)]
        found = [cls for cls in inner if isinstance(cls, type) and issubclass(cls, BaseModel)]
        if not found:
            return []
        section = found[0]
    return list(section.model_fields)


def nearest(word: str, known: Iterable[str]) -> str:
    """'; did you mean ...?' where something known is close, else ''."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
