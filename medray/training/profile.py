"""Where a step goes: `train.profile=true` times the parts of a few early steps, and traces some more.

After a warm-up come steps that are timed as they are, then steps of which every part is timed (the table), then steps
under torch.profiler (the trace, of worker 0 alone; an epoch's end ends it). On a GPU the parts are true only because it
is waited for at each border (torch.cuda.synchronize): the sum of the parts is somewhat more than a step as it is, and
the table gives both. Traced steps are not waited for: a trace shows what overlaps.

A forecast of the time to the end takes steps as they are: an epoch's time without its warm-up, timed (on a GPU) and
traced steps is in its row as profile/epoch_s.

`all-reduce, not hidden` is DistributedDataParallel's own clock, from the last gradient's end to the end of the last sum
over the workers: the network between them, and waiting for the slowest of them. It is taken out of `backward`.

Nothing of it is in a checkpoint. A run that goes on is profiled again unless its folder has a trace, and never changes
a random draw or a weight by it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from medray.training.learner import Learner, unmarked
from medray.training.notes import note
from medray.training.profile_table import PARTS, TRACE, lines_of, parts_of, tracer_of, write_table, write_trace

PLACE = "shared/profile"
"""In a run's folder; MLflow gets all that is in shared/."""
DDP_SAMPLES = 100
"""Steps from one reading of DistributedDataParallel's clock to the next, unless told otherwise: torch's default."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How many steps are left out, timed as they are, timed part by part, and traced, one after the other."""

    warm: int
    steady: int
    timed: int
    traced: int

    @property
    def first(self) -> int:
        """The first step that is timed part by part."""
        return self.warm + self.steady

    @property
    def untraced(self) -> int:
        """Steps before those that are traced."""
        return self.first + self.timed


