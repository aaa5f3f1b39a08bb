"""What the driver hears from Ray Tune: records on disk, a line per event, and the table on a terminal."""

from __future__ import annotations

import io
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from ray import cloudpickle
from rich.console import Console

from medray.config import Experiment
from medray.tuning import trials as records
from medray.tuning.searcher import Proposals
from medray.tuning.space import Drawn, Range, Space
from medray.tuning.trials import ERROR, Curve, Trial, folder_of, save
from medray.tuning.watch import DIED, SHOWN, Progress, Standing, Watch

SPACE: Space = {"optimizer.lr": Range(1e-3, 1.0)}
EXPERIMENT: Experiment = tiny(Path("images"), train={"epochs": 5})


class Reported:
    """A trial as Ray Tune's callbacks see it: its name is its number in the study."""

    def __init__(self, index: int, chosen: dict[str, Any], error: str | None = None) -> None:
        self.index, self.error = index, error
        self.config = {"index": index, "settings": chosen}

    def __str__(self) -> str:
        return f"{self.index:04d}"

    def get_error(self) -> str | None:
        return self.error


class Study:
    """A study of six trials, of which so many are there, and its watch."""

    def __init__(self, folder: Path, count: int, sign: int = 1, monitor: str = "val/auroc") -> None:
        self.folder, self.changed, self.sign = folder, set[int](), sign
        points = [Drawn({"optimizer.lr": 0.1 * (index + 1)}, {}) for index in range(6)]
        self.trials = {index: Trial(index, points[index].settings, {}) for index in range(count)}
        for trial in self.trials.values():
            save(folder, trial)
        proposals = Proposals(EXPERIMENT, SPACE, folder, self.trials, points=points)
        self.progress = Progress(EXPERIMENT, monitor, sign, proposals)
        self.watch = Watch(folder, self.progress, self.changed)
        self.seen = {index: Reported(index, trial.settings) for index, trial in self.trials.items()}

    def start(self, index: int) -> None:
        self.watch.on_trial_start(iteration=1, trials=[], trial=self.seen[index])

    def epoch(self, index: int, epoch: int, value: float, **more: Any) -> None:
        result = {"epoch": epoch, "score": self.sign * value, "row": {"epoch": epoch}, **more}
        self.watch.on_trial_result(iteration=1, trials=[], trial=self.seen[index], result=result)

    def end(self, index: int, epoch: int = 5, measured: dict[str, float | None] | None = None) -> None:
        """The trial is stopped, or finished with these figures."""
        if measured is not None:
            self.epoch(index, epoch, 0.0, measured=measured)
        self.watch.on_trial_complete(iteration=1, trials=[], trial=self.seen[index])

    def fail(self, index: int, error: str | None = None) -> None:
        self.seen[index].error = error
        self.watch.on_trial_error(iteration=1, trials=[], trial=self.seen[index])

    def record(self, index: int) -> Trial:
        """What is on disk, which is what is in memory."""
        found = records.load(self.folder, index)
        assert found == self.trials[index]
        return found


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Any:
    """Lines on stderr since the last look; stdout belongs to the result."""

    def lines() -> list[str]:
        found = capsys.readouterr()
        assert found.out == ""
        return str(found.err).splitlines()

    return lines


# Events and records


def test_a_trial_starts_once(tmp_path: Path, said: Any) -> None:
    study = Study(tmp_path, 1)
    study.start(0)
    assert said() == ["trial   0  starts: optimizer.lr=0.1"]
    assert study.record(0).state == "running"
    assert study.changed == {0}
    study.changed.clear()
    study.start(0)
    assert (said(), study.changed) == ([], set()), "a pause is no news"


def test_a_trial_that_an_earlier_start_was_at_goes_on_without_a_word(tmp_path: Path, said: Any) -> None:
    study = Study(tmp_path, 1)
    study.trials[0] = Trial(0, study.trials[0].settings, {}, "running")
    study.start(0)
    assert said() == []


@pytest.mark.parametrize(("sign", "monitor"), [(1, "val/auroc"), (-1, "val/loss")])
def test_who_leads_is_said_when_it_changes(tmp_path: Path, said: Any, sign: int, monitor: str) -> None:
    study = Study(tmp_path, 3, sign, monitor)
    name = monitor.removeprefix("val/")
    first, better, best = (0.4, 0.6, 0.9) if sign > 0 else (0.9, 0.6, 0.4)
    study.epoch(0, 1, first)
    assert said() == [f"trial   0  leads with {name} {first:.4f} (epoch 1/5)"]
    study.epoch(0, 2, better)
    assert said() == [], "who leads already does not begin to"
    study.epoch(1, 1, first)
    study.epoch(1, 2, better)
    assert said() == [], "neither worse nor equal leads"
    study.epoch(1, 3, best)
    assert said() == [f"trial   1  leads with {name} {best:.4f} (epoch 3/5)"]
    assert study.progress.best() == (1, best)
    assert study.changed == {0, 1}


