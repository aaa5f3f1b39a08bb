"""Who stops weak trials and when, what a restart knows, and how a population changes; without a cluster."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.schedulers import FIFOScheduler, HyperBandScheduler, TrialScheduler

from medray.config import ConfigError, Experiment
from medray.tuning.schedule import check_population, scheduler_of
from medray.tuning.space import Chance, Choice, Range, Space, draw
from medray.tuning.trials import WORST, Curve

SPACE: Space = {"optimizer.lr": Range(1e-3, 1e-1, log=True)}
BASE = tiny(Path("images"))


def experiment(epochs: int = 9, **tune: Any) -> Experiment:
    section = type(BASE.tune)(**tune)
    return BASE.model_copy(update={"tune": section, "train": BASE.train.model_copy(update={"epochs": epochs})})


def scheduler(cfg: Experiment, past: Sequence[Curve] = (), space: Space = SPACE, sign: int = 1) -> Any:
    return scheduler_of(cfg, space, past, "val/m", sign)


@dataclass(frozen=True)
class Running:
    """A trial as a scheduler sees it."""

    trial_id: str


class Live:
    """Trials that report to a scheduler as Ray Tune's controller has them do."""

    def __init__(self, rule: Any, cfg: Experiment, sign: int = 1) -> None:
        self.rule, self.epochs, self.sign = rule, cfg.train.epochs, sign
        self.best: dict[Running, float] = {}

    def add(self, name: str) -> Running:
        trial = Running(name)
        self.rule.on_trial_add(None, trial)
        self.best[trial] = WORST
        return trial

    def report(self, trial: Running, epoch: int, value: float) -> bool:
        """Whether the trial goes on."""
        self.best[trial] = max(self.best[trial], self.sign * value)
        result = {"epoch": epoch, "score": self.best[trial]}
        return bool(self.rule.on_trial_result(None, trial, result) != TrialScheduler.STOP)

    def end(self, trial: Running, epoch: int) -> None:
        self.rule.on_trial_complete(None, trial, {"epoch": epoch, "score": self.best[trial]})

    def whole(self, name: str, values: Sequence[float], first: int = 1) -> int | None:
        """The epoch at which a trial with these values is stopped."""
        trial = self.add(name)
        for epoch, value in enumerate(values, first):
            if not self.report(trial, epoch, value):
                return epoch
        return None


def curve_of(values: Sequence[float]) -> Curve:
    rows = tuple({"epoch": float(epoch), "val/m": value} for epoch, value in enumerate(values, 1))
    return Curve(rows, len(rows))


# ASHA and the median rule


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("grace", "reduction", "score", "stopped"),
    [(1, 2, 0.5, 1), (4, 2, 0.5, 4), (4, 4, 2.0, 4), (4, 2, 2.0, None), (20, 2, 0.5, None)],
)
def test_asha_stops_a_weak_trial_after_its_grace(
    grace: int, reduction: int, score: float, stopped: int | None, sign: int
) -> None:
    """After four trials with scores 0 to 3: reduction 2 keeps the better half, 4 the best quarter."""
    cfg = experiment(scheduler="asha", grace_epochs=grace, reduction=reduction)
    live = Live(scheduler(cfg, sign=sign), cfg, sign)
    assert [live.whole(f"trial{value}", 9 * [sign * float(value)]) for value in range(4)] == 4 * [None]
    assert live.whole("weak", 9 * [sign * score]) == stopped


scores = st.lists(st.floats(0, 1), min_size=9, max_size=9)


@settings(deadline=None)
@given(
    st.lists(scores, min_size=1, max_size=8),
    st.integers(2, 9),
    st.integers(1, 12),
    st.integers(2, 4),
)
def test_asha_stops_no_trial_in_its_grace_nor_after_its_last_epoch(
    found: list[list[float]], epochs: int, grace: int, reduction: int
) -> None:
    cfg = experiment(epochs, scheduler="asha", grace_epochs=grace, reduction=reduction)
    live = Live(scheduler(cfg), cfg)
    ends = [live.whole(str(number), values[:epochs]) for number, values in enumerate(found)]
    assert ends[0] is None, "the first one has nobody to be compared with"
    assert all(end is None or min(grace, epochs - 1) <= end < epochs for end in ends)


def test_asha_stops_no_trial_of_one_epoch() -> None:
    cfg = experiment(1, scheduler="asha")
    live = Live(scheduler(cfg), cfg)
    assert [live.whole(str(number), [value]) for number, value in enumerate((0.9, 0.8, 0.1))] == 3 * [None]


