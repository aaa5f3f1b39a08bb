"""The benchmark of sliding windows runs on a small volume and prints what it should."""

from __future__ import annotations

import json

import pytest

from medray.benchmarks import window


@pytest.mark.slow
def test_the_windows_benchmark_runs(capsys: pytest.CaptureFixture[str]) -> None:
    window.main(length=32, pairs=2)
    said = capsys.readouterr()
    lines = {line["benchmark"].split(" (")[0]: line for line in map(json.loads, said.out.splitlines())}
    assert lines.pop("window/peak memory")["MONAI"] >= 0
    switches = ("skipping air", "bfloat16", "1 window per pass", "float16 sums", "overlap 0.25")
    comparisons = ("under 12^3 against MONAI", "under 12^3 without a network, against MONAI")
    assert list(lines) == [f"window/32x32x24 {name}" for name in comparisons] + [f"window/{name}" for name in switches]
    assert all(line["ratio"] > 0 for line in lines.values())
    agreement = next(line for line in said.err.splitlines() if "agree with MONAI's to" in line)
    assert float(agreement.rsplit(maxsplit=1)[1]) < 1e-5
    assert said.err.count("outside of the network") == 3
