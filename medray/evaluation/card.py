"""The model card (Mitchell 2019, arXiv:1810.03993): what the model is, for whom, how good, and its limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from medray.evaluation.result import Evaluation
from medray.evaluation.words import number, percent, rank, title, who, with_interval
from medray.reports.evaluation import CardPart

NOT_FOR = (
    "Decisions about a person's care. Other images than those evaluated here: other scanners, sites, populations, body "
    "parts or image types, and findings outside of its classes, to which it still gives one of its answers."
)


def model_card(evaluation: Evaluation) -> tuple[CardPart, ...]:
    """The parts of the card, in the order of the paper."""
    model, data = evaluation.model, evaluation.data
    ordered = sorted(evaluation.figures.items(), key=lambda item: ("/" in item[0], rank(item[0])))
    figures = tuple((title(name), with_interval(figure)) for name, figure in ordered)
    factors = sorted({group.column for group in evaluation.groups})
    compared = "Compared by " + ", ".join(factors) + "." if factors else "No groups were compared (--table, --by)."
    return (
        CardPart("Model details", facts=tuple(_details(evaluation))),
        CardPart("Intended use", (str(model.card.get("intended_use", "Not stated.")), f"Not for: {NOT_FOR}")),
        CardPart("Factors", (compared, *_groups(evaluation))),
        CardPart("Metrics", (f"{method(evaluation)} {decision(model.card)}",)),
        CardPart(
            "Evaluation data",
            (data.provenance.statement,),
            (
                ("data", data.name),
                ("part", f"{data.part}: {data.method}"),
                ("cases", who(evaluation)),
                ("could not be evaluated", str(len(evaluation.cases.refused))),
                ("fingerprint", data.fingerprint),
            ),
        ),
        CardPart("Training data", facts=tuple(_training(model.card))),
        CardPart("Quantitative analyses", rows=figures, words=tuple(_points(evaluation))),
        CardPart(
            "Ethical considerations",
            (
                "Made from data of people; names of cases are keyed pseudonyms. Performance may differ between groups "
                "that were not compared, and a model may learn from marks of a site or a device instead of a disease.",
            ),
        ),
        CardPart(
            "Caveats and recommendations", evaluation.warnings or ("None beyond the limits of its intended use.",)
        ),
        CardPart("Environment", facts=tuple((name, str(value)) for name, value in _environment(model.card))),
    )


def method(evaluation: Evaluation) -> str:
    """How intervals come about."""
    return (
        f"Intervals are 95 % percentile intervals of {evaluation.samples} bootstrap resamples of patients, each with "
        "all of their cases (Field and Welsh 2007, 10.1111/j.1467-9868.2007.00593.x); those of shares that are exactly "
        "0 or 1 are Wilson's (1927, 10.1080/01621459.1927.10502953)."
    )


def decision(card: Mapping[str, Any]) -> str:
    """How scores become an answer."""
    rule = card.get("decision", "")
    if (card.get("trust") or {}).get("operating_points"):
        return "The first operating point of a class decides."
    if isinstance(rule, Mapping):
        return (
            "A class is answered from a score of "
            + ", ".join(f"{value:g} ({name})" for name, value in rule.items())
            + "."
        )
    return f"The answer is {rule}." if rule else ""


def _details(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    model = evaluation.model
    entry = model.card.get("input", {})
    yield "model", model.name
    yield "bundle", f"sha256 {model.digest}"
    yield "task", f"{model.task} of {', '.join(evaluation.cases.classes)}"
    yield "network", model.network
    yield "input", f"{entry.get('channels', '?')} channels, {' x '.join(map(str, entry.get('size', ())))} voxels"
    yield "code revision", str(model.card.get("environment", {}).get("revision", "unknown"))


def _training(card: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    cases = card.get("cases", {})
    yield "cases", ", ".join(f"{count} {name}" for name, count in cases.items()) or "not stated"
    yield "data fingerprint", str(card.get("data", "not stated"))
    yield "split fingerprint", str(card.get("split", "not stated"))


def _groups(evaluation: Evaluation) -> Iterator[str]:
    """Per column the lowest and the highest value of the headline among groups that are large enough."""
    name = evaluation.headline
    for column in dict.fromkeys(group.column for group in evaluation.groups):
        sized = [group for group in evaluation.groups if group.column == column and not group.few]
        known = sorted(
            (
                group
                for group in sized
                if name in group.figures and group.figures[name].value == group.figures[name].value
            ),
            key=lambda group: group.figures[name].value,
        )
        if len(known) > 1:
            ends = " to ".join(
                f"{number(group.figures[name].value)} ({group.value})" for group in (known[0], known[-1])
            )
            yield f"{title(name)} by {column}: {ends}."


def _points(evaluation: Evaluation) -> Iterator[str]:
    for point in evaluation.points:
        sensitivity, specificity = percent(point.rates["sensitivity"]), percent(point.rates["specificity"])
        yield f"{point.target}, {point.rule}: sensitivity {sensitivity}, specificity {specificity}."


def _environment(card: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from sorted(card.get("environment", {}).items())
