"""`medray plan`: from a dataset to an experiment that trains on it, every number with its reason."""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medray.cluster import Mapper
from medray.config import ConfigError, Experiment, parse
from medray.datasets import auto
from medray.datasets.files import read_json
from medray.datasets.scan import scan
from medray.imaging import reader
from medray.networks.memory import GB
from medray.pipeline.examine import Meter, experiment_of
from medray.pipeline.fingerprint import Fingerprint, fingerprint
from medray.pipeline.plan_cases import plan_classification
from medray.pipeline.plan_dense import plan_segmentation
from medray.pipeline.plan_rules import Tree, by, looks_like_ct, plain
from medray.pipeline.plan_yaml import as_yaml
from medray.pipeline.speed import Budget
from medray.pipeline.split import split
from medray.pipeline.survey import Read
from medray.remote import mirrored
from medray.sections.base import is_remote, url_of
from medray.types import Dataset

FREE_SECTIONS = {"dataset", "split", "name"}
"""What a command line may set; the others are the plan's."""
SOURCE = "the rules of nnU-Net (Isensee 2021, 10.1038/s41592-020-01008-z)"
MOST_LISTED = 8
CT_HINT = "intensities reach down to -1000 as in CT, but nothing says so: if it is CT, plan again with --modality CT"


@dataclass(frozen=True, slots=True)
class Files:
    """What a plan writes."""

    experiment: Path | None = None
    """By default plan-NAME.yaml in the working folder."""
    fingerprint: Path | None = None
    """JSON of every case; it names them, and is written only where asked for."""


def plan(
    data: str,
    settings: Sequence[str],
    budget: Budget,
    modality: str | None = None,
    files: Files | None = None,
    mapper: Mapper[Any, Any] = map,
    read: Read = reader.read,
) -> dict[str, Any]:
    """Measure a dataset, plan a training for it, write the experiment and tell a person on stderr.

    Args:
        data: a path to a dataset, or an experiment (.yaml, or a packaged name) whose dataset and split count.
        settings: key=value changes to dataset, split and name.
        budget: what the training may take.
        modality: DICOM code of all images, where their files do not say it.
        files: what to write.
        mapper: `map`, or `cluster.parallel_map`.
        read: Source -> Case, picklable (see `survey.Read`).

    Raises:
        ConfigError: wrong settings, nothing at the path, too little memory, or data that no task fits.
        InputError: as the dataset's layout, or no case can be read.
    """
    began = time.monotonic()
    files = files or Files()
    experiment = _given(data, settings)
    dataset = scan(experiment.dataset)
    if not any(ref.label_map for ref in dataset.refs) and any(ref.boxes for ref in dataset.refs):
        raise ConfigError(["dataset: its labels are boxes; medray plans segmentation and classification"])
    train_cases = len(split(dataset, experiment.split).train)
    found = fingerprint(dataset, mapper, read, Meter())
    kind = modality or _modality(found, experiment)
    decided: Tree
    if found.labelled:
        decided, dense = plan_segmentation(found, budget, kind)
        needs, step_s, steps = dense.needs, dense.step_s, dense.steps
    else:
        decided, cases = plan_classification(found, budget, kind, dataset.multilabel, train_cases)
        needs, step_s, steps = cases.needs, cases.step_s, cases.steps
    tree = {**_own_sections(data, experiment), **decided}
    planned = parse(plain(tree))
    file = files.experiment or Path(f"plan-{planned.name}.yaml")
    minutes = steps * step_s / 60
    command = shlex.join(["medray", "train", str(file)])
    head = [
        f"{_summary(found, planned.name)}. Planned by medray from the data, after {SOURCE}.",
        *_facts(found, kind),
        f"Memory: a step needs {needs}; {budget.memory_bytes / GB:.1f} GB may go.",
        f"Time: {steps} steps of {step_s:.3g} s, measured on {budget.device}, are {minutes:.1f} min.",
        f"Command: {command}",
    ]
    file.write_text(as_yaml(head, tree), encoding="utf-8")
    if files.fingerprint is not None:
        files.fingerprint.write_text(found.as_json(), encoding="utf-8")
    _say(head, planned, dataset, kind, found, time.monotonic() - began)
    costs = {"steps": steps, "step_s": round(step_s, 4), "minutes": round(minutes, 2)}
    return {**_result(planned, found, file, files.fingerprint), **costs, "next": command}


def _result(planned: Experiment, found: Fingerprint, file: Path, measured: Path | None) -> dict[str, Any]:
    """What was planned, for programs."""
    return {
        "experiment": str(file),
        "fingerprint": str(measured) if measured else None,
        "task": planned.task.name,
        "cases": len(found.cases),
        "left_out": len(found.left_out),
        "batch_size": planned.train.batch_size,
        "epochs": planned.train.epochs,
    }


def _given(data: str, settings: Sequence[str]) -> Experiment:
    """The experiment whose dataset and split count."""
    wrong = [word for word in settings if re.split(r"[.=]", word)[0] not in FREE_SECTIONS]
    if wrong:
        raise ConfigError([f"'{word}': a plan decides this; change it in the file that it writes" for word in wrong])
    return experiment_of(data, settings)


