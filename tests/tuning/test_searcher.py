"""Who proposes settings: what is planned, what a restart runs first, when it is over, and what Tune is told."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from ray import cloudpickle
from ray.tune.search import Searcher
from ray.tune.utils import flatten_dict

from medray.config import ConfigError, Experiment
from medray.tuning import trials as records
from medray.tuning.parse import parse
from medray.tuning.searcher import Proposals, StudySearcher, baseline, planned, point_of
from medray.tuning.space import Chance, Drawn, draw
from medray.tuning.tpe import Memory
from medray.tuning.trials import Trial

LR = {"optimizer.lr": {"loguniform": [1e-3, 1e-1]}}
GRID = {
    "optimizer.name": {"choice": ["sgd", "adam"]},
    "network": {"choice": [{"name": "resnet"}, {"name": "plain", "norm": {"choice": ["none", "batch"]}}]},
}


def experiment(space: dict[str, Any] | None = None, **tune: Any) -> Experiment:
    return tiny(Path("images"), tune={"space": space or LR, **tune})


def plan(cfg: Experiment) -> list[Drawn] | None:
    return planned(cfg, parse(cfg))


def proposals(cfg: Experiment, folder: Path, **state: Any) -> Proposals:
    """The proposals of a start, from what lies in the study's folder."""
    space = parse(cfg)
    trials = records.load_all(folder)
    waiting = [index for index, trial in trials.items() if not trial.ended]
    return Proposals(cfg, space, folder, trials, points=planned(cfg, space), waiting=waiting, **state)


RESTARTED = experiment(trials=8)
RESTARTED_SPACE = parse(RESTARTED)
RESTARTED_POINTS = planned(RESTARTED, RESTARTED_SPACE) or []


def restarted(folder: Path) -> Proposals:
    """Of a search of eight trials whose points are known."""
    trials = records.load_all(folder)
    waiting = [index for index, trial in trials.items() if not trial.ended]
    return Proposals(RESTARTED, RESTARTED_SPACE, folder, trials, points=RESTARTED_POINTS, waiting=waiting)


def all_of(found: Proposals) -> list[Trial]:
    return list(iter(found.next, None))


def end(folder: Path, index: int, state: Any = "finished") -> None:
    trial = records.load(folder, index)
    records.save(folder, Trial(index, trial.settings, trial.choices, state))


# What is planned


def test_a_random_search_is_planned_from_its_seed_alone() -> None:
    first, again, other = (plan(experiment(trials=5, seed=seed)) for seed in (3, 3, 4))
    assert first is not None
    assert other is not None
    assert first == again
    assert len(first) == 5
    assert all(one != two for one, two in zip(first[1:], other[1:], strict=True))


def test_a_longer_random_search_begins_as_the_shorter_one() -> None:
    longer, shorter = plan(experiment(trials=9)), plan(experiment(trials=4))
    assert longer is not None
    assert longer[:4] == shorter


@pytest.mark.parametrize("searcher", ["random", "grid"])
def test_the_first_trial_of_a_search_is_the_experiment_as_it_is_but_not_of_a_grid(searcher: str) -> None:
    points = plan(experiment(GRID, searcher=searcher))
    assert points is not None
    assert [point.settings == {} for point in points] == [searcher == "random"] + (len(points) - 1) * [False]


def test_without_a_baseline_the_first_trial_is_drawn_too() -> None:
    cfg = experiment(trials=3, baseline=False)
    space = parse(cfg)
    assert planned(cfg, space) == [draw(space, Chance(0, index)) for index in range(3)]
    assert point_of(cfg, space, []) == draw(space, Chance(0, 0))


def test_the_baseline_knows_its_decisions_where_it_lies_in_the_space() -> None:
    inside = experiment(LR)
    assert baseline(inside, parse(inside)) == Drawn({}, {"optimizer.lr": 0.01})
    outside = experiment({"optimizer.lr": {"uniform": [0.1, 0.2]}})
    assert baseline(outside, parse(outside)) == Drawn({}, {})


@pytest.mark.parametrize("first", [True, False])
def test_a_random_search_draws_nothing_twice_and_ends_with_a_small_space(first: bool) -> None:
    points = plan(experiment({"optimizer.name": {"choice": ["sgd", "adam", "adamw"]}}, trials=9, baseline=first))
    assert points is not None
    assert len(points) == 3
    assert {point.choices["optimizer.name"] for point in points} == {"sgd", "adam", "adamw"}
    assert (points[0].settings == {}) == first


