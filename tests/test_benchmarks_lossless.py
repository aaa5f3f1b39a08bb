"""The service under fire, on a small scale; `jobs/benchmark.py lossless` is the whole of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from medray.benchmarks.lossless import lost


@pytest.mark.slow
def test_nothing_is_lost_over_updates_and_kills(home: Path) -> None:  # noqa: ARG001
    found = lost(requests=300, updates=2, kills=1, clients=4)
    assert (found["lost"], found["mixed"]) == (0, 0), found
    assert (found["updates"], found["kills"]) == (2, 1)
    assert found["models"] == ["net/1", "net/2"]
