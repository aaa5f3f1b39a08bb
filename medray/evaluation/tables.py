"""An evaluation for programs: JSON without a word about single cases, and CSVs under pseudonyms."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from medray.evaluation.result import Evaluation, Figures, Model

Rename = Callable[[str], str]
"""Case or subject id -> its pseudonym."""
FORMAT = 1


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Everything but single cases; what is not defined is null."""
    cases, data = evaluation.cases, evaluation.data
    tree = {
        "format": FORMAT,
        "model": _model(evaluation.model),
        "data": {**asdict(data), "cases": len(cases), "subjects": cases.people},
        "refused": dict(Counter(item.code for item in cases.refused)),
        "headline": evaluation.headline,
        "figures": _figures(evaluation.figures),
        "groups": [{**asdict(group), "figures": _figures(group.figures)} for group in evaluation.groups],
        "operating_points": [{**asdict(point), "rates": _figures(point.rates)} for point in evaluation.points],
        "comparison": None,
        "interval": {"level": 0.95, "resamples": evaluation.samples, "unit": "subject"},
        "warnings": list(evaluation.warnings),
    }
    if evaluation.comparison is not None:
        tree["comparison"] = {**asdict(evaluation.comparison), "other": _model(evaluation.comparison.other)}
    plain: dict[str, Any] = _plain(tree)
    return plain


def _model(model: Model) -> dict[str, Any]:
    return {name: value for name, value in asdict(model).items() if name != "card"}


def _figures(figures: Figures) -> dict[str, Any]:
    return {name: asdict(figure) for name, figure in figures.items()}


def _plain(value: Any) -> Any:
    """The value with null where JSON has no number for it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def cases_csv(evaluation: Evaluation, rename: Rename) -> str:
    """One row per case: who, what is true, what was said, its scores and figures; refused ones with their code."""
    cases = evaluation.cases
    numbers = len(cases.classes) if cases.scores.shape[1] else 0
    scores = [f"score {name}" for name in cases.classes[:numbers]]
    said = [f"true {name}" for name in cases.classes] if cases.task == "regression" else []
    header = ["case", "subject", "truth", "answer", *said, *scores, *cases.figures, *cases.columns, "code", "detail"]
    rows = []
    for row, case_id in enumerate(cases.ids):
        cells: list[Any] = [rename(case_id), rename(cases.subjects[row]), cases.truths[row], cases.answers[row]]
        cells += [_cell(value) for value in cases.targets[row].tolist()] if said else []
        cells += [_cell(value) for value in cases.scores[row].tolist()]
        cells += [_cell(float(values[row])) for values in cases.figures.values()]
        rows.append([*cells, *(column[row] for column in cases.columns.values()), "", ""])
    for item in cases.refused:
        blank = [""] * (len(header) - 4)
        rows.append([rename(item.case_id), rename(item.subject), *blank, item.code, item.detail])
    return _csv(header, rows)


def figures_csv(evaluation: Evaluation) -> str:
    """One row per figure: of all cases, then of each group."""
    everyone = (len(evaluation.cases), evaluation.cases.people)
    rows = [["", "", name, *_cells(figure), *everyone] for name, figure in evaluation.figures.items()]
    for group in evaluation.groups:
        size = (group.cases, group.subjects)
        rows += [[group.column, group.value, name, *_cells(figure), *size] for name, figure in group.figures.items()]
    return _csv(["column", "group", "figure", "value", "low", "high", "cases", "subjects"], rows)


def _cells(figure: Any) -> list[str]:
    return [_cell(figure.value), _cell(figure.low), _cell(figure.high)]


def _cell(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else ""


def _csv(header: list[str], rows: list[list[Any]]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(header)
    table.writerows(rows)
    return text.getvalue()


def metrics(evaluation: Evaluation) -> dict[str, float]:
    """Figures as MLflow has them: 'auroc', 'auroc/low', 'auroc/high'."""
    found: dict[str, float] = {"cases": len(evaluation.cases), "subjects": evaluation.cases.people}
    for name, figure in evaluation.figures.items():
        key = "".join(
            letter if letter.isascii() and (letter.isalnum() or letter in "_-. /") else "_" for letter in name
        )
        found |= {key: figure.value, f"{key}/low": figure.low, f"{key}/high": figure.high}
    return found