def test_asha_stops_no_trial_that_a_restart_has_left_only_its_last_epoch() -> None:
    cfg = experiment(scheduler="asha")
    live = Live(scheduler(cfg, [curve_of(9 * [value]) for value in (0.7, 0.8, 0.9)]), cfg)
    assert live.whole("interrupted", [0.1], first=9) is None


def test_asha_takes_a_past_trial_whose_first_row_was_lost() -> None:
    cfg = experiment(scheduler="asha")
    past = Curve(tuple({"epoch": float(epoch), "val/m": 0.5} for epoch in range(2, 10)), 8)
    assert Live(scheduler(cfg, [past]), cfg).whole("next", 9 * [0.6]) is None


@pytest.mark.parametrize("restarted", [False, True])
def test_asha_compares_with_trials_that_diverged_without_a_warning(restarted: bool) -> None:
    cfg = experiment(scheduler="asha")
    nothing = 9 * [math.nan]
    live = Live(scheduler(cfg, [curve_of(nothing)] if restarted else []), cfg)
    if not restarted:
        for epoch, trial in enumerate(9 * [live.add("diverged")], 1):
            live.report(trial, epoch, -math.inf)
    assert live.whole("good", 9 * [0.8]) is None


def run_side_by_side(live: Live, found: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    """All trials at once, epoch by epoch; returns what each of them came to."""
    trials = {live.add(str(number)): values[: live.epochs] for number, values in enumerate(found)}
    done = dict.fromkeys(trials, 0)
    going = set(trials)
    for epoch in range(1, live.epochs + 1):
        for trial, values in trials.items():
            if trial in going:
                done[trial] = epoch
                if not live.report(trial, epoch, values[epoch - 1]):
                    going.discard(trial)
    return [values[: done[trial]] for trial, values in trials.items()]


@pytest.mark.parametrize("rule", ["asha", "median"])
@settings(deadline=None)
@given(
    found=st.lists(scores, max_size=7),
    newcomers=st.lists(scores, min_size=1, max_size=3),
    epochs=st.integers(2, 9),
    grace=st.integers(1, 5),
    sign=st.sampled_from([1, -1]),
)
def test_a_scheduler_after_a_restart_decides_as_the_one_that_saw_it_all(
    rule: str, found: list[list[float]], newcomers: list[list[float]], epochs: int, grace: int, sign: int
) -> None:
    cfg = experiment(epochs, scheduler=rule, grace_epochs=grace)
    live = Live(scheduler(cfg, sign=sign), cfg, sign)
    past = run_side_by_side(live, found)
    again = Live(scheduler(cfg, [curve_of(values) for values in past], sign=sign), cfg, sign)
    for number, values in enumerate(newcomers):
        name = f"newcomer {number}"
        assert again.whole(name, values[:epochs]) == live.whole(name, values[:epochs])


def test_asha_decides_the_same_when_trials_have_ended_in_good_order_before() -> None:
    cfg = experiment(scheduler="asha", grace_epochs=3)
    live = Live(scheduler(cfg), cfg)
    for value in (0.5, 0.7, 0.9):
        assert live.whole(str(value), 9 * [value]) is None
        live.end(Running(str(value)), 9)
    again = Live(scheduler(cfg, [curve_of(9 * [value]) for value in (0.5, 0.7, 0.9)]), cfg)
    for value in (0.6, 0.8, 0.85):
        assert live.whole(f"new {value}", 9 * [value]) == again.whole(f"new {value}", 9 * [value])


@pytest.mark.parametrize(("grace", "stopped"), [(1, 1), (4, 4), (7, 7)])
def test_the_median_rule_stops_what_is_below_the_middle_of_three_others(grace: int, stopped: int) -> None:
    cfg = experiment(scheduler="median", grace_epochs=grace)
    live = Live(scheduler(cfg), cfg)
    assert [live.whole(str(value), 9 * [value]) for value in (0.5, 0.6, 0.7)] == 3 * [None], "too few to judge by"
    assert live.whole("weak", 9 * [0.55]) == stopped
    assert live.whole("good", 9 * [0.65]) is None


def test_the_median_rule_stops_no_trial_after_its_last_epoch() -> None:
    cfg = experiment(scheduler="median")
    live = Live(scheduler(cfg, [curve_of([*(8 * [0.2]), 9.0]) for _ in range(3)]), cfg)
    assert live.whole("late", 9 * [0.3]) is None


def test_the_median_rule_passes_over_trials_that_diverged_and_stops_them() -> None:
    cfg = experiment(scheduler="median", grace_epochs=2)
    live = Live(scheduler(cfg, [curve_of(9 * [math.nan]), *(curve_of(9 * [0.5]) for _ in range(3))]), cfg)
    assert live.whole("good", 9 * [0.6]) is None
    trial = live.add("diverging")
    assert live.report(trial, 1, -math.inf)
    assert not live.report(trial, 2, -math.inf)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(2, 6))
