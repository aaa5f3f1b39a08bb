"""The benchmarks that start commands: scaling, tune and start, each in its smallest size, and what they make of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from medray.benchmarks import commands, scaling, start, tune
from medray.benchmarks.commands import Command, CommandFailed
from medray.benchmarks.processes import family
from medray.benchmarks.report import Sheet

WAYS = (scaling.MEDRAY, scaling.INSIDE, scaling.PLAIN)


def test_a_command_gives_what_it_printed_and_takes_all_that_it_started_with_it(tmp_path: Path) -> None:
    code = "import subprocess, sys; subprocess.Popen(['sleep', '60']); print('{\"a\": 1}')"
    with Command([sys.executable, "-c", code], tmp_path / "log") as command:
        assert commands.result(command.end()) == {"a": 1}
        left = family(command._process.pid)
    assert not [one for one in family(left[0].pid if left else 0) if one.name == "sleep"]


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    with (
        Command([sys.executable, "-c", "raise SystemExit('no such network')"], tmp_path / "log") as command,
        pytest.raises(CommandFailed, match=r"exit code 1: no such network"),
    ):
        command.end()


def test_a_file_that_does_not_come_is_an_error_once_the_command_has_ended(tmp_path: Path) -> None:
    code = "import pathlib, time; time.sleep(0.2); pathlib.Path('runs/x').mkdir(parents=True); "
    code += "pathlib.Path('runs/x/journal').write_text('1')"
    words = ["sh", "-c", f'cd {tmp_path} && exec "$0" -c "$1"', sys.executable, code]
    with Command(words, tmp_path / "log") as command:
        assert command.until(tmp_path / "runs", "*/journal").read_text() == "1"
        with pytest.raises(CommandFailed, match=r"no no\.txt"):
            command.until(tmp_path / "no.txt")


def rates(speed: Callable[[str, int], float]) -> scaling.Rates:
    return {(way, count): [speed(way, count)] * 3 for way in WAYS for count in (1, 2)}


def test_efficiency_is_the_rate_of_many_over_that_of_as_many_alone() -> None:
    found = rates(lambda way, count: count * 100 * (0.9 if way == scaling.MEDRAY and count > 1 else 1))
    assert scaling.efficiency(found, scaling.PLAIN, 2) == [1, 1, 1]
    sheet = Sheet("scaling")
    scaling.tell(sheet, found, [1, 2])
    report = sheet.report()
    assert [row["efficiency"] for row in report.tables["Efficiency"]] == [1, 0.9, 1, 1, 1, 1]
    last = report.rows[-1]
    assert (last.what, last.ratio, last.note) == ("2 workers, efficiency against torchrun", 0.9, "-10.0 points")


def test_the_first_epoch_warms_up() -> None:
    assert scaling.steady([1.0, 5.0, 9.0, 6.0]) == 6.0
    assert scaling.steady([2.0]) == 2.0


def test_ways_take_turns_and_the_order_is_reversed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []

    def medray(self: scaling.Plan, workers: int, turn: int) -> float:  # noqa: ARG001
        calls.append((scaling.MEDRAY, workers))
        return 1.0

    def torchrun(self: scaling.Plan, way: str, workers: int, turn: int) -> float:  # noqa: ARG001
        calls.append((way, workers))
        return 1.0

    monkeypatch.setattr(scaling.Plan, "medray", medray)
    monkeypatch.setattr(scaling.Plan, "torchrun", torchrun)
    found = scaling.rounds(scaling.Plan(Path(), "plain", 1, 1, 1), [1, 2], 2, Sheet("scaling"))
    assert calls[:6] == [(way, count) for count in (1, 2) for way in WAYS] == calls[:5:-1]
    assert all(len(one) == 2 for one in found.values())


def test_a_search_is_compared_with_its_own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Any] = []

    def by_hand(*arguments: Any) -> float:
        trained.append(arguments[-1])
        return 100.0

    monkeypatch.setattr(tune.Plan, "draw", lambda *_: None)
    monkeypatch.setattr(tune.Plan, "search", lambda *given: (50.0, [{"optimizer.lr": 0.01 + given[-1]}]))
    monkeypatch.setattr(tune.Plan, "by_hand", by_hand)
    sheet = Sheet("tune")
    tune.measure(argparse.Namespace(quick=False, pairs=2, trials=8, epochs=22, concurrent=1), sheet)
    (row,) = sheet.report().rows
    assert (row.ours, row.peer, row.ratio) == (50.0, 100.0, 2.0)
    assert row.note.startswith("0.50 of the time by hand")
    assert trained == [[{"optimizer.lr": 0.01}], [{"optimizer.lr": 1.01}]]
    assert tune._words({"optimizer.lr": 0.01, "network": {"name": "plain"}}) == [
        "optimizer.lr=0.01",
        'network={"name": "plain"}',
    ]


def test_a_start_ends_with_the_first_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"epoch": 1, "at/first_step": 107.5}\n')

    @contextmanager
    def training(home: Path, name: str, settings: list[str]) -> Iterator[tuple[Any, Path]]:
        assert (home, name) == (tmp_path / "home", "start1")
        assert settings[-1] == "scaling={workers: 2, cpus_per_worker: 1}"
        yield argparse.Namespace(began=100.0), tmp_path / "journal.jsonl"

    monkeypatch.setattr(commands, "training", training)
    assert start.Starts(tmp_path).train(2) == 7.5


@pytest.mark.slow
def test_scaling_runs(tmp_path: Path) -> None:
    """One worker by the command; two under torchrun, which is the part that no other test has."""
    plan = scaling.Plan(tmp_path, "plain", threads=1, steps=2, epochs=2)
    assert plan.medray(1, 0) > 0
    for way in (scaling.PLAIN, scaling.INSIDE):
        assert plan.torchrun(way, 2, 0) > 0


@pytest.mark.slow
def test_tune_runs(tmp_path: Path) -> None:
    plan = tune.Plan(tmp_path, cases=120, epochs=1, trials=1, concurrent=1)
    plan.draw()
    seconds, (settings,) = plan.search(0)
    assert settings.keys() == {"optimizer.lr", "optimizer.weight_decay"}
    assert seconds > 0
    assert plan.by_hand(0, [settings]) > 0


@pytest.mark.slow
def test_start_runs(tmp_path: Path) -> None:
    """A training, a bare TorchTrainer and the plain service; the others' starts are in tests of their own."""
    starts = start.Starts(tmp_path)
    assert 0 < starts.train(1) < 200
    assert 0 < starts.trainer() < 200
    plan = start.Plan(tmp_path)
    bundle, image = plan.bundle("flat"), plan.images()[0]
    assert 0 < start.answered(lambda: start.plain(tmp_path, bundle), image) < 200
