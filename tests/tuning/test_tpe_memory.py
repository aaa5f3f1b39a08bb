"""TPE's memory: what reaches Optuna, that a restart changes nothing, and which settings mattered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from medray.tuning.space import Chance, Choice, Drawn, Range, Space, dimensions, draw
from medray.tuning.tpe import LOG, Memory, importances

FLAT: Space = {"optimizer.lr": Range(1e-4, 1e-1, log=True), "train.batch_size": Range(4, 64, whole=True)}
CONDITIONAL: Space = {
    "optimizer.lr": Range(1e-4, 1e-1, log=True),
    "network": Choice(
        ("plain", "resnet"),
        ({"name": "plain", "dropout": Range(0.0, 0.5)}, {"name": "resnet", "depth": Range(1, 4, whole=True)}),
    ),
}
UP = {"val/auroc": 1}
DOWN = {"val/loss": -1}
BOTH = {"val/auroc": 1, "val/loss": -1}


def quality(point: Drawn) -> float:
    """Best at a rate of 0.01, with the plain network where there is one."""
    distance = abs(math.log10(float(point.choices["optimizer.lr"])) + 2)
    return -distance + (point.choices.get("network") == "plain")


def trials_in(folder: Path) -> list[FrozenTrial]:
    """The trials as Optuna has them on disk."""
    storage = JournalStorage(JournalFileBackend(str(folder / LOG)))
    return list(optuna.load_study(study_name="medray", storage=storage).get_trials())


def signed(signs: dict[str, int], value: float) -> dict[str, float | None]:
    return {name: sign * value for name, sign in signs.items()}


def run(folder: Path, space: Space, signs: dict[str, int], count: int, restart_at: Sequence[int] = ()) -> list[Drawn]:
    """A search of so many trials, two at a time, each ending after the next has begun."""
    folder.mkdir(exist_ok=True)
    memory = Memory(folder, space, signs, 0, set())
    points: list[Drawn] = []

    def end(index: int) -> None:
        match index % 4:
            case 3:
                memory.tell(index, None, failed=True)
            case 2:
                memory.epoch(index, 1, quality(points[index]))
                memory.tell(index, None, failed=False)
            case _:
                memory.tell(index, signed(signs, quality(points[index])), failed=False)

    for index in range(count):
        if index in restart_at:
            memory = Memory(folder, space, signs, 0, set(range(index)))
        points.append(memory.ask(index))
        if index:
            end(index - 1)
    return points


@pytest.mark.parametrize("space", [FLAT, CONDITIONAL], ids=["flat", "conditional"])
@pytest.mark.parametrize("signs", [UP, DOWN, BOTH], ids=["up", "down", "both"])
def test_a_restart_changes_nothing_about_what_comes_next(tmp_path: Path, space: Space, signs: dict[str, int]) -> None:
    whole = run(tmp_path / "whole", space, signs, 16)
    assert run(tmp_path / "broken", space, signs, 16, restart_at=(1, 2, 12, 15)) == whole
    assert len({str(point.settings) for point in whole}) == 16


def test_what_was_asked_for_but_never_written_down_is_asked_for_again(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", CONDITIONAL, UP, 14)
    folder = tmp_path / "broken"
    run(folder, CONDITIONAL, UP, 13)
    dying = Memory(folder, CONDITIONAL, UP, 0, set(range(13)))
    lost = dying.ask(13)
    after = Memory(folder, CONDITIONAL, UP, 0, set(range(13)))
    assert after.ask(13) == lost
    states = [trial.state for trial in trials_in(folder) if trial.user_attrs["index"] == 13]
    assert states == [TrialState.FAIL, TrialState.RUNNING]
    after.tell(12, {"val/auroc": 0.5}, failed=False)
    assert whole[13] == lost


def test_a_kill_in_the_middle_of_asking_for_the_baseline_does_not_hinder_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = draw(FLAT, Chance(0, 0)).choices
    memory = Memory(tmp_path, FLAT, UP, 0, set())

    def dies(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "ask", dies)
        with pytest.raises(KeyboardInterrupt):
            memory.ask(0, choices)
    assert Memory(tmp_path, FLAT, UP, 0, set()).ask(0, choices).choices == choices


def test_an_interrupted_trial_can_be_told_of_after_a_restart(tmp_path: Path) -> None:
    Memory(tmp_path, FLAT, UP, 0, set()).ask(0)
    memory = Memory(tmp_path, FLAT, UP, 0, {0})
    memory.epoch(0, 1, 0.4)
    memory.tell(0, {"val/auroc": 0.7}, failed=False)
    (trial,) = trials_in(tmp_path)
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.7)
    assert trial.intermediate_values == {1: 0.4}


def test_an_epoch_that_is_done_again_after_a_restart_is_no_warning(tmp_path: Path) -> None:
    memory = Memory(tmp_path, FLAT, UP, 0, set())
    memory.ask(0)
    memory.epoch(0, 1, 0.4)
    again = Memory(tmp_path, FLAT, UP, 0, {0})
    again.epoch(0, 1, 0.4)
    again.epoch(0, 2, 0.5)
    again.tell(0, None, failed=False)
    assert trials_in(tmp_path)[0].value == 0.5


@pytest.mark.parametrize(
    ("measured", "failed", "state", "value"),
    [
        ({"val/auroc": 0.9, "val/loss": 0.1}, False, TrialState.COMPLETE, 0.9),
        ({"val/auroc": 0.0}, False, TrialState.COMPLETE, 0.0),
        (None, False, TrialState.PRUNED, 0.6),
        (None, True, TrialState.FAIL, None),
        ({"val/auroc": 0.9}, True, TrialState.FAIL, None),
        ({"val/auroc": None, "val/loss": 0.1}, False, TrialState.FAIL, None),
        ({"val/loss": 0.1}, False, TrialState.FAIL, None),
    ],
    ids=str,
)
def test_optuna_hears_how_a_trial_ended(
    tmp_path: Path, measured: Any, failed: bool, state: TrialState, value: float | None
) -> None:
    memory = Memory(tmp_path, FLAT, UP, 0, set())
    memory.ask(0)
    memory.epoch(0, 1, 0.5)
    memory.epoch(0, 2, 0.6)
    memory.epoch(0, 3, -math.inf)
    memory.tell(0, measured, failed)
    (trial,) = trials_in(tmp_path)
    assert (trial.state, trial.value) == (state, value)
    assert trial.intermediate_values == {1: 0.5, 2: 0.6}
    memory.tell(0, {"val/auroc": 0.1}, failed=False)
    assert trials_in(tmp_path)[0].value == value, "what has ended does not end again"


def test_scores_of_a_smaller_is_better_metric_reach_optuna_as_they_are(tmp_path: Path) -> None:
    memory = Memory(tmp_path, FLAT, DOWN, 0, set())
    memory.ask(0)
    memory.epoch(0, 1, -0.7)
    memory.tell(0, None, failed=False)
    memory.ask(1)
    memory.tell(1, {"val/loss": 0.2}, failed=False)
    stopped, finished = trials_in(tmp_path)
    assert (stopped.state, stopped.value) == (TrialState.PRUNED, 0.7)
    assert finished.value == 0.2


def test_two_objectives_reach_optuna_in_their_order_and_epochs_do_not(tmp_path: Path) -> None:
    memory = Memory(tmp_path, FLAT, BOTH, 0, set())
    for index in range(3):
        memory.ask(index)
        memory.epoch(index, 1, 0.5)
    memory.tell(0, {"val/loss": 0.2, "val/auroc": 0.9}, failed=False)
    memory.tell(1, {"val/loss": None, "val/auroc": 0.9}, failed=False)
    memory.tell(2, None, failed=True)
    first, second, third = trials_in(tmp_path)
    assert first.values == [0.9, 0.2]
    assert [second.state, third.state] == [TrialState.FAIL, TrialState.FAIL]
    assert first.intermediate_values == {}
    storage = JournalStorage(JournalFileBackend(str(tmp_path / LOG)))
    directions = optuna.load_study(study_name="medray", storage=storage).directions
    assert [direction.name for direction in directions] == ["MAXIMIZE", "MINIMIZE"]


def test_what_was_never_asked_for_is_passed_over(tmp_path: Path) -> None:
    """The baseline outside of the space is not TPE's."""
    memory = Memory(tmp_path, FLAT, UP, 0, set())
    memory.epoch(0, 1, 0.5)
    memory.tell(0, {"val/auroc": 0.5}, failed=False)
    assert trials_in(tmp_path) == []


