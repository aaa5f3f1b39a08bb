"""Everything in a dataset that would spoil a training, found before one: all cases read, compared and looked at."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

from medray.cluster import Mapper, home
from medray.config import ConfigError, Experiment
from medray.datasets.files import some
from medray.datasets.scan import scan
from medray.imaging import reader
from medray.pipeline import findings, leaks, outliers
from medray.pipeline.findings import Finding
from medray.pipeline.hashes import HASHES
from medray.pipeline.integrity import dataset_files, verify
from medray.pipeline.split import split
from medray.pipeline.survey import Measured, Read, Survey, chunks, measure_chunk
from medray.remote import mirrored
from medray.sections.data import SplitSection
from medray.types import Dataset, InputError, Split

Watch = Callable[[int, int], None]
"""Told how many cases of how many are done."""

FOUND_BY_RULES = ("subject_in_two_splits", "class_not_in_train")
"""What makes a split impossible and is found here too, with the cases that it is about."""


@dataclass(frozen=True, slots=True, eq=False)
class Check:
    """A dataset that was checked."""

    survey: Survey
    method: str
    """How the cases are split, in one line."""
    findings: tuple[Finding, ...]
    """Errors first."""
    seconds: float

    @property
    def errors(self) -> int:
        """How many things would spoil a training."""
        return sum(finding.severity == "error" for finding in self.findings)


def check(
    experiment: Experiment,
    mapper: Mapper[Any, Any] = map,
    read: Read = reader.read,
    watch: Watch | None = None,
) -> Check:
    """Read every case of an experiment's dataset and find what would spoil a training with its split and preprocessing.

    Args:
        experiment: its sections dataset, split and preprocess count.
        mapper: `map`, or `cluster.parallel_map` to read on many CPUs.
        read: Source -> Case, picklable (see `survey.Read`).
        watch: called after each chunk of cases.

    A layout that is refused as a whole is a finding too, the only one, of a dataset without cases.

    Raises:
        ConfigError: wrong settings, or nothing at the path.
    """
    began = time.monotonic()
    try:
        dataset = scan(experiment.dataset)
    except InputError as error:
        return _refused_whole(experiment, error, time.monotonic() - began)
    cases: list[Measured] = []
    for measured in mapper(measure_chunk, list(chunks(dataset, read))):
        cases += measured
        if watch:
            watch(len(cases), len(dataset.refs))
    places, method, problem = _places(dataset, experiment.split)
    survey = Survey(dataset, tuple(cases), places, experiment.preprocess, experiment.dataset.max_bad_fraction)
    found = [*problem, *_altered(experiment, dataset), *_all_findings(survey)]
    found.sort(key=lambda finding: finding.severity)
    return Check(survey, method, tuple(found), time.monotonic() - began)


def _refused_whole(experiment: Experiment, error: InputError, seconds: float) -> Check:
    survey = Survey(Dataset((), ()), (), (), experiment.preprocess, experiment.dataset.max_bad_fraction)
    finding = Finding(error.code, "error", error.detail, error.hint or "correct what the dataset lists or holds")
    return Check(survey, "none", (finding,), seconds)


def _altered(experiment: Experiment, dataset: Dataset) -> Iterator[Finding]:
    """Files that are not those of dataset.manifest."""
    manifest = mirrored(experiment.dataset).manifest
    if manifest is not None:
        cache = home() / "stores" / HASHES
        cache.parent.mkdir(parents=True, exist_ok=True)
        problems = verify(dataset_files(dataset.refs), manifest, cache)
        if problems:
            detail = f"{len(problems)} files are not as {manifest.name} lists them: {some(problems)}"
            mend = "restore the files; or, if the change is meant, write the list anew with --manifest"
            yield Finding("altered_files", "error", detail, mend)


def _all_findings(survey: Survey) -> Iterator[Finding]:
    yield from findings.refused(survey)
    yield from leaks.torn(survey)
    yield from leaks.doubles(survey)
    yield from findings.unlabelled(survey)
    yield from findings.boxes(survey)
    yield from findings.classes(survey)
    yield from outliers.outliers(survey)
    yield from findings.warned(survey)


def _places(dataset: Dataset, cfg: SplitSection) -> tuple[tuple[str, ...], str, list[Finding]]:
    """The split of each case, how it came about, and what makes a split impossible.

    Where it is impossible the cases stay in the split that the dataset gives them, if any.
    """
    try:
        indices = split(dataset, cfg)
    except (ConfigError, InputError) as error:
        code, hint = (error.code, error.hint) if isinstance(error, InputError) else ("no_split", "")
        detail = error.detail if isinstance(error, InputError) else str(error).replace("split: ", "")
        mend = hint or "add cases, or change the section split: split.test=0, split.stratify=false, split.method=..."
        problem = Finding(code, "error", detail, mend)
        given = tuple(ref.split or "" for ref in dataset.refs)
        return given, f"impossible: {detail}", [] if code in FOUND_BY_RULES else [problem]
    places = [""] * len(dataset.refs)
    for name in get_args(Split):
        for row in getattr(indices, name):
            places[row] = name
    return tuple(places), indices.method, []
