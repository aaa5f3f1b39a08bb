"""From a result to what is read: the verdict, the warnings, tables, JSON, CSV; no name of a patient anywhere."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from tables import CARD, MODEL, classified

from medray.evaluation.card import model_card
from medray.evaluation.cases import Cases, Refused
from medray.evaluation.comparison import compare
from medray.evaluation.groups import groups
from medray.evaluation.points import points
from medray.evaluation.report import as_page, verdict
from medray.evaluation.result import Data, Evaluation, Provenance
from medray.evaluation.statistics import estimate
from medray.evaluation.tables import as_json, cases_csv, figures_csv, metrics
from medray.evaluation.warn import warnings
from medray.reports.evaluation import render


def renamed(name: str) -> str:
    return f"x{abs(hash(name)) % 10**8}"


def evaluated(cases: Cases, relation: str = "test", **facts: object) -> Evaluation:
    statement = "Held out." if relation == "test" else "60 cases were in the model's training set."
    known = {"asked": len(cases), "limit": None, "subjects_named": True, **facts}
    data = Data("chest", "test", "f" * 24, "given", Provenance(relation, statement), **known)  # type: ignore[arg-type]
    cases = cases.with_columns({"site": tuple("AB"[row % 2] for row in range(len(cases)))})
    figures = estimate(cases, samples=20)
    return Evaluation(
        MODEL,
        data,
        cases,
        figures,
        "auroc",
        groups(cases, {"site": cases.columns["site"]}, samples=5),
        points(cases, CARD, 10),
        compare(cases, cases, MODEL, 5),
        20,
        warnings(cases, figures, data),
    )


REFUSED = Refused("case_secret.png", "p_secret", "truncated", "it ends early", "copy it again")


@pytest.fixture
def result() -> Evaluation:
    return evaluated(replace(classified(60, ("well", "ill"), each=2), refused=(REFUSED,)))


def test_the_verdict_names_figure_interval_and_patients(result: Evaluation) -> None:
    assert verdict(result).startswith("AUROC 0.")
    assert verdict(result).endswith("in 60 cases of 30 patients")
    assert "95 % interval" in verdict(result)
    page = as_page(result, (), renamed)
    assert page.sound
    assert "of ill (sensitivity" in page.in_words
    assert [section.title for section in page.sections] == [
        "How good it is",
        "Decisions",
        "Figures",
        "Groups",
        "Comparison",
        "Not evaluated",
    ]


def test_no_name_of_a_patient_leaves(result: Evaluation) -> None:
    html = render(as_page(result, (), renamed))
    texts = [html, json.dumps(as_json(result)), cases_csv(result, renamed), figures_csv(result), str(metrics(result))]
    for text in texts:
        assert ".png" not in text.replace("image/png", "")
        assert "p_secret" not in text
    assert renamed("case_secret.png") in html
    assert "truncated" in html
    assert renamed("case_secret.png") not in texts[1], "what erase cannot mend names no one, not even by pseudonym"


def test_training_cases_are_said_loudly() -> None:
    result = evaluated(classified(60), "seen")
    page = as_page(result, (), renamed)
    assert not page.sound
    assert page.alerts[0].grave
    assert "training set" in page.alerts[0].text
    assert "verdict unsound" in render(page)
    assert "training set" in str(model_card(result))


def test_what_a_reader_must_know_is_told() -> None:
    cases = classified(30)
    silent = replace(cases, picked=np.tile([True, False], (30, 1)), refused=(REFUSED,))
    said = " ".join(evaluated(silent, asked=90, limit=30, subjects_named=False).warnings)
    for words in ("1 case of 31 could not", "Only 30 of 90", "do not say whose", "never answers ill"):
        assert words in said
    rare = cases.take([*np.flatnonzero(cases.targets[:, 0]), *np.flatnonzero(cases.targets[:, 1])[:3]])
    assert "Very few subjects are of ill (3)" in " ".join(evaluated(rare).warnings)
    assert "better than chance" in " ".join(evaluated(classified(30, skill=0.0, seed=2)).warnings)
    assert "rule of three" in " ".join(evaluated(classified(30, skill=50)).warnings)
    assert evaluated(classified(60, skill=2)).warnings == ()


def test_json_is_plain_and_whole(result: Evaluation) -> None:
    tree = json.loads(json.dumps(as_json(result), allow_nan=False))
    assert tree["data"]["subjects"] == 30
    assert tree["refused"] == {"truncated": 1}
    assert tree["figures"]["auroc"]["value"] == result.figures["auroc"].value
    assert tree["comparison"]["contrasts"][0]["test"]["difference"] == 0
    assert "card" not in tree["comparison"]["other"]
    assert {group["value"] for group in tree["groups"]} == {"A", "B"}


def test_tables_have_a_row_for_all(result: Evaluation) -> None:
    rows = list(csv.DictReader(io.StringIO(cases_csv(result, renamed))))
    assert len(rows) == 61
    assert rows[0]["truth"] in ("ill", "well")
    assert float(rows[0]["score ill"]) == pytest.approx(result.cases.scores[0, 1], abs=1e-5)
    assert rows[-1]["code"] == "truncated"
    assert all(row["subject"] for row in rows)
    figures = list(csv.DictReader(io.StringIO(figures_csv(result))))
    assert {row["group"] for row in figures} == {"", "A", "B"}


def test_metrics_have_names_that_mlflow_takes() -> None:
    found = metrics(evaluated(classified(40, ("a", "b<|>", "é"))))
    assert found["auroc/low"] <= found["auroc"] <= found["auroc/high"]
    assert "recall/b___" in found
    assert "recall/_" in found


def test_hostile_classes_are_text() -> None:
    evil = "<script>alert(1)</script>"
    html = render(as_page(evaluated(classified(40, ("well", evil))), (), renamed))
    assert "<script" not in html
    assert "&lt;script&gt;" in html