@pytest.mark.parametrize("space", [FLAT, CONDITIONAL], ids=["flat", "conditional"])
def test_a_known_point_is_taken_as_it_is(tmp_path: Path, space: Space) -> None:
    known = [draw(space, Chance(5, index)) for index in range(4)]
    memory = Memory(tmp_path, space, UP, 0, set())
    assert [memory.ask(index, point.choices) for index, point in enumerate(known)] == known
    assert [trial.params for trial in trials_in(tmp_path)] == [point.choices for point in known]


def test_points_of_a_conditional_space_hold_just_the_decisions_of_their_option(tmp_path: Path) -> None:
    points = run(tmp_path, CONDITIONAL, UP, 16)
    names = {point.choices["network"]: set(point.choices) for point in points}
    assert names == {
        "plain": {"optimizer.lr", "network", "network[plain].dropout"},
        "resnet": {"optimizer.lr", "network", "network[resnet].depth"},
    }
    for point in points:
        network = point.settings["network"]
        assert network["name"] == point.choices["network"]
        if network["name"] == "resnet":
            assert type(network["depth"]) is int
            assert 1 <= network["depth"] <= 4


@pytest.mark.parametrize(("space", "signs"), [(FLAT, UP), (FLAT, DOWN), (CONDITIONAL, UP)], ids=str)
def test_tpe_learns_where_the_good_points_are(tmp_path: Path, space: Space, signs: dict[str, int]) -> None:
    """The more it knows, the nearer its points lie to the best one; chance comes no nearer."""
    memory = Memory(tmp_path, space, signs, 0, set())
    found = []
    for index in range(40):
        point = memory.ask(index)
        memory.tell(index, signed(signs, quality(point)), failed=False)
        found.append(quality(point))
    chance = [quality(draw(space, Chance(0, index))) for index in range(200)]
    assert np.mean(found[25:]) > np.mean(chance) + np.std(chance) / 2


