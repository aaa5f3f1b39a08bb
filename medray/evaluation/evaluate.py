"""`medray evaluate`: a bundle on a labelled set, from the command to the report."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from medray.config import ConfigError
from medray.evaluation import comparison, groups, points, provenance, statistics
from medray.evaluation.cases import Cases
from medray.evaluation.columns import Columns, pick, read_columns
from medray.evaluation.measure import measure
from medray.evaluation.pictures import worst
from medray.evaluation.record import NotRecorded, record
from medray.evaluation.report import as_page, in_words, verdict
from medray.evaluation.request import Chosen, Request, choose, open_model, open_rival, out_folder
from medray.evaluation.result import Comparison, Data, Evaluation, Model
from medray.evaluation.tables import as_json, cases_csv, figures_csv
from medray.evaluation.warn import warnings
from medray.inference.predictor import Predictor
from medray.pipeline.examine import Meter
from medray.reports.evaluation import as_markdown, render
from medray.tracking import pseudonyms
from medray.types import CaseRef

MANY_CASES = 20_000
"""Above this many cases intervals are narrow, and a fifth of the resamples is enough."""


def run(asked: Request) -> dict[str, Any]:
    """Evaluate, write the report, record it, tell a person on stderr, and return the result in numbers.

    Raises:
        ConfigError: wrong settings, data and bundle that do not fit, `out` inside the data.
        BundleError, RegistryError: no such model.
        InputError: the data are refused as a whole, or no case can be read.
    """
    if asked.limit is not None and asked.limit < 1:
        raise ConfigError([f"--limit: {asked.limit} cases cannot be evaluated; give 1 or more"])
    predictor, name = open_model(asked)
    rival = open_rival(asked, predictor.bundle)
    chosen = choose(asked, predictor)
    folder = out_folder(chosen.labelled, name, asked.out)
    evaluation = evaluate(asked, predictor, name, chosen, rival)
    files = write(evaluation, chosen, predictor, folder)
    lines = [verdict(evaluation), in_words(evaluation), *(f"note: {text}" for text in evaluation.warnings)]
    lines.append(f"report: {folder / 'report.html'}   each case: {folder / 'results.csv'}")
    sys.stderr.write("".join(f"{line}\n" for line in lines if line))
    run_id = (
        _record(evaluation, files, asked.tracking or predictor.bundle.experiment.tracking.uri) if asked.record else None
    )
    tree = as_json(evaluation)
    whole = {figure: item for figure, item in tree["figures"].items() if "/" not in figure}
    return {
        "model": name,
        "data": evaluation.data.name,
        "part": evaluation.data.part,
        "provenance": evaluation.data.provenance.relation,
        "cases": len(evaluation.cases),
        "subjects": evaluation.cases.people,
        "refused": len(evaluation.cases.refused),
        "figures": {figure: item["value"] for figure, item in whole.items()},
        "intervals": {figure: [item["low"], item["high"]] for figure, item in whole.items()},
        "html": str(folder / "report.html"),
        "json": str(folder / "evaluation.json"),
        "csv": str(folder / "results.csv"),
        "run_id": run_id,
    }


def evaluate(
    asked: Request, predictor: Predictor, name: str, chosen: Chosen, rival: tuple[Predictor, str] | None
) -> Evaluation:
    """The result, all that is known of it."""
    dataset, refs = chosen.labelled.dataset, chosen.refs
    known = _columns(asked, chosen)
    cases = measure(predictor, dataset, refs, Meter())
    cases = cases.with_columns({column: _of(cases, refs, cells) for column, cells in known.items()})
    # Wrong columns are known before anything slow is computed.
    slices = pick(cases.columns, asked.by)
    cases = cases.with_columns(slices)
    samples = statistics.SAMPLES if len(cases) <= MANY_CASES else statistics.SAMPLES // 5
    figures = statistics.estimate(cases, samples=samples)
    data = Data(
        name=chosen.labelled.name,
        part=chosen.part,
        fingerprint=provenance.fingerprint(refs, dataset.classes),
        method=chosen.method,
        provenance=provenance.judge(refs, chosen.part, chosen.training, chosen.same),
        asked=chosen.asked,
        limit=asked.limit,
        subjects_named=cases.subjects != cases.ids,
    )
    return Evaluation(
        model=_model(predictor, name),
        data=data,
        cases=cases,
        figures=figures,
        headline=statistics.task_module(cases).headline(figures),
        groups=groups.groups(cases, slices, asked.private),
        points=points.points(cases, predictor.bundle.card, samples),
        comparison=_compare(cases, chosen, rival, samples),
        samples=samples,
        warnings=warnings(cases, figures, data),
    )


def _columns(asked: Request, chosen: Chosen) -> Columns:
    """Columns of the table beside the data, and of the data where they are a table."""
    place = chosen.labelled.path
    if asked.table is not None:
        return read_columns(asked.table, chosen.refs)
    return read_columns(place, chosen.refs) if asked.by and place and place.suffix == ".csv" else {}


def _of(cases: Cases, refs: tuple[CaseRef, ...], cells: tuple[str, ...]) -> tuple[str, ...]:
    """The cells of the cases that were evaluated."""
    known = {ref.case_id: cell for ref, cell in zip(refs, cells, strict=True)}
    return tuple(known[case_id] for case_id in cases.ids)


def _model(predictor: Predictor, name: str) -> Model:
    bundle = predictor.bundle
    experiment = bundle.experiment
    return Model(name, bundle.digest, bundle.card, experiment.name, experiment.network.name, experiment.task.name)


def _compare(cases: Cases, chosen: Chosen, rival: tuple[Predictor, str] | None, samples: int) -> Comparison | None:
    if rival is None:
        return None
    predictor, name = rival
    sys.stderr.write(f"the same cases with {name}\n")
    theirs = measure(predictor, chosen.labelled.dataset, chosen.refs, Meter())
    return comparison.compare(cases, theirs, _model(predictor, name), samples)


def write(evaluation: Evaluation, chosen: Chosen, predictor: Predictor, folder: Path) -> list[Path]:
    """Every file of the report; returns those that name nobody. The map of pseudonyms is beside them."""
    secret = pseudonyms.key()
    rename = partial(pseudonyms.pseudonym, secret=secret)
    folder.mkdir(parents=True, exist_ok=True)
    refs = {ref.case_id: ref for ref in chosen.refs}
    page = as_page(evaluation, worst(evaluation.cases, refs, chosen.labelled.dataset, predictor, rename), rename)
    contents = {
        "report.html": render(page),
        "evaluation.json": json.dumps(as_json(evaluation), indent=2, allow_nan=False) + "\n",
        "results.csv": cases_csv(evaluation, rename),
        "figures.csv": figures_csv(evaluation),
        "model_card.md": as_markdown(f"Model card: {evaluation.model.name}", page.card),
    }
    for name, text in contents.items():
        (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
    cases = evaluation.cases
    refused = [name for item in cases.refused for name in (item.case_id, item.subject)]
    pseudonyms.write_map(folder / "cases.csv", dict.fromkeys([*cases.ids, *cases.subjects, *refused]), secret)
    return [folder / name for name in contents]


def _record(evaluation: Evaluation, files: list[Path], uri: str | None) -> str | None:
    """The run in MLflow; without it the report is whole all the same."""
    try:
        return record(evaluation, files, uri)
    except NotRecorded as error:
        sys.stderr.write(f"not recorded in MLflow: {error}; the report is complete without it\n")
        return None
