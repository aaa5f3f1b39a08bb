"""What a study says at its end: the ranking, whether it found better, the trade-offs."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medray.tuning.conclude import _changed_on_the_way, _front, _say_ranking, _verdict, _write_ranking
from medray.tuning.trials import Curve, Trial, ranked

STUDY: Any = SimpleNamespace(monitor="val/auroc", sign=1)
AS_IT_IS = Trial(0, {}, {}, "finished", measured={"val/auroc": 0.9})
OTHER = Trial(1, {"optimizer.lr": 0.01}, {"optimizer.lr": 0.01}, "finished", measured={"val/auroc": 0.95})
FAILED = Trial(2, {"optimizer.lr": 9.0}, {"optimizer.lr": 9.0}, "failed", "NonFiniteLoss: at step 1")


def said(*scored: tuple[Trial, float], intervals: dict[str, list[float]] | None = None) -> str:
    return "\n".join(_verdict(STUDY, ranked(scored, 1), intervals or {}))


def test_a_better_trial_is_said_to_be_better_by_how_much() -> None:
    text = said((AS_IT_IS, 0.9), (OTHER, 0.95))
    assert text == "trial 1 is better than the experiment as it is: auroc 0.9500 against 0.9000"


def test_a_difference_within_the_interval_is_said_to_be_that() -> None:
    text = said((AS_IT_IS, 0.9), (OTHER, 0.95), intervals={"val/auroc": [0.88, 0.99]})
    assert text.endswith("; that is within the interval of the best, 0.8800 to 0.9900 (95 %)")
    assert "interval" not in said((AS_IT_IS, 0.9), (OTHER, 0.95), intervals={"val/auroc": [0.91, 0.99]})


def test_that_nothing_was_better_is_said_too() -> None:
    assert said((AS_IT_IS, 0.96), (OTHER, 0.95)) == "no trial was better than the experiment as it is: auroc 0.9600"


def test_an_experiment_that_was_stopped_early_is_not_called_worse_without_saying_so() -> None:
    text = said((replace(AS_IT_IS, state="stopped"), 0.7), (OTHER, 0.95))
    assert text.endswith("auroc 0.9500 against 0.7000, where it was stopped early")


def test_failed_trials_are_a_note() -> None:
    text = said((AS_IT_IS, 0.96), (FAILED, float("nan")))
    assert text.splitlines()[-1] == "note: 1 of 2 trials failed: NonFiniteLoss: at step 1"


def test_without_the_experiment_among_them_trials_are_compared_with_nothing() -> None:
    assert said((OTHER, 0.95)) == ""


def test_the_table_has_every_trial_with_its_settings_epochs_and_error(tmp_path: Path) -> None:
    ranking = ranked([(FAILED, float("nan")), (AS_IT_IS, 0.9), (OTHER, 0.95)], 1)
    curves = {0: Curve(spent=5), 1: Curve(spent=7), 2: Curve()}
    _write_ranking(tmp_path / "ranking.csv", ranking, curves, "val/auroc", {"val/auroc": 1})
    with (tmp_path / "ranking.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["rank"], row["trial"], row["state"]) for row in rows] == [
        ("1", "1", "finished"),
        ("2", "0", "finished"),
        ("3", "2", "failed"),
    ]
    assert [row["optimizer.lr"] for row in rows] == ["0.01", "", "9.0"]
    assert [row["epochs"] for row in rows] == ["7", "5", "0"]
    assert rows[2]["error"] == "NonFiniteLoss: at step 1"


def test_of_many_trials_the_terminal_shows_the_best(capsys: pytest.CaptureFixture[str]) -> None:
    many = [(Trial(index, {"optimizer.lr": index / 10}, {}, "finished"), index / 100) for index in range(50)]
    _say_ranking(ranked(many, 1), "val/auroc")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 22
    assert lines[1].split()[:2] == ["49", "0.4900"]
    assert lines[-1] == "       ... and 30 more in study/ranking.csv"


def test_the_front_holds_finished_trials_that_no_other_beats_in_everything() -> None:
    signs = {"val/auroc": 1, "val/ece": -1}
    values = [(0.9, 0.1), (0.95, 0.3), (0.85, 0.2), (0.9, 0.1)]
    trials = [
        Trial(index, {}, {}, "finished", measured={"val/auroc": auroc, "val/ece": ece})
        for index, (auroc, ece) in enumerate(values)
    ]
    trials.append(Trial(4, {}, {}, "stopped", measured={"val/auroc": 1.0, "val/ece": 0.0}))
    assert _front(trials, signs) == [0, 1, 3]


def test_what_a_plain_training_cannot_repeat_is_written_into_its_file() -> None:
    assert _changed_on_the_way(OTHER) == ""
    event = "takes over trial 0's weights after epoch 4: optimizer.lr=0.01"
    text = _changed_on_the_way(replace(OTHER, events=(event,)))
    assert all(line.startswith("#") for line in text.splitlines())
    assert event in text


def test_a_worse_trial_is_not_called_better_since_the_experiment_was_stopped() -> None:
    text = said((replace(AS_IT_IS, state="stopped"), 0.97), (OTHER, 0.95))
    assert text.startswith("no trial that came to its end was better")
