"""What is asked for: the model, the cases that are meant, and what they are to the model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medray.bundle import ModelBundle
from medray.cluster import home
from medray.config import ConfigError
from medray.evaluation import provenance, source
from medray.evaluation.provenance import Training
from medray.evaluation.source import Labelled, Part
from medray.inference.predictor import Predictor
from medray.pipeline.examine import report_folder
from medray.pipeline.split import split
from medray.tracking import registry
from medray.tracking.run import client
from medray.types import CaseRef, InputError


@dataclass(frozen=True, slots=True)
class Request:
    """The words of the command; see medray/cli_evaluate.py."""

    data: str | None = None
    settings: Sequence[str] = ()
    model: str | None = None
    bundle: Path | None = None
    compare: str | None = None
    part: Part | None = None
    positive: str | None = None
    table: Path | None = None
    by: tuple[str, ...] = ()
    private: bool = False
    limit: int | None = None
    out: Path | None = None
    device: str = "cpu"
    record: bool = True
    tracking: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """The cases that are evaluated."""

    labelled: Labelled
    refs: tuple[CaseRef, ...]
    part: Part
    asked: int
    """Cases of the part, before any limit."""
    method: str
    training: Training | None
    same: bool
    """Whether they are of the data that the bundle was trained on."""


def open_model(asked: Request) -> tuple[Predictor, str]:
    """The bundle that is evaluated, resident, and its name.

    Raises:
        BundleError, RegistryError: there is none, or it is altered.
    """
    if asked.bundle is not None:
        return Predictor(asked.bundle, asked.device), asked.bundle.absolute().name
    mlflow = client(asked.tracking)
    folder, name = registry.fetch(mlflow, asked.model or registry.newest_champion(mlflow))
    return Predictor(folder, asked.device), name


def open_rival(asked: Request, bundle: ModelBundle) -> tuple[Predictor, str] | None:
    """The bundle to compare with, if one is asked for.

    Raises:
        BundleError, RegistryError: there is none.
        ConfigError: it answers another task or other classes.
    """
    if asked.compare is None:
        return None
    if Path(asked.compare).is_dir():
        place = Path(asked.compare).absolute()
        found = Predictor(place, asked.device), place.name
    else:
        folder, name = registry.fetch(client(asked.tracking), asked.compare)
        found = Predictor(folder, asked.device), name
    other = found[0].bundle
    ours, theirs = ((b.experiment.task.name, b.card["multilabel"], sorted(b.classes)) for b in (bundle, other))
    if ours != theirs:
        kinds = [f"a {b.experiment.task.name} of {', '.join(b.classes)}" for b in (bundle, other)]
        raise ConfigError([f"--compare: the model is {kinds[0]}; the other is {kinds[1]}: they cannot be compared"])
    return found


def choose(asked: Request, predictor: Predictor) -> Chosen:
    """The cases that are meant.

    Raises:
        ConfigError, InputError: the data, or the part of them, is not there, or does not fit the bundle.
    """
    bundle = predictor.bundle
    labelled = source.open_data(asked.data, asked.settings, bundle)
    training = provenance.retrace(labelled.dataset, bundle, lambda ref: _readable(predictor, ref))
    same = training is not None and (labelled.own or training.proven)
    part = asked.part or source.default_part(labelled, same)
    if part == "all":
        indices = None
    elif training is not None and same:
        indices = training.indices
    else:
        indices = split(labelled.dataset, labelled.experiment.split)
    labelled = source.looking_for(asked.positive, labelled, bundle)
    refs, total, method = source.pick_cases(labelled, part, indices, asked.limit)
    return Chosen(labelled, refs, part, total, method, training if same else provenance.training_data(bundle), same)


def _readable(predictor: Predictor, ref: CaseRef) -> bool:
    try:
        predictor.prepare(ref.source)
    except InputError:
        return False
    return True


def out_folder(labelled: Labelled, model: str, out: Path | None) -> Path:
    """Where the report goes: `out`, else evaluate-MODEL-DATA here, or in medray's home where here is inside the data.

    Raises:
        ConfigError: `out` is inside the data, where a later scan would meet it.
    """
    if out is not None:
        return report_folder(labelled.path, labelled.name, out)
    title = re.sub(r"[^A-Za-z0-9_.-]", "-", f"evaluate-{model}-{labelled.name}")
    here = Path.cwd() / title
    inside = (
        labelled.path is not None and labelled.path.is_dir() and here.resolve().is_relative_to(labelled.path.resolve())
    )
    return home() / "evaluations" / title if inside else here