@pytest.mark.parametrize("sign", [1, -1])
def test_a_trial_whose_metric_is_undefined_does_not_lead(tmp_path: Path, said: Any, sign: int) -> None:
    study = Study(tmp_path, 1, sign)
    study.epoch(0, 1, -sign * math.inf)
    study.epoch(0, 2, -sign * math.inf)
    assert said() == []


def test_a_finished_trial_has_the_figures_of_its_weights(tmp_path: Path, said: Any) -> None:
    study = Study(tmp_path, 2)
    study.start(0)
    study.epoch(0, 1, 0.9)
    said()
    study.epoch(0, 5, 0.9, measured={"val/auroc": 0.85, "val/loss": None, "best_epoch": 1})
    assert study.record(0).state == "running"
    assert study.record(0).measured == {"val/auroc": 0.85, "best_epoch": 1}
    assert said() == []
    study.end(0)
    assert study.record(0).state == "finished"
    (line,) = said()
    assert line.startswith(
        "trial   0  finished: auroc 0.8500; 1 of 6 trials done, best auroc 0.8500 (trial 0), about 0:0"
    )
    assert line.endswith(" left")


def test_a_stopped_trial_keeps_its_best_epoch(tmp_path: Path, said: Any) -> None:
    study = Study(tmp_path, 2)
    study.start(0)
    study.epoch(0, 1, 0.3)
    study.epoch(0, 2, 0.4)
    said()
    study.end(0)
    assert (study.record(0).state, study.record(0).measured) == ("stopped", {})
    (line,) = said()
    assert line.startswith(
        "trial   0  stopped early after epoch 2: auroc 0.4000; "
        "1 of 6 trials done, 1 stopped, best auroc 0.4000 (trial 0), about "
    )


def test_a_failed_trial_says_why_by_its_own_word_else_by_ray_s(tmp_path: Path, said: Any) -> None:
    study = Study(tmp_path, 5)
    folder_of(tmp_path, 0).joinpath(ERROR).write_text("NonFiniteLoss: epoch 2", encoding="utf-8")
    study.fail(0, "Traceback\n  ray.exceptions.RayTaskError: something long")
    study.fail(1, "Traceback\n  File x\nRuntimeError: the worker has no such file\n\n")
    study.fail(2, "ray.exceptions.ActorDiedError: The actor died unexpectedly\nmore of it")
    study.fail(3, "ray.exceptions.OutOfMemoryError: Task was killed\nmore of it")
    study.fail(4, None)
    reasons = ["NonFiniteLoss: epoch 2", "RuntimeError: the worker has no such file", DIED, DIED, DIED]
    assert said() == [f"trial   {index}  failed: {reason}" for index, reason in enumerate(reasons)]
    assert [(study.record(index).state, study.record(index).error) for index in range(5)] == [
        ("failed", reason) for reason in reasons
    ]
    assert study.changed == {0, 1, 2, 3, 4}


def test_a_member_of_a_population_that_takes_over_another_has_new_settings_and_an_event(
    tmp_path: Path, said: Any
) -> None:
    study = Study(tmp_path, 3)
    for index in (1, 2):
        study.start(index)
        study.epoch(index, 2, 0.3 * index)
    said()
    study.seen[1].config = {"index": 2, "settings": {"optimizer.lr": 0.36}}
    study.start(1)
    assert said() == [], "it has been there all the time"
    assert study.record(1).settings == study.trials[1].settings != {"optimizer.lr": 0.36}
    study.epoch(1, 3, 0.7, inherited=2)
    assert study.record(1).settings == {"optimizer.lr": 0.36}
    event = "takes over trial 2's weights after epoch 2: optimizer.lr=0.36"
    assert said() == [f"trial   1  {event}", "trial   1  leads with auroc 0.7000 (epoch 3/5)"]
    assert study.record(1).events == (event,)
    study.epoch(1, 4, 0.7)
    assert study.record(1).events == (event,)
    study.epoch(1, 5, 0.6, inherited=0)
    assert len(study.record(1).events) == 2


