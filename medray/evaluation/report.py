"""An evaluation as the page that a clinician reads: the verdict first, then what it rests on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from medray.evaluation.card import NOT_FOR, method, model_card
from medray.evaluation.plots import plots
from medray.evaluation.result import Comparison, Evaluation, Figure, Figures, Group
from medray.evaluation.tables import Rename
from medray.evaluation.words import (
    LESS_IS_BETTER,
    SIGNED,
    below,
    count,
    interval,
    number,
    percent,
    rank,
    title,
    who,
    with_interval,
)
from medray.reports.evaluation import Alert, Bar, Page, Row, Section, Table
from medray.reports.page import Sheet

SHOWN_REFUSED = 100
SHOWN_STRUCTURES = 8


def as_page(evaluation: Evaluation, worst: Sequence[Sheet], rename: Rename) -> Page:
    """The page.

    Args:
        evaluation: the result.
        worst: pictures of the worst cases.
        rename: case id -> pseudonym.
    """
    model, data = evaluation.model, evaluation.data
    grave = {data.provenance.statement} if data.provenance.relation in ("seen", "overlap") else set()
    sections = [
        _discrimination(evaluation),
        *_operating(evaluation),
        Section("Figures", figures=tuple(plots(evaluation))),
        _by_group(evaluation),
        *([_compared(evaluation.comparison, evaluation.headline)] if evaluation.comparison else []),
        *([Section("Worst cases", (WORST,), sheets=tuple(worst))] if worst else []),
        *_refused(evaluation, rename),
    ]
    return Page(
        title=f"Evaluation of {model.name} on {data.name} ({data.part})",
        verdict=verdict(evaluation),
        in_words=in_words(evaluation),
        sound=data.provenance.sound,
        alerts=tuple(Alert(text, text in grave) for text in evaluation.warnings),
        purpose=str(model.card.get("intended_use", "Not stated.")),
        not_for=NOT_FOR,
        facts=tuple(_facts(evaluation)),
        sections=tuple(
            section for section in sections if section.words or section.tables or section.figures or section.sheets
        ),
        card=model_card(evaluation),
    )


WORST = (
    "The cases whose truth the model holds least likely. Look for what they share: a device, a marker, a wrong label."
)


def verdict(evaluation: Evaluation) -> str:
    """The headline figure with its interval, and of how many."""
    name = evaluation.headline
    figure = evaluation.figures[name]
    return f"{title(name)} {with_interval(figure)} in {who(evaluation)}"


def in_words(evaluation: Evaluation) -> str:
    """The verdict in a sentence or two: how many are found, how many falsely alarmed, and what the cases are."""
    parts = []
    for point in evaluation.points[:1] if len(evaluation.cases.classes) == 2 else ():
        hits, alarms, misses, rests = point.counts
        parts.append(
            f"The model finds {hits} of {count(hits + misses, 'case')} of {point.target} "
            f"(sensitivity {percent(point.rates['sensitivity'])}) and rightly leaves {rests} of {alarms + rests} "
            f"others (specificity {percent(point.rates['specificity'])})."
        )
    if evaluation.cases.task == "segmentation" and len(evaluation.cases.classes) > 1:
        each = [
            (name, evaluation.figures[f"dice/{name}"].value) for name in evaluation.cases.classes[:SHOWN_STRUCTURES]
        ]
        more = " ..." if len(evaluation.cases.classes) > SHOWN_STRUCTURES else "."
        parts.append(f"Dice by structure: {', '.join(f'{name} {number(value)}' for name, value in each)}{more}")
    if not parts and "accuracy" in evaluation.figures:
        figure = evaluation.figures["accuracy"]
        parts.append(f"It names the right answer in {percent(figure)} of {count(figure.n, 'case')}.")
    if evaluation.data.provenance.sound:
        parts.append(evaluation.data.provenance.statement)
    return " ".join(parts)


def _facts(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    model, data, cases = evaluation.model, evaluation.data, evaluation.cases
    yield "model", f"{model.name}, {model.network}, made by experiment {model.experiment}"
    yield "bundle", f"sha256 {model.digest}"
    yield "data", f"{data.name}, fingerprint {data.fingerprint}"
    yield "part", f"{data.part}: {data.method}"
    yield "cases", f"{len(cases)} evaluated" + (f", {len(cases.refused)} not" if cases.refused else "")
    yield "patients", f"{cases.people}" if data.subjects_named else "not named: each case counts as one"
    if cases.task == "classification":
        sizes = cases.targets.sum(0).astype(int).tolist()
        yield "classes", ", ".join(f"{name} {size}" for name, size in zip(cases.classes, sizes, strict=True))
    else:
        yield "classes", ", ".join(cases.classes)


def _discrimination(evaluation: Evaluation) -> Section:
    """All figures: of everything, then a table of each class."""
    whole = {name: figure for name, figure in evaluation.figures.items() if "/" not in name}
    cases = evaluation.cases
    pair = cases.task == "classification" and len(cases.classes) == 2 and not cases.multilabel
    looked_for = f"Looked for is {cases.classes[1]}: what is found of it is sensitivity. " if pair else ""
    tables = [_figure_table(whole, "", looked_for + method(evaluation) + _further(evaluation))]
    parts: dict[str, dict[str, Figure]] = {}
    for name, figure in evaluation.figures.items():
        if "/" in name:
            parts.setdefault(name.partition("/")[2], {})[name.partition("/")[0]] = figure
    tables += [_figure_table(found, part, "") for part, found in parts.items()]
    return Section("How good it is", tables=tuple(table for table in tables if table.rows))


def _further(evaluation: Evaluation) -> str:
    """What else must be known of the figures: units, and what the model's sets promise."""
    if evaluation.cases.task == "segmentation":
        return " Distances are in mm and volumes in mL (areas in mm2), of images without a unit in voxels."
    conformal = (evaluation.model.card.get("trust") or {}).get("conformal")
    if not conformal or "set_coverage" not in evaluation.figures:
        return ""
    share = f"{1 - conformal['alpha']:.0%}"
    return f" With each answer the model gives a set of classes that is to hold the truth in {share} of cases."