def test_every_scheduler_can_be_made_for_any_length(epochs: int, grace: int, reduction: int) -> None:
    for name in ("asha", "median", "hyperband", "pbt", "none"):
        cfg = experiment(epochs, scheduler=name, grace_epochs=grace, reduction=reduction)
        assert isinstance(scheduler(cfg), TrialScheduler)


def test_hyperband_takes_trials_and_stops_none_before_it_has_compared_them() -> None:
    cfg = experiment(scheduler="hyperband")
    rule = scheduler(cfg)
    assert isinstance(rule, HyperBandScheduler)
    trial = Running("one")
    rule.on_trial_add(None, trial)
    assert rule.on_trial_result(None, trial, {"epoch": 1, "score": 0.1}) == TrialScheduler.CONTINUE


def test_a_bracket_of_hyperband_can_be_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray leaves the mark set after a halving, and then passes over the bracket when its last running trial fails."""

    def halve(_rule: Any, _controller: Any, bracket: Any) -> str:
        bracket.is_being_processed = True
        return str(TrialScheduler.CONTINUE)

    monkeypatch.setattr(HyperBandScheduler, "_process_bracket", halve)
    bracket = SimpleNamespace(is_being_processed=False)
    assert scheduler(experiment(scheduler="hyperband"))._process_bracket(None, bracket) == TrialScheduler.CONTINUE
    assert not bracket.is_being_processed


def test_without_a_scheduler_nothing_is_stopped() -> None:
    cfg = experiment(scheduler="none")
    rule = scheduler(cfg, [curve_of(9 * [0.9])])
    assert type(rule) is FIFOScheduler
    live = Live(rule, cfg)
    assert [live.whole(str(value), 9 * [value]) for value in (0.9, 0.5, 0.1)] == 3 * [None]


# Populations


class Member:
    """A trial of a population as Ray Tune's controller holds it."""

    def __init__(self, name: str, configuration: dict[str, Any]) -> None:
        self.trial_id, self.config, self.status, self.experiment_tag = name, configuration, "RUNNING", ""
        self.evaluated_params: dict[str, Any] = {}
        keeping = SimpleNamespace(num_to_keep=4)
        self.run_metadata = SimpleNamespace(
            checkpoint_manager=SimpleNamespace(checkpoint_config=keeping, _latest_checkpoint_result=None)
        )

    def is_finished(self) -> bool:
        return False

    def set_experiment_tag(self, tag: str) -> None:
        self.experiment_tag = tag

    def set_config(self, configuration: dict[str, Any]) -> None:
        self.config = configuration

    @property
    def checkpoint(self) -> Any:
        """What it goes on from."""
        found = self.run_metadata.checkpoint_manager._latest_checkpoint_result
        return found and found.checkpoint


class Controller:
    """As much of Ray Tune's as a population needs."""

    search_alg = None

    def __init__(self, members: list[Member]) -> None:
        self.members = members

    def get_trials(self) -> list[Member]:
        return self.members

    def _schedule_trial_save(self, trial: Member, result: Any) -> str:
        return f"{trial.trial_id} at {result['epoch']}"

    def pause_trial(self, trial: Member, should_checkpoint: bool) -> None:
        assert not should_checkpoint
        trial.status = "PAUSED"


def population(epochs: int, count: int = 4, space: Space = SPACE) -> tuple[Any, Controller]:
    rule = scheduler(experiment(epochs, scheduler="pbt", trials=count, grace_epochs=2), space=space)
    points = [draw(space, Chance(0, index)).settings for index in range(count)]
    members = [Member(str(index), {"index": index, "settings": point}) for index, point in enumerate(points)]
    controller = Controller(members)
    for member in members:
        rule.on_trial_add(controller, member)
    return rule, controller


