"""The trials of a study in its folder: whole records, curves that know of epochs done twice, and the ranking."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medray.tracking import journal
from medray.tuning.trials import (
    ERROR,
    JOURNAL,
    RECORD,
    Curve,
    Trial,
    curve,
    describe,
    error_of,
    folder_of,
    load,
    load_all,
    ranked,
    save,
    score,
)

STATES = ("waiting", "running", "finished", "stopped", "failed")
SETTINGS = {"optimizer.lr": 0.1 + 0.2, "network": {"name": "plain", "widths": [8, 8]}, "train.clip_norm": None}
CHOICES: dict[str, float | str] = {"optimizer.lr": 0.1 + 0.2, "network": "plain"}


def same(one: Trial, other: Trial) -> bool:
    """Equal, NaN being equal to itself."""
    return repr(one) == repr(other)


def write_rows(study: Path, index: int, rows: list[dict[str, float | None]]) -> None:
    folder_of(study, index).mkdir(parents=True, exist_ok=True)
    for row in rows:
        journal.append(folder_of(study, index) / JOURNAL, row)


@pytest.mark.parametrize("state", STATES)
def test_a_record_comes_back_as_it_was_written(tmp_path: Path, state: Any) -> None:
    measured = {"val/auroc": math.nan, "val/loss": 0.1, "best_epoch": 3}
    events = ("takes over trial 2's weights after epoch 4", "Umlaute: äöü")
    trial = Trial(7, SETTINGS, CHOICES, state, "ValueError: no\nluck", measured, events)
    save(tmp_path, trial)
    assert same(load(tmp_path, 7), trial)
    assert trial.ended == (state in ("finished", "stopped", "failed"))


@settings(deadline=None)
@given(
    value=st.floats(allow_nan=False, allow_infinity=False),
    measured=st.dictionaries(st.text(max_size=5), st.floats(allow_infinity=False), max_size=3),
    text=st.text(max_size=20),
)
def test_no_digit_and_no_letter_of_a_record_is_lost(
    tmp_path_factory: pytest.TempPathFactory, value: float, measured: dict[str, float], text: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "records"
    trial = Trial(0, {"optimizer.lr": value}, {"optimizer.lr": value, "name": text}, "finished", text, measured)
    save(folder, trial)
    assert same(load(folder, 0), trial)


def test_the_record_is_json_that_others_can_read(tmp_path: Path) -> None:
    save(tmp_path, Trial(0, {}, {}, "finished", measured={"val/auroc": math.nan}))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (folder_of(tmp_path, 0) / RECORD).read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=refuse)["measured"] == {"val/auroc": None}


def test_a_record_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Trial(0, SETTINGS, CHOICES, "running")
    save(tmp_path, before)
    write = Path.write_text

    def dies_half_way(file: Path, text: str, **rest: Any) -> int:
        write(file, text[: len(text) // 2], **rest)
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", dies_half_way)
        with pytest.raises(OSError, match="no space"):
            save(tmp_path, Trial(0, SETTINGS, CHOICES, "finished"))
        with pytest.raises(OSError, match="no space"):
            save(tmp_path, Trial(1, SETTINGS, CHOICES))
    assert load_all(tmp_path) == {0: before}
    save(tmp_path, Trial(1, SETTINGS, CHOICES))
    assert load_all(tmp_path)[1] == Trial(1, SETTINGS, CHOICES)


def test_all_trials_are_found_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for index in (10, 2, 12345, 0):
        save(tmp_path, Trial(index, {}, {}))
    write_rows(tmp_path, 5, [{"epoch": 1}])
    assert list(load_all(tmp_path)) == [0, 2, 10, 12345]
    assert load_all(tmp_path / "nothing") == {}


def test_a_trial_s_own_word_says_why_it_failed(tmp_path: Path) -> None:
    save(tmp_path, Trial(0, {}, {}))
    assert error_of(tmp_path, 0, "it died") == "it died"
    (folder_of(tmp_path, 0) / ERROR).write_text("ValueError: häh", encoding="utf-8")
    assert error_of(tmp_path, 0, "it died") == "ValueError: häh"


def test_an_epoch_done_twice_was_spent_twice_and_stands_once_as_the_later(tmp_path: Path) -> None:
    done = [(1, 0.1), (2, 0.2), (3, 0.9), (2, 0.4), (3, 0.5)]
    write_rows(tmp_path, 0, [{"epoch": epoch, "val/auroc": value} for epoch, value in done])
    found = curve(tmp_path, 0)
    assert found.spent == 5
    assert [(row["epoch"], row["val/auroc"]) for row in found.rows] == [(1, 0.1), (2, 0.4), (3, 0.5)]
    assert found.value("val/auroc", 1) == 0.5, "what was thrown away does not count"


@settings(deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_a_curve_is_the_last_way_through_the_epochs(
    tmp_path_factory: pytest.TempPathFactory, restarts: list[int]
) -> None:
    """Each start goes on from an epoch that the one before has reached, and comes up to epoch 6 or is cut short."""
    folder = tmp_path_factory.mktemp("curves")
    truth: dict[int, float] = {}
    spent = 0
    for start, length in enumerate(restarts):
        first = min(length, max(truth, default=0) + 1)
        truth = {epoch: value for epoch, value in truth.items() if epoch < first}
        rows = {epoch: float(spent + epoch) for epoch in range(first, min(first + length + start, 7))}
        write_rows(folder, 0, [{"epoch": epoch, "value": value} for epoch, value in rows.items()])
        truth |= rows
        spent += len(rows)
    found = curve(folder, 0)
    assert found.spent == spent
    assert [(int(row["epoch"]), row["value"]) for row in found.rows] == sorted(truth.items())


def test_a_trial_that_has_not_begun_has_an_empty_curve(tmp_path: Path) -> None:
    found = curve(tmp_path, 3)
    assert found == Curve()
    assert math.isnan(found.value("val/auroc", 1))


def test_a_line_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    write_rows(tmp_path, 0, [{"epoch": 1}])
    with (folder_of(tmp_path, 0) / JOURNAL).open("a", encoding="utf-8") as stream:
        stream.write('{"epoch": 2, "val/')
    assert curve(tmp_path, 0).spent == 1


@pytest.mark.parametrize(("sign", "best"), [(1, 0.8), (-1, 0.3)])
def test_the_best_value_passes_over_what_is_undefined(tmp_path: Path, sign: int, best: float) -> None:
    values = [None, 0.3, 0.8, None, 0.5]
    write_rows(tmp_path, 0, [{"epoch": epoch, "m": value} for epoch, value in enumerate(values, 1)])
    found = curve(tmp_path, 0)
    assert found.value("m", sign) == best
    assert math.isnan(found.value("other", sign))


def test_a_finished_trial_is_scored_by_its_weights_and_another_by_its_best_epoch() -> None:
    epochs = Curve(({"epoch": 1, "m": 0.9}, {"epoch": 2, "m": 0.7}), 2)
    measured = {"m": 0.85}
    assert score(Trial(0, {}, {}, "finished", measured=measured), epochs, "m", 1) == 0.85
    assert math.isnan(score(Trial(0, {}, {}, "finished", measured={"other": 1.0}), epochs, "m", 1))
    for state in ("running", "stopped", "failed"):
        assert score(Trial(0, {}, {}, state, measured=measured), epochs, "m", 1) == 0.9
        assert score(Trial(0, {}, {}, state), epochs, "m", -1) == 0.7


@pytest.mark.parametrize("sign", [1, -1])
def test_trials_are_ranked_by_how_they_ended_and_then_by_score_with_the_undefined_last(sign: int) -> None:
    order = [
        ("finished", 0.9),
        ("finished", 0.1),
        ("finished", math.nan),
        ("stopped", 0.95),
        ("running", 0.5),
        ("stopped", 0.4),
        ("stopped", math.nan),
        ("waiting", math.nan),
        ("failed", 0.99),
        ("failed", math.nan),
    ]
    trials = [(Trial(index, {}, {}, state), sign * value) for index, (state, value) in enumerate(order)]
    for shuffled in (trials, trials[::-1], trials[5:] + trials[:5]):
        assert [trial.index for trial, _ in ranked(shuffled, sign)] == list(range(len(order)))


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(STATES), st.floats(allow_infinity=False)), max_size=8))
def test_nothing_is_lost_by_ranking_and_equal_trials_keep_their_order(found: list[tuple[Any, float]]) -> None:
    trials = [(Trial(index, {}, {}, state), value) for index, (state, value) in enumerate(found)]
    order = ranked(trials, 1)
    assert sorted(trial.index for trial, _ in order) == list(range(len(trials)))
    for (one, first), (other, second) in pairwise(order):
        if one.state == other.state:
            assert not first < second
            assert not (math.isnan(first) and not math.isnan(second))
            if first == second:
                assert one.index < other.index


def test_settings_are_described_in_one_line_with_numbers_rounded() -> None:
    chosen = {"optimizer.lr": 0.000123456, "train.batch_size": 8, "network": {"name": "plain", "dropout": 0.123456}}
    assert describe(chosen) == "optimizer.lr=0.0001235, train.batch_size=8, network={name: plain, dropout: 0.1235}"
    assert describe({}) == "the experiment as it is"


@pytest.mark.parametrize(
    ("error", "public"),
    [
        ("NonFiniteLoss: the loss is not finite at step 1", "NonFiniteLoss: the loss is not finite at step 1"),
        ("DataRefused: 2 of 9 cases cannot be used: DOE_JANE: truncated", "DataRefused"),
        ("FileNotFoundError: /data/DOE_JANE/1.dcm", "FileNotFoundError"),
        ("its process was killed, or out of memory; lower", "its process was killed, or out of memory; lower"),
    ],
)
def test_what_leaves_the_machine_of_an_error_names_no_case(error: str, public: str) -> None:
    assert Trial(0, {}, {}, "failed", error).public_error == public


def test_of_equal_trials_of_a_population_the_one_with_its_own_weights_comes_first() -> None:
    heir = Trial(0, {}, {}, "finished", events=("takes over trial 1's weights",))
    donor = Trial(1, {}, {}, "finished")
    assert [trial.index for trial, _ in ranked([(heir, 0.9), (donor, 0.9)], 1)] == [1, 0]