def _figure_table(figures: Figures, heading: str, note: str) -> Table:
    rows = []
    for name, figure in sorted(figures.items(), key=lambda item: rank(item[0])):
        # Only what lies between 0 and 1 shares a scale.
        scaled = name not in SIGNED and all(0 <= v <= 1 for v in (figure.value, figure.low, figure.high))
        bar = Bar(figure.value, figure.low, figure.high) if scaled else None
        rows.append(Row((title(name), number(figure.value), interval(figure), str(figure.n)), bar))
    return Table(("figure", "value", "95 % interval", "cases"), tuple(rows), title=heading, note=note)


def _operating(evaluation: Evaluation) -> Iterator[Section]:
    if not evaluation.points:
        return
    rows = []
    for point in evaluation.points:
        hits, alarms, misses, rests = point.counts
        there = ", ".join(f"{name} {100 * value:.1f} %" for name, value in point.chosen.items())
        threshold = number(point.threshold)
        rates = (below(percent(figure)) for figure in point.rates.values())
        counts = f"{hits} / {alarms} / {misses} / {rests}"
        rows.append(Row((point.target, point.rule, threshold, *rates, counts, there.replace(", ", "\n") or "-")))
    header = ("looked for", "rule", "threshold", "sensitivity", "specificity", "PPV", "NPV", "TP / FP / FN / TN")
    words = (
        "Thresholds were chosen on the model's validation cases and are applied here as they are; none is chosen on "
        "these cases. PPV and NPV hold for the share of the class among these cases, not where it is rarer.",
    )
    yield Section("Decisions", words, (Table((*header, "on validation"), tuple(rows), words=2),))