def test_a_search_by_time_ends_with_a_small_space_too_and_after_a_restart(tmp_path: Path) -> None:
    cfg = experiment({"optimizer.name": {"choice": ["sgd", "adam", "adamw"]}}, minutes=1)
    found = proposals(cfg, tmp_path, seconds=60.0)
    assert found.next() is not None
    again = proposals(cfg, tmp_path, seconds=60.0)
    again.waiting.clear()
    assert [trial.index for trial in all_of(again)] == [1, 2]
    assert {trial.choices["optimizer.name"] for trial in records.load_all(tmp_path).values()} == {
        "sgd",
        "adam",
        "adamw",
    }


def test_a_search_by_time_that_has_nothing_left_to_draw_is_over(tmp_path: Path) -> None:
    cfg = experiment({"optimizer.name": {"choice": ["sgd", "adamw"]}}, minutes=1)
    found = proposals(cfg, tmp_path, seconds=60.0)
    assert len(all_of(found)) == 2
    assert found.over()


def test_a_population_begins_with_the_experiment_s_own_values_and_all_have_some() -> None:
    """What has no value cannot be changed."""
    inside = plan(experiment(LR, scheduler="pbt", trials=3))
    assert inside is not None
    assert inside[0].settings == {"optimizer.lr": 0.01}
    outside = plan(experiment({"optimizer.lr": {"uniform": [0.1, 0.2]}}, scheduler="pbt", trials=3))
    assert outside is not None
    assert len(outside) == 3
    assert all(0.1 <= point.settings["optimizer.lr"] <= 0.2 for point in outside)


def test_a_grid_is_planned_whole() -> None:
    points = plan(experiment(GRID, searcher="grid"))
    assert points is not None
    assert len(points) == 6
    assert len({str(point.settings) for point in points}) == 6


@pytest.mark.parametrize("trials", [6, 100])
def test_a_grid_that_fits_into_the_number_of_trials_is_taken(trials: int) -> None:
    points = plan(experiment(GRID, searcher="grid", trials=trials))
    assert points is not None
    assert len(points) == 6


def test_a_grid_larger_than_the_number_of_trials_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tune\.trials: the grid has more than 5 points; .*searcher=random"):
        plan(experiment(GRID, searcher="grid", trials=5))


def test_a_grid_without_end_is_refused_before_it_is_walked() -> None:
    began = time.monotonic()
    with pytest.raises(ConfigError, match="more than 1000 points; give fewer options"):
        plan(experiment({"seed": {"randint": [0, 2**40]}}, searcher="grid"))
    assert time.monotonic() - began < 5


def test_a_grid_of_real_numbers_is_refused() -> None:
    with pytest.raises(ConfigError, match="give its values with choice"):
        plan(experiment(LR, searcher="grid"))


@pytest.mark.parametrize("tune", [{"searcher": "tpe"}, {"searcher": "tpe", "minutes": 1}, {"minutes": 1}], ids=str)
def test_what_depends_on_results_or_on_time_is_not_planned(tune: dict[str, Any]) -> None:
    assert plan(experiment(**tune)) is None


def test_a_number_of_trials_is_planned_whatever_time_there_is() -> None:
    points = plan(experiment(minutes=1, trials=4))
    assert points is not None
    assert len(points) == 4


def test_settings_that_do_not_go_together_are_refused_with_their_trial() -> None:
    """nesterov is allowed with sgd and a momentum alone, which no single end of a range shows."""
    space = {"optimizer.nesterov": {"choice": [False, True]}, "optimizer.momentum": {"choice": [0.9, 0.0]}}
    cfg = tiny(Path("images"), optimizer={"name": "sgd"}, tune={"space": space, "searcher": "grid"})
    with pytest.raises(ConfigError) as caught:
        plan(cfg)
    (line,) = caught.value.mistakes
    assert line.startswith("tune.space: trial 3 would be {'optimizer.nesterov': True, 'optimizer.momentum': 0.0}: ")
    assert "nesterov needs name: sgd and a momentum above 0" in line


# What is run


def test_trials_are_on_disk_before_they_are_handed_out(tmp_path: Path) -> None:
    found = proposals(experiment(trials=3), tmp_path)
    for index in range(3):
        trial = found.next()
        assert trial is not None
        assert trial.index == index
        assert records.load(tmp_path, index) == trial == found.trials[index]
        assert trial.state == "waiting"
    assert found.next() is None
    assert found.over()


