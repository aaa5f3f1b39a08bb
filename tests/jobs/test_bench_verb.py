"""`medray bench`: the measurements of medray, by name."""

from __future__ import annotations

import pytest
from conftest import REPOSITORY

from medray.benchmarks import faults
from medray.benchmarks.fault_rows import Row
from medray.cli_bench import bench
from medray.config import ConfigError


def test_without_a_name_it_lists_what_can_be_run() -> None:
    lines = bench().splitlines()
    assert "faults" in [line.split()[0] for line in lines]
    assert "ratio" not in [line.split()[0] for line in lines], "it is no program"
    assert all(len(line.split()) > 3 for line in lines)


def test_a_wrong_name_is_answered_with_the_right_ones() -> None:
    with pytest.raises(ConfigError, match=r"no benchmark 'fault'; there are: .*faults"):
        bench("fault")


def test_arguments_reach_the_program_and_its_exit_code_comes_back(capfd: pytest.CaptureFixture[str]) -> None:
    assert "--quick" in bench("faults", "--help")
    with pytest.raises(SystemExit) as raised:
        bench("faults", "--only", "nothing")
    assert raised.value.code == 2
    assert "invalid choice: 'nothing'" in capfd.readouterr().err


def test_the_job_is_there() -> None:
    assert (REPOSITORY / "jobs" / "benchmark.py").is_file()


def test_the_table_has_a_line_per_fault() -> None:
    rows = [Row("a", "b"), Row("c", "d", (0, 75), (1, 2, 3, 4, 5), 0, 1, False, (1.25, 2.0), "e")]
    lines = faults.table(rows).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[3] == "| c | d | 0, 75 | 5 times 1 to 5 | 0 / 1 | NO | 1.25, 2 | e |"