def test_another_seed_asks_for_other_points(tmp_path: Path) -> None:
    points = []
    for seed in (0, 1, -1):
        (tmp_path / str(seed)).mkdir()
        points.append(Memory(tmp_path / str(seed), FLAT, UP, seed, set()).ask(0))
    assert len({str(point) for point in points}) == 3


# Which settings mattered


def made(space: Space, count: int, value: Any, seed: int = 0) -> list[tuple[Any, float]]:
    points = [draw(space, Chance(seed, index)) for index in range(count)]
    return [(point.choices, float(value(point.choices))) for point in points]


def rate(choices: Any) -> float:
    return -abs(math.log10(choices["optimizer.lr"]) + 2)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_decision_that_the_score_depends_on_has_the_larger_share(sign: int) -> None:
    found = importances(FLAT, made(FLAT, 60, lambda choices: sign * rate(choices)), sign)
    assert list(found) == ["optimizer.lr", "train.batch_size"]
    assert found["optimizer.lr"] > 0.8
    assert sum(found.values()) == pytest.approx(1)


def test_an_option_can_be_what_matters_and_conditional_decisions_have_no_share() -> None:
    noise = np.random.default_rng(0)
    points = made(CONDITIONAL, 60, lambda choices: (choices["network"] == "plain") + 0.01 * noise.random())
    found = importances(CONDITIONAL, points, 1)
    assert set(found) == {"optimizer.lr", "network"} < set(dimensions(CONDITIONAL))
    assert found["network"] > 0.6


def test_too_few_points_or_equal_scores_say_nothing() -> None:
    points = made(FLAT, 20, rate)
    assert importances(FLAT, [], 1) == {}
    assert importances(FLAT, points[:3], 1) == {}
    assert importances(FLAT, [(choices, 0.5) for choices, _ in points], 1) == {}
    assert set(importances(FLAT, points[:4], 1)) == set(FLAT)


def test_decisions_that_no_two_trials_share_say_nothing() -> None:
    space: Space = {"network": Choice(("plain", "resnet"), ("plain", "resnet"))}
    assert (
        importances(space, [({}, 0.1), ({"network": "plain"}, 0.2), ({}, 0.3), ({"network": "resnet"}, 0.4)], 1) == {}
    )