def test_the_decisions_of_a_member_follow_its_settings(tmp_path: Path) -> None:
    study = Study(tmp_path, 2)
    study.trials[1] = Trial(1, {"optimizer.lr": 0.2}, {"optimizer.lr": 0.2})
    study.seen[1].config = {"index": 0, "settings": {"optimizer.lr": 0.36}}
    study.start(1)
    assert study.record(1).settings == {"optimizer.lr": 0.2}, "its weights are still its own"
    study.epoch(1, 4, 0.5, inherited=0)
    assert study.record(1).settings == {"optimizer.lr": 0.36}
    assert study.record(1).choices == {"optimizer.lr": 0.36}
    assert study.record(1).events == ("takes over trial 0's weights after epoch 3: optimizer.lr=0.36",)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["start", "epoch", "stop", "finish", "fail"])), max_size=20)
)
def test_the_disk_is_never_behind_what_is_known(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[int, str]]
) -> None:
    study = Study(tmp_path_factory.mktemp("study"), 4)
    expected = dict.fromkeys(range(4), "waiting")
    for index, event in events:
        if expected[index] in ("finished", "stopped", "failed"):
            continue
        study.changed.clear()
        match event:
            case "start":
                study.start(index)
                expected[index] = "running"
                continue
            case "epoch":
                study.epoch(index, 1, 0.5)
            case "stop":
                study.end(index)
                expected[index] = "stopped"
            case "finish":
                study.end(index, measured={"val/auroc": 0.5})
                expected[index] = "finished"
            case "fail":
                study.fail(index)
                expected[index] = "failed"
        assert study.changed == {index}
    assert {index: study.record(index).state for index in range(4)} == expected


def test_the_watch_pickles_without_what_it_holds(tmp_path: Path) -> None:
    copy = cloudpickle.loads(cloudpickle.dumps(Study(tmp_path, 2).watch))
    assert type(copy) is Watch
    assert vars(copy) == {}


# Where the study stands


def test_the_summary_counts_trials_and_says_how_long_the_rest_will_take(tmp_path: Path) -> None:
    study = Study(tmp_path, 5)
    progress = study.progress
    assert progress.summary() == "0 of 6 trials done"
    study.epoch(3, 1, 0.4)
    study.end(0, measured={"val/auroc": 0.8})
    study.end(1)
    study.fail(2)
    progress.began = time.monotonic() - 3 * 200
    assert progress.summary() == (
        "3 of 6 trials done, 1 stopped, 1 failed, best auroc 0.8000 (trial 0), about 10:00 left"
    )


def test_the_time_left_goes_by_the_trials_of_this_start(tmp_path: Path) -> None:
    study = Study(tmp_path, 4)
    for index in (0, 1):
        trial = Trial(index, {}, {}, "finished", measured={"val/auroc": 0.5 + 0.1 * index})
        study.trials[index] = trial
        study.progress.know(trial, Curve(({"epoch": 1.0, "val/auroc": 0.9},), 1))
    assert study.progress.summary() == "2 of 6 trials done, best auroc 0.6000 (trial 1)"
    study.end(2, measured={"val/auroc": 0.1})
    study.progress.began = time.monotonic() - 60
    assert study.progress.summary().endswith("about 3:00 left")


def test_a_study_that_time_alone_ends_has_no_number_of_trials(tmp_path: Path) -> None:
    study = Study(tmp_path, 2)
    timed = tiny(Path("images"), tune={"minutes": 5})
    study.progress.proposals = Proposals(timed, {}, tmp_path, study.trials)
    study.end(0, measured={"val/auroc": 0.8})
    assert study.progress.summary() == "1 trials done, best auroc 0.8000 (trial 0)"


def test_trials_of_an_earlier_start_are_known_with_their_epochs(tmp_path: Path) -> None:
    study = Study(tmp_path, 3)
    rows = ({"epoch": 1.0, "val/auroc": 0.9}, {"epoch": 2.0, "val/auroc": 0.7})
    study.progress.know(Trial(0, {}, {}, "running"), Curve(rows, 2))
    study.progress.know(Trial(1, {}, {}, "finished", measured={"val/auroc": 0.8}), Curve(rows, 2))
    study.progress.know(Trial(2, {}, {}, "waiting"), Curve())
    assert study.progress.standings[0] == Standing(2, 0.9)
    assert study.progress.standings[1] == Standing(2, 0.8)
    assert math.isnan(study.progress.standings[2].score)
    assert study.progress.done_before == 1
    assert study.progress.best() == (0, 0.9)


def test_a_trial_that_failed_is_not_the_best(tmp_path: Path) -> None:
    study = Study(tmp_path, 2)
    study.epoch(0, 1, 0.99)
    study.fail(0)
    study.end(1, measured={"val/auroc": 0.5})
    assert study.progress.best() == (1, 0.5)


