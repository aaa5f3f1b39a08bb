"""Figures of a search: any study gives a picture, the front is the front, and what is drawn says what is meant."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from medray.reports import study
from medray.reports.study import StudyAxis, StudyPoint

NAN, INF = math.nan, math.inf
AXES = (
    StudyAxis("optimizer.lr", 1e-5, 1e-1, True),
    StudyAxis("network", 0, 0, False, ("$resnet$", "[16, 32, 64, 128]", "a_label that goes on and on " * 4)),
    StudyAxis("network[$resnet$].depth", 18, 101, False),
    StudyAxis("optimizer.weight_decay", 1e-4, 3e-4, True),
    StudyAxis("a.decision[of some option].with_a_name.that_nobody.would_like_to_read_or.write" * 2, 0, 0.5, False),
    StudyAxis("never drawn", 2, 5, False),
    StudyAxis("fixed", 3, 3, False),
    StudyAxis("many", 0, 0, False, tuple(f"option {number}" for number in range(40))),
    *(StudyAxis(f"dropout{number}", 0, 1, False) for number in range(6)),
)
STATES: Any = ("finished", "stopped", "failed", "running", "waiting")


def made(scores: Sequence[float], states: Sequence[Any] = STATES) -> list[StudyPoint]:
    """Trials with these scores, their states in turn; the first one lies outside the space."""
    draw = np.random.default_rng(0)
    points = []
    for index, score in enumerate(scores):
        choices: dict[str, float | str] = {}
        for axis in AXES if index else ():
            if axis.labels:
                choices[axis.name] = axis.labels[draw.integers(len(axis.labels))]
            elif axis.name != "never drawn" and ("[$resnet$]" not in axis.name or choices["network"] == "$resnet$"):
                choices[axis.name] = float(draw.uniform(axis.low, axis.high))
        epochs = list(range(1, 2 + index % 5))
        values = [score if epoch != 2 else NAN for epoch in epochs]
        points.append(StudyPoint(index, states[index % len(states)], score, choices, epochs, values))
    return points


def drawings(points: list[StudyPoint], sign: int, axes: Sequence[StudyAxis] = AXES[:3]) -> list[Callable[[], bytes]]:
    pairs = [(point.score, 10.0 * (point.index % 7)) for point in points]
    return [
        lambda: study.optimisation_history(points, "val/$auroc", sign, baseline=0),
        lambda: study.learning_curves(points, "val/$auroc", sign),
        lambda: study.parallel_coordinates(points, axes, "val/$auroc", sign),
        lambda: study.slices(points, axes, "val/$auroc", sign),
        lambda: study.pareto(points, ("val/$auroc", "millions of $"), pairs, (sign, -1)),
    ]


@pytest.fixture
def caught(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures that were saved."""
    figures: list[Figure] = []
    save = Figure.savefig

    def catch(figure: Figure, *args: Any, **settings: Any) -> None:
        figures.append(figure)
        save(figure, *args, **settings)

    monkeypatch.setattr(Figure, "savefig", catch)
    return figures


def opened(png: bytes) -> Image.Image:
    picture = Image.open(BytesIO(png))
    assert picture.format == "PNG"
    assert 400 < picture.width < 2400
    assert 80 < picture.height < 1800
    return picture


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def line(figure: Figure, label: str) -> Any:
    return next(line for line in figure.axes[0].lines if str(line.get_label()).startswith(label))


GENERATOR = np.random.default_rng(1)
SCORES = {
    "none": [],
    "one": [0.9],
    "one without": [NAN],
    "all without": [NAN] * 7,
    "equal": [0.9] * 9,
    "zero": [0.0] * 9,
    "infinite": [0.9, INF, -INF, NAN, 0.8, 0.7, INF, 0.6],
    "nearly equal": [0.9, 0.9 + 1e-16, 0.9, 0.9, 0.9 + 1e-16],
    "diverged": [0.1, 0.2, 0.15, 0.12, 3e38, 0.11, -3e38, 0.14, 0.3, 0.2, 0.1],
    "many": [*GENERATOR.beta(40, 2, 200), 0.1],
}


@pytest.mark.parametrize(
    ("name", "sign"), [*((name, 1) for name in SCORES), ("infinite", -1), ("diverged", -1), ("equal", -1)]
)
def test_any_study_is_a_picture(name: str, sign: int) -> None:
    for draw in drawings(made(SCORES[name]), sign):
        opened(draw())