def planned(steps: int) -> Plan:
    """The plan for a training that has `steps` left."""
    warm = min(5, steps // 4)
    left = steps - warm
    traced = min(10, left // 4 or left // 2)
    timed = min(20, max(1, left // 2))
    return Plan(warm, min(10, max(0, left - timed - traced)), timed, traced)


@contextmanager
def profiled(learner: Learner, folder: Path) -> Iterator[Profile | None]:
    """The profile of what is trained within the block; None where none is asked for, or the folder has its trace."""
    if not learner.experiment.train.profile or learner.world.any((folder / PLACE / TRACE).is_file()):
        yield None
        return
    profile = Profile(learner, folder)
    learner.mark = profile.mark
    try:
        yield profile
    finally:
        profile.close()


class Profile:
    """Hears where the loop is, step by step; the same on every worker until the table is made."""

    def __init__(self, learner: Learner, folder: Path) -> None:
        self._learner, self._folder = learner, folder
        self._total = learner.steps_per_epoch * learner.experiment.train.epochs
        self._origin = learner.step
        self._plan = planned(self._total - learner.step)
        self._steps: list[dict[str, float]] = []
        """Seconds of each part, of every step that is over."""
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._part, self._at = "", 0.0
        self._gpu, self._wait_for_gpu = learner.world.device.type == "cuda", False
        self._table: dict[str, Any] = {}
        self._fresh: dict[str, float] = {}
        self._heard, self._before, self._begun = False, 0, 0.0
        self._disturbed, self._lost_s = 0, 0.0
        """Of the present epoch: steps that took longer for the profile or the start, and the seconds that they took."""
        self._tracer: torch.profiler.profile | None = None
        self._traces, self._traced = learner.world.rank == 0 and self._plan.traced > 0, 0
        self._span: Any = None

    def mark(self, part: str) -> None:
        """From here on the loop is at `part`; `wait` also ends a step, or begins an epoch."""
        if self._wait_for_gpu:
            torch.cuda.synchronize(self._learner.world.device)
        now = time.perf_counter()
        if self._part:
            self._spent[self._part] += now - self._at
        if self._span is not None:
            self._span.__exit__(None, None, None)
            self._span = None
        if part == "wait":
            self._border(now)
        if self._tracer is not None:
            self._span = record_function(PARTS[part])
            self._span.__enter__()
        self._part, self._at = part, time.perf_counter()

    def close(self) -> None:
        """Hear no more; a trace that was begun and not ended is given up."""
        self._learner.mark = unmarked
        if self._tracer is not None:
            self._tracer.stop()
            self._tracer = None

    def figures(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """For the row of an epoch with `metrics`: what one takes without start-up and profiler, and the table, once."""
        learner = self._learner
        steps = learner.steps_per_epoch - self._before
        calm = steps - self._disturbed
        if not self._heard or not (calm or self._table):
            return {}
        trained_s = steps * learner.experiment.train.batch_size / metrics["samples_per_s"]
        found, self._fresh, self._heard = self._fresh, {}, False
        step_s = (trained_s - self._lost_s) / calm if calm else self._table["step_s"]
        return {**found, "profile/epoch_s": learner.steps_per_epoch * step_s + metrics["epoch_s"] - trained_s}

    def _border(self, now: float) -> None:
        """Between two steps, or before an epoch's first: nothing of this is counted in either."""
        learner, plan, over = self._learner, self._plan, False
        if "prepare" in self._spent:
            over, self._heard = learner.steps_into_epoch == learner.steps_per_epoch, True
            self._count(now)
            self._steps.append(dict(self._spent))
            self._read_clock()
        else:
            self._before, self._disturbed, self._lost_s = learner.steps_into_epoch, 0, 0.0
        self._spent.clear()
        done = len(self._steps)
        if done == plan.first and not self._table:
            self._wait_for_gpu = self._gpu
            self._sample(1)
        if done == plan.untraced and not self._table:
            self._conclude()
        if self._tracer is not None and (over or self._traced == plan.traced):
            self._end_trace(self._tracer)
        elif self._table and self._traces and self._tracer is None and not over and self._fits():
            self._tracer = tracer_of(learner.world.device)
            self._tracer.start()
        self._begun = time.perf_counter()
        self._lost_s += self._begun - now

    def _count(self, now: float) -> None:
        """Whether the step that is over took longer than those to come will."""
        self._traced += self._tracer is not None
        if len(self._steps) < self._plan.warm or self._wait_for_gpu or self._tracer is not None:
            self._disturbed += 1
            self._lost_s += now - self._begun

    def _fits(self) -> bool:
        """Whether the steps to trace lie in what is left of the epoch, as far as they can lie in one."""
        learner = self._learner
        room = learner.steps_per_epoch - learner.steps_into_epoch
        last = learner.epoch + 1 >= learner.experiment.train.epochs
        return last or room >= min(self._plan.traced, learner.steps_per_epoch)

    def _sample(self, every: int) -> None:
        """Have DistributedDataParallel read its clock at every so many steps."""
        if isinstance(self._learner.parallel, DistributedDataParallel):
            self._learner.parallel._set_ddp_runtime_logging_sample_rate(every)  # type: ignore[no-untyped-call]

    def _read_clock(self) -> None:
        """Take the sum over the workers out of the backward pass of the step before: in this one it was told."""
        parallel, before = self._learner.parallel, len(self._steps) - 2
        if isinstance(parallel, DistributedDataParallel) and self._plan.first <= before < self._plan.untraced:
            said = parallel._get_ddp_logging_data()  # type: ignore[no-untyped-call]
            hidden = said.get("backward_compute_comm_overlap_time", 0)
            step = self._steps[before]
            step["reduce"] = min(step["backward"], max(0, said.get("backward_comm_time", 0) - hidden) / 1e9)
            step["backward"] -= step["reduce"]

    def _conclude(self) -> None:
        """Make the table; worker 0 says it, and is the only one to go on."""
        learner, plan = self._learner, self._plan
        world = learner.world
        self._wait_for_gpu = False
        self._sample(DDP_SAMPLES)
        timed = self._steps[plan.first : plan.untraced]
        if world.size > 1 and len(timed) > 1:
            timed = timed[:-1]  # nobody has told yet what the last one waited
        # Without a GPU to wait for, the timed steps are as all others are.
        steady = self._steps[plan.warm : plan.first if self._gpu else plan.untraced] or timed
        step_s = float(np.mean([sum(step.values()) for step in steady]))
        mine = torch.tensor([[np.mean([step["wait"] for step in timed])]], device=world.device)
        waits = world.interleave(mine, world.size)[:, 0].tolist()
        first = self._origin + plan.first
        self._table = {
            "steps": [first, first + len(timed) - 1],
            "workers": world.size,
            "device": torch.cuda.get_device_name(world.device) if self._gpu else "cpu",
            "precision": learner.precision,
            "step_s": step_s,
            "cases_per_s": learner.experiment.train.batch_size / step_s,
            "parts": parts_of(timed),
            "wait_ms_by_worker": [1e3 * wait for wait in waits],
        }
        self._fresh = {f"profile/{name}_ms": row["mean_ms"] for name, row in self._table["parts"].items()}
        if world.rank == 0:
            self._say()
        if not self._traces:
            self.close()

    def _say(self) -> None:
        place, table = self._folder / PLACE, self._table
        left_s = (self._total - self._learner.step) * table["step_s"]
        for line in lines_of(table):
            note(self._folder, line)
        note(self._folder, f"profile: about {left_s / 60:.1f} min for the steps that are left, without the validations")
        self._kept(lambda: write_table(place, table))

    def _end_trace(self, tracer: torch.profiler.profile) -> None:
        tracer.stop()
        self._tracer = None
        self.close()
        self._kept(lambda: write_trace(self._folder / PLACE, tracer, self._learner.world.device))

    def _kept(self, write: Callable[[], None]) -> None:
        """A disk that does not take a profile does not end a training."""
        try:
            write()
        except (OSError, RuntimeError) as error:
            note(self._folder, f"profile: cannot be written: {error}")