# The table


def shown(progress: Progress, width: int = 100) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(progress.table())
    return str(console.file.getvalue()).rstrip("\n").split("\n")  # type: ignore[attr-defined]


def test_the_table_has_running_trials_first_and_then_the_best(tmp_path: Path) -> None:
    study = Study(tmp_path, 6)
    study.end(0, measured={"val/auroc": 0.5})
    study.end(1, measured={"val/auroc": 0.8})
    study.epoch(2, 2, 0.95)
    study.end(2)
    study.fail(3)
    study.start(4)
    study.epoch(4, 1, 0.25)
    lines = shown(study.progress)
    assert lines[0].startswith("4 of 6 trials done, 1 stopped, 1 failed, best auroc 0.9500 (trial 2), about 0:0")
    assert lines[1].split() == ["trial", "state", "epoch", "auroc", "settings"]
    assert [line.split() for line in lines[2:]] == [
        ["4", "running", "1/5", "0.2500", "optimizer.lr=0.5"],
        ["1", "finished", "5/5", "0.8000", "optimizer.lr=0.2"],
        ["0", "finished", "5/5", "0.5000", "optimizer.lr=0.1"],
        ["2", "stopped", "2/5", "0.9500", "optimizer.lr=0.3"],
        ["3", "failed", "0/5", "optimizer.lr=0.4"],
    ]


def test_the_table_of_a_study_that_has_not_begun_is_empty(tmp_path: Path) -> None:
    lines = shown(Study(tmp_path, 0).progress)
    assert lines[0] == "0 of 6 trials done"
    assert len(lines) == 2


def long_study(folder: Path) -> Study:
    """200 trials, better from one to the next; two of them are running."""
    study = Study(folder, 0)
    long = {"network": {"name": "plain", "widths": list(range(60))}, "optimizer.lr": 0.1}
    for index in range(200):
        study.trials[index] = Trial(index, long, {}, "running" if index % 100 == 99 else "finished")
        study.progress.standings[index] = Standing(5, index / 1000)
    return study


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_table_of_200_trials_with_long_settings_fits_on_a_terminal(tmp_path: Path, width: int) -> None:
    lines = shown(long_study(tmp_path).progress, width)
    assert all(len(line) <= width for line in lines)
    assert sum(bool(re.search(r"(running|finished|stopped) +\d/5 .* netw", line)) for line in lines) == SHOWN
    assert len(lines) <= SHOWN + 3


@pytest.mark.parametrize("width", [80, 200])
def test_long_settings_leave_room_for_what_stands_before_them(tmp_path: Path, width: int) -> None:
    rows = [line.split() for line in shown(long_study(tmp_path).progress, width) if "network=" in line]
    best = [99, 199, *range(198, 198 - (SHOWN - 2), -1)]
    states = ["running", "running", *(SHOWN - 2) * ["finished"]]
    assert [row[:4] for row in rows] == [
        [str(index), state, "5/5", f"{index / 1000:.4f}"] for index, state in zip(best, states, strict=True)
    ]


@pytest.mark.parametrize("value", ["/data/[old]/model", "/data/[/old]/model"])
def test_brackets_in_settings_are_shown_as_they_are(tmp_path: Path, value: str) -> None:
    study = Study(tmp_path, 0)
    study.trials[0] = Trial(0, {"network.weights": value}, {}, "running")
    assert value in "\n".join(shown(study.progress))


@pytest.mark.parametrize("where", ["trials", "standings"])
def test_a_trial_can_begin_while_the_table_is_drawn(tmp_path: Path, where: str) -> None:
    """The table is drawn in a thread of rich's."""
    study = Study(tmp_path, 2)

    class Interrupting:
        @property
        def state(self) -> str:
            study.trials[5] = Trial(5, {}, {})
            return "running"

        @property
        def score(self) -> float:
            study.progress.standings[5] = Standing()
            return 0.5

    held: Any = study.trials if where == "trials" else study.progress.standings
    held[0], held[1] = Interrupting(), Interrupting()
    assert study.progress.summary().startswith("0 of 6 trials done")


def test_nothing_but_events_is_written_where_there_is_no_terminal(tmp_path: Path, said: Any) -> None:
    study = Study(tmp_path, 1)
    study.progress.began = 0.0
    with study.progress.shown():
        study.start(0)
    assert said() == ["trial   0  starts: optimizer.lr=0.1"]
    assert study.progress.began > 0, "the time left goes by when the study began to run"
