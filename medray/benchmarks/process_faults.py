"""Faults of the processes, nodes and memory of a training: each a function that makes the run and tells its row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from medray.benchmarks import strikes
from medray.benchmarks.fault_rows import Bench, Row
from medray.benchmarks.nodes import nodes
from medray.benchmarks.victim import PATIENCE_S, SLOWEST_EPOCH_S, NotRecovered, Training
from medray.training.folder import FAILURE

PAUSE_S = (5.0, 10.0)


def _struck(bench: Bench, name: str, strike: Callable[[Training], int | None], fault: str, *settings: str) -> Row:
    """One fault in a run of two workers."""
    clean = bench.clean(2)
    with bench.training(name, 2, *settings) as run:
        run.advance()
        recovery = run.recover(strike)
        return bench.row(run, fault, strike.__doc__ or "", [recovery], clean)


def worker(bench: Bench) -> Row:
    """SIGKILL to one worker."""
    return _struck(bench, "worker", strikes.kill_worker, "a worker is killed")


def driver(bench: Bench) -> Row:
    """SIGKILL to the command."""
    return _struck(bench, "driver", strikes.kill_driver, "the command is killed")


def hang(bench: Bench) -> Row:
    """SIGSTOP to one worker."""
    return _struck(bench, "hang", strikes.freeze, f"a worker stands still ({strikes.HANG})", strikes.HANG)


def kills(bench: Bench) -> Row:
    """SIGKILL to a worker, again and again."""
    pace = bench.clean(2).rows()[-1]["epoch_s"]
    epochs = math.ceil(bench.kills * 1.2 * PAUSE_S[1] / pace) + 4
    with bench.training("kills", 2, epochs=epochs) as run:
        recoveries = []
        for _ in range(bench.kills):
            run.advance()
            recoveries.append(run.recover(strikes.later(strikes.kill_worker, PAUSE_S)))
        run.end(timeout_s=PATIENCE_S + SLOWEST_EPOCH_S * epochs)
    how = f"SIGKILL to one of 2 workers, {PAUSE_S[0]:g} to {PAUSE_S[1]:g} s after each recovery"
    return bench.row(run, f"{bench.kills} kills in one run", how, recoveries, bench.clean(2, epochs))


def sigterm(bench: Bench) -> Row:
    """SIGTERM to the command."""
    clean = bench.clean(2)
    with bench.training("sigterm", 2) as run:
        run.advance()
        seconds = strikes.seconds_to_stop(run)
        run.start()
        run.advance()
        run.end()
        (stopped,), (resumed,) = run.steps("stopped"), run.steps("going on")
        row = bench.row(run, "SIGTERM", "to the command, then the same command again", (), clean)
    found = f"{seconds:.1f} s from the signal to the end of the command, the checkpoint made"
    return replace(row, repeated=(stopped - resumed,), found=found)


def node(bench: Bench) -> Row:
    """A node of three is lost."""
    clean = bench.clean(2)
    with nodes(3) as cluster, bench.training("node", 2, **cluster.environment) as run:
        run.advance()
        recovery = run.recover(cluster.strike)
        return bench.row(run, "a node is lost, another is free", "all its processes are killed", [recovery], clean)


def elastic(bench: Bench) -> Row:
    """A node of two is lost, and the run goes on with one worker."""
    with nodes(2) as cluster, bench.training("elastic", 2, "scaling.workers=[1,2]", **cluster.environment) as run:
        run.advance()
        recovery = run.recover(cluster.strike)
        return bench.row(run, "a node is lost, none is free (scaling.workers=[1,2])", "as above", [recovery])


def twice(bench: Bench) -> Row:
    """The same command beside itself."""
    with bench.training("twice", 1) as run:
        run.advance()
        code, said = run.again()
        said = said.strip().splitlines()[-1]
        clean = bench.clean(1)
        return bench.row(run, "the same command twice", "a second one beside it", (), clean, f"second: {code}, {said}")


def memory(bench: Bench) -> Row:
    """No memory is left."""
    with bench.training("memory", 1) as run:
        run.advance()
        strikes.starve(run)
        run.end(1)
        last = run.said().strip().splitlines()[-1]
        if not (run.folder / FAILURE).is_file():
            raise NotRecovered(f"it would be tried again: {last}")
    return Row("no memory", strikes.starve.__doc__ or "", tuple(run.codes), found=f"not tried again: {last}")


FAULTS: Mapping[str, Callable[[Bench], Row]] = {
    one.__name__: one for one in (worker, kills, driver, sigterm, node, elastic, hang, twice, memory)
}