@pytest.mark.parametrize(("tune", "count"), [({"trials": 3}, 3), ({}, 12), ({"minutes": 1}, None)], ids=str)
def test_how_many_trials_there_will_be(tmp_path: Path, tune: dict[str, Any], count: int | None) -> None:
    assert proposals(experiment(**tune), tmp_path).count() == count


def test_a_grid_ends_after_its_points(tmp_path: Path) -> None:
    found = proposals(experiment(GRID, searcher="grid"), tmp_path)
    assert found.count() == 6
    assert len(all_of(found)) == 6


@settings(deadline=None, max_examples=40)
@given(done=st.lists(st.sampled_from(["finished", "stopped", "failed", "running", "waiting"]), max_size=7))
def test_a_restart_runs_first_what_was_interrupted_and_then_the_rest(
    tmp_path_factory: pytest.TempPathFactory, done: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("study")
    first = restarted(folder)
    for state in done:
        trial = first.next()
        assert trial is not None
        end(folder, trial.index, state)
    interrupted = [index for index, state in enumerate(done) if state in ("running", "waiting")]
    started = all_of(restarted(folder))
    assert [trial.index for trial in started] == [*interrupted, *range(len(done), 8)]
    assert [trial.settings for trial in started] == [RESTARTED_POINTS[trial.index].settings for trial in started]
    assert list(records.load_all(folder)) == list(range(8))


def test_an_interrupted_trial_goes_on_with_the_settings_that_it_has(tmp_path: Path) -> None:
    """Those of a population change on the way."""
    mine = Trial(0, {"optimizer.lr": 0.077}, {"optimizer.lr": 0.02}, "running")
    records.save(tmp_path, mine)
    assert proposals(experiment(trials=2), tmp_path).next() == mine


def test_no_trial_starts_after_its_time_but_what_waits_still_runs(tmp_path: Path) -> None:
    cfg = experiment(minutes=1)
    records.save(tmp_path, Trial(0, {}, {}, "finished"))
    records.save(tmp_path, Trial(1, {"optimizer.lr": 0.02}, {"optimizer.lr": 0.02}, "running"))
    late = proposals(cfg, tmp_path, seconds=-1.0)
    assert not late.over()
    assert [trial.index for trial in all_of(late)] == [1]
    assert late.over()
    assert list(records.load_all(tmp_path)) == [0, 1]


def test_a_search_starts_one_trial_however_little_time_there_is(tmp_path: Path) -> None:
    found = proposals(experiment(minutes=1), tmp_path, seconds=-1.0)
    assert [trial.index for trial in all_of(found)] == [0]


def test_trials_start_as_long_as_there_is_time(tmp_path: Path) -> None:
    found = proposals(experiment(minutes=1), tmp_path, seconds=60.0)
    assert [found.next() is not None for _ in range(30)] == 30 * [True]
    found.began -= 61
    assert found.over()
    assert found.next() is None


def test_the_number_of_trials_ends_a_search_that_has_time_left(tmp_path: Path) -> None:
    found = proposals(experiment(minutes=1, trials=2), tmp_path, seconds=60.0)
    assert len(all_of(found)) == 2


def test_a_search_by_time_draws_the_same_points_as_one_by_count(tmp_path: Path) -> None:
    by_time = proposals(experiment(minutes=1), tmp_path, seconds=60.0)
    found = [by_time.next() for _ in range(4)]
    whole = plan(experiment(trials=4))
    assert whole is not None
    assert [trial.settings for trial in found if trial] == [point.settings for point in whole]


# What Ray Tune hears


def test_tune_hears_of_each_trial_and_then_that_it_is_over(tmp_path: Path) -> None:
    found = proposals(experiment(trials=2), tmp_path)
    searcher = StudySearcher(found)
    said = [searcher.suggest(f"id{index}") for index in range(4)]
    assert said[:2] == [{"index": index, "settings": found.trials[index].settings} for index in range(2)]
    assert said[2:] == [Searcher.FINISHED, Searcher.FINISHED]
    assert found.trials[0].settings == {}


def test_the_searcher_pickles_without_what_it_holds(tmp_path: Path) -> None:
    searcher = StudySearcher(proposals(experiment(trials=2), tmp_path))
    searcher.suggest("one")
    copy = cloudpickle.loads(cloudpickle.dumps(searcher))
    assert type(copy) is StudySearcher
    assert vars(copy) == {}
    searcher.save(str(tmp_path / "checkpoint"))
    assert not (tmp_path / "checkpoint").exists()


def test_results_of_a_random_search_are_nobody_s_business(tmp_path: Path) -> None:
    searcher = StudySearcher(proposals(experiment(trials=2), tmp_path))
    searcher.suggest("one")
    searcher.on_trial_result("one", {"epoch": 1, "score": 0.5})
    searcher.on_trial_complete("one", {"epoch": 2, "score": 0.5})
    assert searcher.suggest("two")["index"] == 1


class Told:
    """A memory that notes what it is told."""

    def __init__(self) -> None:
        self.epochs: list[tuple[int, int, float]] = []
        self.ends: list[tuple[int, Any, bool]] = []

    def ask(self, index: int, choices: Any = None) -> Drawn:
        return Drawn({"optimizer.lr": float(index)}, choices or {"optimizer.lr": float(index)})

    def epoch(self, index: int, epoch: int, score: float) -> None:
        self.epochs.append((index, epoch, score))

    def tell(self, index: int, measured: Any, failed: bool) -> None:
        self.ends.append((index, measured, failed))


def told_searcher(folder: Path) -> tuple[StudySearcher, Told]:
    memory = Told()
    return StudySearcher(proposals(experiment(searcher="tpe", trials=4), folder, memory=memory)), memory


def reported(epoch: int, score: float, **more: Any) -> dict[str, Any]:
    """A result as Ray Tune's controller hands it to the searcher."""
    found: dict[str, Any] = flatten_dict({"epoch": epoch, "score": score, "row": {"epoch": epoch}, **more})
    return found


def test_tpe_hears_of_epochs_and_of_trials_that_were_stopped_or_failed(tmp_path: Path) -> None:
    searcher, memory = told_searcher(tmp_path)
    for name in ("first", "second"):
        searcher.suggest(name)
    searcher.on_trial_result("second", reported(1, 0.4))
    searcher.on_trial_result("second", reported(2, 0.5))
    searcher.on_trial_complete("second", reported(3, 0.5))
    searcher.on_trial_complete("first", error=True)
    assert memory.epochs == [(1, 1, 0.4), (1, 2, 0.5)]
    assert memory.ends == [(1, None, False), (0, None, True)]


def test_tpe_hears_what_a_finished_trial_measured(tmp_path: Path) -> None:
    searcher, memory = told_searcher(tmp_path)
    searcher.suggest("first")
    measured = {"val/auroc": 0.8, "val/loss": None, "best_epoch": 2}
    searcher.on_trial_result("first", reported(2, 0.9))
    last = reported(2, 0.9, measured=measured)
    searcher.on_trial_result("first", last)
    searcher.on_trial_complete("first", {**last, "done": True})
    assert memory.epochs == [(0, 2, 0.9)]
    ((index, found, failed),) = memory.ends
    assert (index, failed) == (0, False)
    assert found is not None
    assert found["val/auroc"] == 0.8


def test_tpe_is_asked_for_all_but_the_baseline_and_told_where_that_lies(tmp_path: Path) -> None:
    asked: list[tuple[int, Any]] = []

    class Asked(Told):
        def ask(self, index: int, choices: Any = None) -> Drawn:
            asked.append((index, choices))
            return super().ask(index, choices)

    inside = proposals(experiment(searcher="tpe", trials=3), tmp_path / "inside", memory=Asked())
    assert [trial.settings for trial in all_of(inside)] == [{}, {"optimizer.lr": 1.0}, {"optimizer.lr": 2.0}]
    assert asked == [(0, {"optimizer.lr": 0.01}), (1, None), (2, None)]
    asked.clear()
    outside = experiment({"optimizer.lr": {"uniform": [0.1, 0.2]}}, searcher="tpe", trials=2)
    all_of(proposals(outside, tmp_path / "outside", memory=Asked()))
    assert asked == [(1, None)]
    asked.clear()
    without = experiment(searcher="tpe", trials=2, baseline=False)
    all_of(proposals(without, tmp_path / "without", memory=Asked()))
    assert asked == [(0, None), (1, None)]


def test_a_search_by_tpe_ends_after_its_trials_and_begins_with_the_baseline(tmp_path: Path) -> None:
    cfg = experiment(searcher="tpe", trials=4)
    memory = Memory(tmp_path, parse(cfg), {"val/auroc": 1}, 0, set())
    found = all_of(proposals(cfg, tmp_path, memory=memory))
    assert [trial.index for trial in found] == [0, 1, 2, 3]
    assert [trial.settings == {} for trial in found] == [True, False, False, False]
    assert found[0].choices == {"optimizer.lr": 0.01}
