"""The verb that judges a model: evaluate. It belongs to medray/cli.py, which registers it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from medray.console import PARTIAL, Result

Data = Annotated[
    str,
    Parameter(
        help="A path to a labelled set, or an experiment (a .yaml file or a packaged name), then key=value settings; "
        "without it the data that the model was made from."
    ),
]
Columns = Annotated[str, Parameter(help="Columns, separated by commas.")]


def register(app: App) -> None:
    """Add the verb to `app`."""
    app.command(evaluate)


def evaluate(
    *data: Data,
    model: str | None = None,
    bundle: Path | None = None,
    compare: str | None = None,
    split: Literal["test", "val", "train", "all"] | None = None,
    positive: str | None = None,
    table: Path | None = None,
    by: Columns = "",
    private: bool = False,
    limit: int | None = None,
    out: Path | None = None,
    device: str = "cpu",
    record: bool = True,
    tracking: str | None = None,
) -> Result:
    """Judge a model on labelled cases: every figure with its interval, by group, against another model.

    Writes report.html (one file, to look at and to print), evaluation.json, results.csv, figures.csv, model_card.md
    and cases.csv, which leads from pseudonyms back to cases. Exit code 5 where some cases could not be evaluated.

    Args:
        data: what to evaluate on.
        model: name@alias or name@version in the registry; by default the newest champion.
        bundle: folder of a model, instead of one in the registry.
        compare: a second model, name@alias or a folder, on the same cases.
        split: the part that counts; by default test, or all cases of data without one.
        positive: of two classes the one that is looked for, whose sensitivity is told.
        table: a CSV with a row per case or subject, for --by.
        by: columns of the table, or sex, age_band and scanner of DICOM files, to compare groups by.
        private: pool groups of fewer than 5 patients.
        limit: evaluate at most so many cases, drawn by chance.
        out: folder of the report; by default evaluate-MODEL-DATA here, never inside the data.
        device: cpu, or cuda.
        record: also make a run in MLflow.
        tracking: the MLflow server and registry; by default $MLFLOW_TRACKING_URI or the embedded one.
    """
    from medray.evaluation.evaluate import run
    from medray.evaluation.request import Request

    place = data[0] if data and ("=" not in data[0] or Path(data[0]).exists()) else None
    settings = data[1:] if place else data
    columns = tuple(name.strip() for name in by.split(",") if name.strip())
    cases = Request(place, settings, part=split, positive=positive, limit=limit, table=table, by=columns)
    where = replace(cases, model=model, bundle=bundle, compare=compare, device=device, tracking=tracking)
    asked = replace(where, private=private, out=out, record=record)
    outcome = Result(run(asked))
    outcome.exit_code = PARTIAL if outcome["refused"] else 0
    return outcome
