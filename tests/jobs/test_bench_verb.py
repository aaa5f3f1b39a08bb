"""`medray bench`: the measurements of medray, by name."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
from conftest import REPOSITORY

from medray.benchmarks import faults, report
from medray.benchmarks.fault_rows import Bench, Row
from medray.benchmarks.report import tables_of
from medray.benchmarks.victim import NotRecovered
from medray.cli_bench import NAMES, bench
from medray.config import PACKAGE, ConfigError


def test_without_a_name_it_lists_what_can_be_run() -> None:
    lines = bench().splitlines()
    assert [line.split()[0] for line in lines] == list(NAMES)
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize("name", NAMES)
def test_each_is_a_program_that_says_what_it_does(name: str) -> None:
    text = (PACKAGE / "benchmarks" / f"{name}.py").read_text(encoding="utf-8")
    assert "\nif __name__ ==" in text
    assert f"jobs/benchmark.py {name}" in text, "its docstring says the command"


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
    lines = tables_of({"Faults": [faults.cells(row) for row in rows]}).splitlines()
    assert len({line.count("|") for line in lines[2:6]}) == 1
    assert lines[5] == "| c | d | 0, 75 | 5 times 1 to 5 | 0 / 1 | NO | 1.25, 2 | e |"


def test_a_training_that_does_not_come_back_is_said_by_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def gone(bench: Bench) -> Row:  # noqa: ARG001
        raise NotRecovered("it stood\nstill")

    monkeypatch.setattr(faults, "FAULTS", {"hang": gone, "kills": lambda bench: Row("kills", str(bench.kills))})
    out = ["--out", str(tmp_path)]
    assert faults.main(["--quick", "--only", "kills", *out]) == 0
    assert faults.main(["--only", "hang", *out]) == 1
    assert "NOT RECOVERED: it stood still" in (tmp_path / "bench-faults.md").read_text()


@pytest.mark.parametrize("name", ["loop", "input", "store", "window", "serve", "scaling", "tune", "start", "keeping"])
def test_a_wrong_argument_starts_nothing(name: str, tmp_path: Path) -> None:
    module = import_module(f"medray.benchmarks.{name}")
    with pytest.raises(SystemExit):
        report.run(name, module.__doc__, module.measure, ["--no-such", "--out", str(tmp_path)], module.options)
    assert not list(tmp_path.iterdir())