def _own_sections(data: str, experiment: Experiment) -> Tree:
    """Name, dataset and split: the layout by its own name, and only what was set."""
    path = Path(data).expanduser()
    named = experiment.name
    if (path.exists() or is_remote(path)) and path.suffix not in (".yaml", ".yml") and named == "phantom":
        named = re.sub(r"[^A-Za-z0-9_.-]", "-", path.absolute().name.split(".")[0]).lstrip("_.-") or "mine"
    section: Tree = experiment.dataset.model_dump(mode="json", exclude_unset=True)
    if isinstance(experiment.dataset, auto.Config):
        settings = mirrored(experiment.dataset)
        layout, mirror, place = auto.detect(settings), str(settings.path), url_of(experiment.dataset.path)
        places = {
            key: str(value).replace(mirror, place, 1) if isinstance(value, Path) else value
            for key, value in layout.settings.items()
        }
        section = {**section, **places, "name": layout.layout}
    section = {"name": section.pop("name"), **section}
    dealt = experiment.split.model_dump(mode="json", exclude_unset=True)
    return {"name": named, "dataset": section} | ({"split": dealt} if dealt else {})


def _modality(found: Fingerprint, experiment: Experiment) -> str:
    """What all files say, else what dataset.json says of every channel; '' where nothing does."""
    said = found.common("modality")
    if len(said) == 1 and (only := next(iter(said))) != "OT":
        return str(only)
    place = getattr(mirrored(experiment.dataset), "path", None)
    file = place / "dataset.json" if isinstance(place, Path) else None
    if file is None or not file.is_file():
        return ""
    tree = read_json(file, "")
    names = tree.get("modality") or tree.get("channel_names")
    words = {str(word).upper() for word in names.values()} if isinstance(names, dict) else set()
    return {"CT": "CT", "MRI": "MR", "MR": "MR"}.get(next(iter(words)), "") if len(words) == 1 else ""


def _summary(found: Fingerprint, name: str) -> str:
    kind = "volumes" if found.spatial_dims == 3 else "images"
    what = "segmentation of" if found.labelled else "classification into"
    return f"{name}: {what} {_listed(found.classes[found.labelled :])} in {len(found.cases)} {kind}"


def _listed(items: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = f" and {len(items) - MOST_LISTED} more" if len(items) > MOST_LISTED else ""
    return ", ".join(items[:MOST_LISTED]) + more


def _facts(found: Fingerprint, modality: str) -> list[str]:
    """The data in a few lines."""
    shape, spacing = (np.median(values, axis=0).tolist() for values in (found.shapes(False), found.spacings))
    edges = f" of {by(spacing)} mm" if found.in_mm else ""
    kinds = ", ".join(found.common("dtype"))
    counts = "/".join(map(str, found.common("channels")))
    seen = f"{counts} {'channel' if counts == '1' else 'channels'}, {kinds}, {modality or 'unknown'} modality"
    lines = [f"Data: median {by(shape)} voxels{edges}, {seen}."]
    if found.labelled:
        sizes = np.median([case.volumes for case in found.cases if case.voxels], axis=0)
        unit = {2: "mm2", 3: "mm3"}[found.spatial_dims] if found.in_mm else "voxels"
        each = [f"{name} {size:.4g}" for name, size in zip(found.classes[1:], sizes[1:], strict=True)]
        lines.append(f"Median size in {unit}: {_listed(each)}.")
    else:
        each = [f"{name} {count}" for name, count in zip(found.classes, found.class_cases, strict=True)]
        lines.append(f"Cases: {_listed(each)}.")
    return lines


def _say(
    head: Sequence[str], planned: Experiment, dataset: Dataset, modality: str, found: Fingerprint, seconds: float
) -> None:
    """The plan for a person."""
    size = planned.window.size or planned.preprocess.size
    rows = {
        "spacing": by(planned.preprocess.spacing_mm) + " mm" if planned.preprocess.spacing_mm else "as it is",
        "intensity": planned.preprocess.intensity.method,
        "window" if planned.window.size else "size": by(size) if size else "as it is",
        "network": " ".join(f"{key}={value}" for key, value in planned.network.model_dump(exclude_unset=True).items()),
        "batch": str(planned.train.batch_size),
        "epochs": f"{planned.train.epochs}, {planned.optimizer.name}",
    }
    lines = [*head[:-1], *(f"note: {note}" for note in dataset.notes)]
    lines += [f"left out: {case.case_id}: {case.code}: {case.detail}" for case in found.left_out[:10]]
    if len(found.left_out) > 10:
        lines.append(f"left out: {len(found.left_out) - 10} more; medray check lists all")
    lines += [f"note: {CT_HINT}"] if not modality and looks_like_ct(found) else []
    lines += [f"  {name:10} {value}" for name, value in rows.items()]
    sys.stderr.write("\n".join([*lines, f"planned in {seconds:.1f} s; next:", f"  {head[-1].split(': ', 1)[1]}", ""]))
