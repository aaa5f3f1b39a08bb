"""What a profile leaves in a run's folder: its table, its trace, and the lines that a person sees of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from medray.training.folder import write_whole

PARTS = {
    "wait": "wait for data",
    "prepare": "copy and augment",
    "forward": "forward and loss",
    "backward": "backward",
    "reduce": "all-reduce, not hidden",
    "optimise": "optimiser",
    "rest": "agreement and checks",
}
"""A step from border to border; `reduce` is a part of the time that the loop marks as backward."""
WHOLE = "whole step"
TRACE, OPERATORS, TABLE, PAGE = "trace-rank0.json.gz", "operators.txt", "table.json", "table.md"
ROWS = 30
"""Of the operators, those that take most."""
MEANING = """\
- wait for data: on a CPU the batch is gathered in this time; on a GPU a thread gathers it beside the step before.
- copy and augment: to the device, as numbers around zero, changed at random, in the network's memory order.
- all-reduce, not hidden: from the last gradient to the end of the last sum over the workers (their network, and waiting
  for the slowest of them), by the clock of DistributedDataParallel; it is not in backward.
- agreement and checks: whether the loss is finite, the message by which workers agree, the journal, checkpoints.

The parts were timed on worker 0; on a GPU it was waited for at each border, so their sum is somewhat more than a step
as it is. `trace-rank0.json.gz` opens in https://ui.perfetto.dev or chrome://tracing; `operators.txt` adds it up.
"""


def parts_of(steps: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Of each part of some steps median and mean in ms, and its share of them all; `step` is their whole.

    Args:
        steps: seconds of each part.
    """
    whole = [sum(step.values()) for step in steps]
    found = {}
    for name in [*(name for name in PARTS if any(name in step for step in steps)), "step"]:
        each = whole if name == "step" else [step.get(name, 0.0) for step in steps]
        share = float(np.sum(each) / np.sum(whole))
        found[name] = {"median_ms": 1e3 * float(np.median(each)), "mean_ms": 1e3 * float(np.mean(each)), "share": share}
    return found


def lines_of(table: Mapping[str, Any]) -> list[str]:
    """The table for a terminal, in words without runs of blanks."""
    first, last = table["steps"]
    step_ms = 1e3 * table["step_s"]
    lines = [
        f"profile: {table['cases_per_s']:.1f} cases/s, {step_ms:.1f} ms a step; "
        f"its parts in steps {first} to {last} as median, mean and share:"
    ]
    for name, row in table["parts"].items():
        label, median, mean = PARTS.get(name, WHOLE), f" {row['median_ms']:.2f}", f" {row['mean_ms']:.2f}"
        share = f" {row['share']:.1%}"
        lines.append(f"{label + ' ':.<25}{median:.>12} ms {mean:.>12} ms {share:.>9}")
    if table["workers"] > 1:
        waits = table["wait_ms_by_worker"]
        lines.append(f"profile: workers wait {min(waits):.2f} to {max(waits):.2f} ms for data")
    return lines


def write_table(place: Path, table: Mapping[str, Any]) -> None:
    """The table as JSON and as a page."""
    place.mkdir(parents=True, exist_ok=True)
    first, last = table["steps"]
    rows = [
        f"| {PARTS.get(name, WHOLE)} | {row['median_ms']:.3f} | {row['mean_ms']:.3f} | {row['share']:.1%} |"
        for name, row in table["parts"].items()
    ]
    waits = ", ".join(f"{wait:.3f}" for wait in table["wait_ms_by_worker"])
    head = (
        f"# Where a step goes\n\n{table['workers']} worker(s), {table['device']}, {table['precision']}; a step as it is"
        f" takes {1e3 * table['step_s']:.3f} ms: {table['cases_per_s']:.1f} cases/s.\n\n"
        f"Steps {first} to {last}, part by part:\n\n"
        "| part | median, ms | mean, ms | share |\n|---|--:|--:|--:|\n"
    )
    workers = f"\nWaiting for data, mean of each worker: {waits} ms\n\n"
    write_whole(place / PAGE, head + "\n".join(rows) + "\n" + workers + MEANING)
    write_whole(place / TABLE, json.dumps(table, indent=1))


def tracer_of(device: torch.device) -> profile:
    """torch's profiler of what runs on the CPU, and on a GPU where there is one; it holds names and shapes alone."""
    # Kineto tells stderr of each start and stop, and of a machine without GPUs.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    return profile(activities=activities, record_shapes=True)


def write_trace(place: Path, tracer: profile, device: torch.device) -> None:
    """The trace for chrome://tracing and perfetto, whole or not at all, and its operators by the time they take."""
    place.mkdir(parents=True, exist_ok=True)
    by = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    write_whole(place / OPERATORS, tracer.key_averages().table(sort_by=by, row_limit=ROWS, max_name_column_width=50))
    partial = place / f"partial-{TRACE}"
    try:
        tracer.export_chrome_trace(str(partial))
        partial.replace(place / TRACE)
    finally:
        partial.unlink(missing_ok=True)