@pytest.mark.parametrize("state", STATES)
def test_trials_of_any_one_state_are_a_picture(state: str) -> None:
    for draw in drawings(made([0.9, 0.8, NAN], [state]), 1):
        opened(draw())


@pytest.mark.parametrize("count", [0, 1, len(AXES)])
def test_any_number_of_decisions_is_a_picture(count: int) -> None:
    for draw in drawings(made([0.5, 0.7, 0.6]), 1, AXES[:count])[2:4]:
        opened(draw())


def test_the_same_study_is_the_same_bytes() -> None:
    for draw in drawings(made([0.5, 0.7, NAN, 0.6, 0.9]), 1, AXES[:1]):
        assert draw() == draw()


def test_a_figure_without_data_says_so(caught: list[Figure]) -> None:
    for draw in drawings([], 1):
        draw()
        assert "There are no trials" in texts(caught[-1])
    for draw in drawings(made([NAN, NAN, NAN], ["failed", "failed", "running"]), 1):
        draw()
        assert "No trial has a score: 2 failed, 1 running" in texts(caught[-1])
    opened(study.importance({"lr": NAN}))
    assert "too few trials" in texts(caught[-1])


@pytest.mark.parametrize("sign", [1, -1])
def test_best_so_far_only_gets_better_and_ends_at_the_best(sign: int, caught: list[Figure]) -> None:
    scores = np.random.default_rng(2).random(40)
    scores[[3, 9]] = NAN, sign * INF
    points = made(scores.tolist(), ["finished", "stopped", "failed"])
    study.optimisation_history(points[::-1], "val/auroc", sign)
    reached = np.asarray(line(caught[-1], "best so far").get_ydata(), float)
    assert (np.diff(sign * reached[np.isfinite(reached)]) >= 0).all()
    finished = [p for p in points if p.state == "finished" and math.isfinite(p.score)]
    best = max(finished, key=lambda point: sign * point.score)
    assert reached[-1] == best.score
    assert f"best: trial {best.index} ({best.score:.4g})" in texts(caught[-1])


def test_the_best_finished_is_the_best_else_the_best_that_did_not_fail(caught: list[Figure]) -> None:
    points = made([0.5, 0.7, 0.9], ["finished", "stopped", "failed"])
    for shown, number in ((points, 0), (points[1:], 1), (points[2:], 2)):
        for draw in drawings(shown, 1, AXES[:1])[:4]:
            draw()
            assert f"best: trial {number} " in texts(caught[-1])


def test_states_and_the_baseline_are_in_the_legend(caught: list[Figure]) -> None:
    points = made([0.5, 0.7, NAN, 0.6, NAN, 0.8])
    study.optimisation_history(points, "val/auroc", 1, baseline=0)
    for words in ("finished (2)", "stopped (1)", "failed (1)", "running (1)", "baseline: trial 0 (0.5)", "no score"):
        assert words in texts(caught[-1])
    assert "auroc (higher is better)" in texts(caught[-1])
    study.optimisation_history(points, "val/loss", -1)
    assert "loss (lower is better)" in texts(caught[-1])
    assert "baseline" not in texts(caught[-1])


@pytest.mark.parametrize("sign", [1, -1])
def test_an_outlier_does_not_hide_how_the_others_differ(sign: int, caught: list[Figure]) -> None:
    scores = [0.95 + 0.001 * number for number in range(12)]
    scores[5] = 0.95 - sign * 0.6
    points = made(scores, ["finished"])
    for draw in (drawings(points, sign)[number] for number in (0, 1, 3)):
        draw()
        low, high = caught[-1].axes[0].get_ylim()
        assert high - low < 0.02
        assert "beyond the axis" in texts(caught[-1])
        assert low < min(scores[:5] + scores[6:]) < max(scores[:5] + scores[6:]) < high
    best = replace(points[5], state="finished", index=99)
    study.optimisation_history([replace(p, state="stopped") for p in points] + [best], "val/auroc", sign)
    low, high = caught[-1].axes[0].get_ylim()
    assert low < best.score < high, "the best is never beyond the axis"


def test_the_best_curve_is_bold_and_on_top(caught: list[Figure]) -> None:
    points = made(np.linspace(0.1, 0.9, 100).tolist(), ["finished", "stopped"])
    study.learning_curves(points, "val/auroc", 1)
    curves = [drawn for drawn in caught[-1].axes[0].lines if len(drawn.get_xdata()) and drawn.get_marker() == "None"]
    assert len(curves) == 100
    bold = max(curves, key=lambda drawn: drawn.get_linewidth())
    assert next(iter(bold.get_ydata())) == points[98].score
    assert bold.get_zorder() > max(drawn.get_zorder() for drawn in curves if drawn is not bold)
    assert "best: trial 98" in texts(caught[-1])