def epoch_of(rule: Any, controller: Controller, epoch: int) -> dict[str, str]:
    """All members report this epoch, the best one first; member 0 is the weakest."""
    said = {}
    for member in reversed(controller.members):
        member.status = "RUNNING"
        score = 0.1 * int(member.trial_id)
        said[member.trial_id] = rule.on_trial_result(controller, member, {"epoch": epoch, "score": score})
    return said


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_weakest_member_goes_on_from_a_stronger_one_with_changed_settings(count: int) -> None:
    rule, controller = population(6, count)
    weakest, strongest = controller.members[0], controller.members[-1]
    before = copy.deepcopy(strongest.config)
    for epoch in (1, 2, 3):
        epoch_of(rule, controller, epoch)
        assert weakest.checkpoint is None, "none has looked at another that has a checkpoint"
    said = epoch_of(rule, controller, 4)
    assert weakest.checkpoint == f"{strongest.trial_id} at 4"
    assert weakest.config["index"] == before["index"]
    assert weakest.config["settings"] != before["settings"]
    assert 1e-3 <= weakest.config["settings"]["optimizer.lr"] <= 1e-1
    assert said["0"] == TrialScheduler.NOOP
    assert strongest.config == before
    assert strongest.checkpoint is None


@pytest.mark.parametrize("epochs", [4, 6])
def test_a_member_that_has_done_its_last_epoch_keeps_its_weights(epochs: int) -> None:
    rule, controller = population(epochs)
    for epoch in range(1, epochs):
        epoch_of(rule, controller, epoch)
    before = [(copy.deepcopy(member.config), member.checkpoint) for member in controller.members]
    for _ in range(2):
        assert set(epoch_of(rule, controller, epochs).values()) == {TrialScheduler.CONTINUE}
    assert [(member.config, member.checkpoint) for member in controller.members] == before


MUTABLE: Space = {
    "optimizer.lr": Range(1e-3, 1e-1, log=True),
    "optimizer.momentum": Range(0.0, 0.9),
    "augment.magnitude": Range(1, 9, whole=True),
    "augment.count": Range(1, 16, whole=True, log=True),
    "optimizer.betas": Choice(("a", "b", "c"), ([0.9, 0.999], [0.8, 0.99], [0.5, 0.9])),
    "train.clip_norm": Choice(("None", "1"), (None, 1.0)),
}


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000))
def test_changed_settings_stay_in_their_ranges_and_all_of_them_change(number: int) -> None:
    rule = scheduler(experiment(scheduler="pbt"), space=MUTABLE)
    now = {"index": 3, "settings": draw(MUTABLE, Chance(0, number)).settings}
    first = copy.deepcopy(now)
    seen: dict[str, set[str]] = {key: set() for key in MUTABLE}
    for _ in range(60):
        before = copy.deepcopy(now)
        fresh, _operations = rule._get_new_config(None, SimpleNamespace(config=now))
        assert now == before
        assert fresh["index"] == 3
        assert fresh["settings"].keys() == MUTABLE.keys()
        for key, part in MUTABLE.items():
            value = fresh["settings"][key]
            seen[key].add(str(value))
            if isinstance(part, Choice):
                assert value in part.options
            else:
                assert type(value) is (int if part.whole else float)
                assert part.low <= value <= part.high
        now = fresh
    assert all(len(found) > 1 for found in seen.values())
    assert first["settings"].keys() == MUTABLE.keys()


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("network.dropout", "scheduler pbt changes settings of a running training"),
        ("network", "scheduler pbt changes settings of a running training"),
        ("train.batch_size", "scheduler pbt changes settings of a running training"),
        ("optimizer.name", "scheduler pbt changes settings of a running training"),
        ("seed", "scheduler pbt changes settings of a running training"),
    ],
)
def test_a_population_cannot_change_what_is_fixed_when_a_training_begins(key: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_population({key: Range(0.0, 1.0)})
    (line,) = caught.value.mistakes
    assert line.startswith(f"tune.space.{key}: {reason}")


def test_a_population_takes_no_conditional_options_and_says_all_that_is_wrong() -> None:
    check_population(MUTABLE)
    plain = Choice(("none", "some"), (None, {"p": 0.5}))
    check_population({"augment.flip": plain})
    conditional = Choice(("none", "some"), (None, {"p": Range(0.0, 1.0)}))
    with pytest.raises(ConfigError) as caught:
        check_population({"augment.flip": conditional, **MUTABLE, "network.dropout": Range(0.0, 1.0)})
    first, second = caught.value.mistakes
    assert first == "tune.space.augment.flip: scheduler pbt takes options without entries of their own"
    assert second.startswith("tune.space.network.dropout: ")