def _by_group(evaluation: Evaluation) -> Section:
    tables = []
    overall = evaluation.figures.get(evaluation.headline)
    for column in dict.fromkeys(group.column for group in evaluation.groups):
        members = [group for group in evaluation.groups if group.column == column]
        tables.append(_group_table(column, members, evaluation.headline, overall))
    words = ("The line is the value of all cases. Differences between groups may be chance: compare the intervals.",)
    return Section("Groups", words if tables else (), tuple(tables))


def _group_table(column: str, members: Sequence[Group], headline: str, overall: Figure | None) -> Table:
    names = list(members[0].figures)
    rows = []
    for group in members:
        cells = [below(_with_range(group.figures[name])) for name in names]
        first = group.figures[headline] if headline in group.figures else group.figures[names[0]]
        bounded = all(0 <= value <= 1 for value in (first.value, first.low, first.high))
        bar = Bar(first.value, first.low, first.high) if bounded else None
        mark = "too few to judge" if group.few else ""
        rows.append(Row((group.value, str(group.cases), str(group.subjects), *cells), bar, mark))
    reference = overall.value if overall and 0 <= overall.value <= 1 else None
    header = (column, "cases", "patients", *(title(name) for name in names))
    return Table(header, tuple(rows), reference=reference, title=f"By {column}", note=f"Drawn: {title(headline)}.")


def _with_range(figure: Figure) -> str:
    return f"{number(figure.value)} ({interval(figure)})" if math.isfinite(figure.value) else "-"


def _compared(comparison: Comparison, headline: str) -> Section:
    tests = [contrast.test for contrast in comparison.contrasts]
    ends = [abs(end) for test in tests for end in (test.low, test.high, test.difference) if math.isfinite(end)]
    widest = min(1.0, math.ceil(10 * max([0.1, *ends])) / 10)
    rows = []
    for contrast in sorted(comparison.contrasts, key=lambda item: ("/" in item.name, rank(item.name))):
        test = contrast.test
        span = f"{test.low:+.3f} to {test.high:+.3f}" if math.isfinite(test.low) else "-"
        values = (number(contrast.ours), number(contrast.theirs), f"{test.difference:+.3f}", span, _p(test.p))
        bar = Bar(test.difference, test.low, test.high) if abs(test.difference) <= 1 else None
        rows.append(Row((title(contrast.name), test.test, *values), bar))
    left_out = (
        f" {count(comparison.left_out, 'case')} that only one of the two takes are left out."
        if comparison.left_out
        else ""
    )
    words = (
        f"Against {comparison.other.name} (bundle sha256 {comparison.other.digest}) on the same "
        f"{count(comparison.cases, 'case')}, case by case.{left_out} {_in_short(comparison, headline)}"
    )
    header = ("figure", "test", "this model", "the other", "difference", "95 % interval", "p")
    note = "Differences are this model minus the other. p is two-sided and not corrected for several tests."
    return Section("Comparison", (words,), (Table(header, tuple(rows), 2, (-widest, widest), 0.0, note=note),))


def _in_short(comparison: Comparison, headline: str) -> str:
    """The headline's difference in words."""
    found = next((contrast for contrast in comparison.contrasts if contrast.name == headline), None)
    if found is None or not math.isfinite(found.test.p):
        return "The cases do not carry a test of the headline figure."
    better = (found.test.difference < 0) == (headline in LESS_IS_BETTER)
    word = "not shown to differ" if found.test.p >= 0.05 else "better" if better else "worse"
    span = f"{abs(found.test.difference):.3f} apart, p {_p(found.test.p)}"
    return f"{title(headline)} is {word} ({span})."


def _p(p: float) -> str:
    return "-" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _refused(evaluation: Evaluation, rename: Rename) -> Iterator[Section]:
    refused = evaluation.cases.refused
    if refused:
        rows = [Row((rename(item.case_id), item.code, item.detail, item.hint)) for item in refused[:SHOWN_REFUSED]]
        more = f"… and {len(refused) - SHOWN_REFUSED} more, in results.csv" if len(refused) > SHOWN_REFUSED else ""
        yield Section(
            "Not evaluated", tables=(Table(("case", "code", "why", "mend"), tuple(rows), words=4, note=more),)
        )