def test_a_decision_that_was_not_drawn_runs_below_its_axis(caught: list[Figure]) -> None:
    axes = (StudyAxis("network", 0, 0, False, ("a", "b")), StudyAxis("network[a].depth", 2, 5, False))
    first, other = made([0.9, 0.8], ["finished"])
    first, other = (
        replace(first, choices={"network": "a", "network[a].depth": 5}),
        replace(other, choices={"network": "b"}),
    )
    study.parallel_coordinates([first, other], axes, "val/auroc", 1)
    best = line(caught[-1], "best: trial 0")
    middle = len(best.get_ydata()) // 2
    assert best.get_ydata()[middle] == 1
    drawn = [curve.get_ydata()[middle] for curve in caught[-1].axes[0].lines if len(curve.get_ydata()) > middle > 2]
    assert min(drawn) < -0.1
    assert "not\ndrawn" in texts(caught[-1])
    study.parallel_coordinates([first], axes, "val/auroc", 1)
    assert "not\ndrawn" not in texts(caught[-1])


def test_every_decision_and_option_is_named(caught: list[Figure]) -> None:
    for draw in (study.parallel_coordinates, study.slices):
        draw(made([0.5, 0.6, 0.7]), AXES[:4], "val/auroc", 1)
        seen = texts(caught[-1]).replace("\n", "")
        for words in ("optimizer.lr", r"network[\$resnet\$].depth", "optimizer.weight_decay", "1e-5", "0.1"):
            assert words in seen
        assert r"\$resnet\$" in seen
        assert "[16, 32, 64,128]" in seen


def test_numbers_of_a_log_axis_lie_by_their_logarithm() -> None:
    axis = StudyAxis("lr", 1e-4, 1, True)
    points = [replace(point, choices={"lr": lr}) for point, lr in zip(made([1] * 4), (1e-4, 1e-2, 5, -1), strict=True)]
    assert study.places_of(axis, points) == pytest.approx([0, 0.5, 1, 0])


def test_shares_are_sorted_and_in_percent(caught: list[Figure]) -> None:
    opened(study.importance({"a": 0.25, "b": 0.7, "$c" * 40: 0.05, "d": NAN}))
    axes = caught[-1].axes[0]
    assert [label.get_text()[0] for label in axes.get_yticklabels()] == ["b", "a", "\\"]
    assert [text.get_text().strip() for text in axes.texts] == ["70.0 %", "25.0 %", "5.0 %"]
    opened(study.importance({f"decision {number}": 0.0 for number in range(50)}))


def test_the_front_names_its_trials(caught: list[Figure]) -> None:
    points = made([0.0] * 5, ["finished", "finished", "finished", "failed", "finished"])
    values = [(0.9, 10.0), (0.8, 1.0), (0.7, 5.0), (1.0, 0.0), (0.9, 10.0)]
    opened(study.pareto(points, ("auroc", "size"), values, (1, -1)))
    assert [text.get_text() for text in caught[-1].axes[0].texts] == ["1", "0, 4"]
    assert line(caught[-1], "front (3)").get_drawstyle() == "steps-pre"
    assert "dominated (1)" in texts(caught[-1])
    with pytest.raises(ValueError, match="shorter"):
        study.pareto(points, ("auroc", "size"), values[:2], (1, -1))


NUMBERS = st.sampled_from([NAN, -INF, -1.0, 0.0, 0.5, 1.0, 2.0, INF])


@given(
    st.integers(1, 4).flatmap(
        lambda m: st.tuples(
            st.lists(st.lists(NUMBERS, min_size=m, max_size=m), max_size=12),
            st.lists(st.sampled_from([1, -1]), min_size=m, max_size=m),
        )
    )
)
def test_the_front_is_what_nothing_dominates(study_of: tuple[list[list[float]], list[int]]) -> None:
    values, signs = study_of

    def dominates(one: list[float], other: list[float]) -> bool:
        gains = [sign * a - sign * b if a != b else 0.0 for a, b, sign in zip(one, other, signs, strict=True)]
        return all(gain >= 0 for gain in gains) and any(gain > 0 for gain in gains)

    whole = [n for n, row in enumerate(values) if not any(map(math.isnan, row))]
    expected = [n for n in whole if not any(dominates(values[other], values[n]) for other in whole)]
    assert study.pareto_front(values, signs) == expected
