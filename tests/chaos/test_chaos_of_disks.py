"""Checkpoints whose writer is killed, and trainings whose disk is full or away."""

from __future__ import annotations

from pathlib import Path

import pytest

from medray.benchmarks import disk_faults, disks
from medray.benchmarks.fault_rows import Bench

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("chaos"), kills=3, outage_s=5.0)


def test_whenever_a_writer_is_killed_the_newest_checkpoint_is_found(tmp_path: Path) -> None:
    found = disks.kill_saves(tmp_path / "run", 100)
    assert (found.lost, found.broken) == (0, 0)
    assert found.inside > 10, "else the moments were none"


def test_a_full_disk_costs_no_checkpoint_and_the_run_goes_on_when_there_is_room(bench: Bench) -> None:
    if not disks.may_mount():
        pytest.skip("mounting a disk of one's own is not allowed here")
    row = disk_faults.full(bench)
    assert row.codes == (75, 0)
    assert "checkpoints left: 0" in row.found
    assert str(bench.folder) in row.found
    assert "MiB are free" in row.found
    assert (row.same, row.lost, row.doubled) == (True, 0, 0)


def test_a_disk_that_was_away_costs_no_step(bench: Bench) -> None:
    row = disk_faults.away(bench)
    assert row.codes == (0,)
    assert "starts from a checkpoint: 0" in row.found
    assert (row.same, row.lost, row.doubled) == (True, 0, 0)
