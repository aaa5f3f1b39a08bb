"""Trainings on real Ray that lose workers, command and nodes: they come to the end that an unbroken one comes to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from medray.benchmarks import strikes
from medray.benchmarks.fault_rows import EPOCHS, Bench
from medray.benchmarks.nodes import nodes
from medray.benchmarks.victim import Recovery, Training
from medray.tracking import journal
from medray.training import checkpoint
from medray.training.checkpoint import CHECKPOINTS, FINISHED
from medray.training.watch import STACKS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("chaos"), kills=3, outage_s=5.0)


@dataclass
class Struck:
    """A run of two workers that went through everything, and is over."""

    run: Training
    recoveries: list[Recovery]
    second: tuple[int, str]
    """The same command beside it."""
    stop_s: float


@pytest.fixture(scope="module")
def struck(bench: Bench) -> Iterator[Struck]:
    with bench.training("struck", 2, strikes.HANG) as run:
        run.advance()
        second = run.again()
        recoveries = [run.recover(strikes.kill_worker) for _ in range(3)]
        recoveries.append(run.recover(strikes.kill_driver))
        stop_s = strikes.seconds_to_stop(run)
        run.start()
        run.until(lambda: len(run.steps("going on")) == 5, "it does not go on")
        run.advance()
        recoveries.append(run.recover(strikes.freeze))
        run.end()
        yield Struck(run, recoveries, second, stop_s)


def test_it_ends_as_an_unbroken_one_to_the_last_bit(bench: Bench, struck: Struck) -> None:
    assert struck.run.codes == [-9, 75, 0]
    assert struck.run.same_as(bench.clean(2))


def test_every_epoch_is_once_in_mlflow(struck: Struck) -> None:
    found = struck.run.tracked()
    assert (found.lost, found.doubled, found.status) == (0, 0, "FINISHED")


def test_no_more_than_the_last_checkpoint_is_done_again(struck: Struck) -> None:
    """A checkpoint comes twice in an epoch, so each fault costs one row of the journal at most."""
    rows = [int(row["epoch"]) for row in struck.run.rows()]
    assert sorted(set(rows)) == list(range(1, EPOCHS + 1))
    assert len(rows) <= EPOCHS + len(struck.recoveries)


def test_sigterm_saves_within_10_seconds_and_costs_no_step(struck: Struck) -> None:
    assert struck.stop_s < 10
    (stopped,) = struck.run.steps("stopped")
    assert stopped in struck.run.steps("going on")


def test_a_second_command_is_refused(struck: Struck) -> None:
    code, said = struck.second
    assert code == 2
    assert re.search(r"is being run by process \d+", said)
    assert "Traceback" not in said


def test_a_worker_that_stands_still_is_found_by_those_who_wait_for_it(struck: Struck) -> None:
    """It is told when, and where each thread stood."""
    assert re.search(r"worker \d has not moved for 1\d s and is ended", struck.run.notes())
    stacks = next((struck.run.folder / STACKS).iterdir()).read_text(encoding="utf-8")
    assert "agree" in stacks or "backward" in stacks or "all_gather" in stacks


def test_a_person_is_told_of_each_loss_without_a_traceback(struck: Struck) -> None:
    said = struck.run.said()
    assert said.count("was lost: ") >= 4, said
    assert "Traceback" not in said


@pytest.fixture(scope="module")
def shrunk(bench: Bench) -> Iterator[tuple[Training, list[int]]]:
    """A run of one or two workers on three nodes that loses two of them; its workers after each loss."""
    with nodes(3) as cluster, bench.training("nodes", 2, "scaling.workers=[1,2]", **cluster.environment) as run:
        run.advance()
        workers = []
        for _ in range(2):
            run.recover(cluster.strike)
            run.until(lambda: run.newest()[0] > run.steps("going on")[-1], "no new checkpoint")
            workers.append(_workers(run.whole()[0]))
        run.end()
        yield run, workers


def _workers(place: Path) -> int:
    return len(list(place.glob("rank-*.json")))


def test_a_lost_node_is_replaced_and_without_another_the_run_shrinks(shrunk: tuple[Training, list[int]]) -> None:
    run, workers = shrunk
    assert workers == [2, 1]
    assert len(checkpoint.load(run.folder / CHECKPOINTS / FINISHED).own) == 1
    rows = journal.epochs(run.folder / journal.JOURNAL)
    assert [int(row["epoch"]) for row in rows] == list(range(1, EPOCHS + 1))
    assert rows[-1]["val/auroc"] > 0.9
    found = run.tracked()
    assert (found.lost, found.doubled, found.status) == (0, 0, "FINISHED")
