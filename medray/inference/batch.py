"""Answers for many cases by models that stay in memory: in this process, or by a pool of Ray actors.

Reading, computing and writing go on at the same time, each on other cases. A case that is refused, and one that breaks
the decoder, the model or a whole worker, costs only itself.

Not Ray Data: it fails a whole block, or drops it, where a row raises, forgets the order of rows, and moves pixels
through the object store, which here stay in the process that needs them. What travels is paths and records.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from medray import cluster
from medray.cluster import Allotment
from medray.config import ConfigError
from medray.imaging.isolation.decoder import read_isolated
from medray.inference import outputs, records
from medray.inference.about import Facts
from medray.inference.cases import Item
from medray.inference.ensemble import Ensemble
from medray.inference.records import Record
from medray.types import Case, InputError, Prediction

logger = logging.getLogger(__name__)

Input = TypeVar("Input")
Output = TypeVar("Output")
Group = tuple[Item, ...]
Seen = tuple[Item, Case | InputError]
Answered = tuple[Item, Case | InputError, Prediction | InputError]

AT_ONCE = 32
"""Images of a per-case task in one pass; masks are made one by one."""
IN_FLIGHT = 2
"""Groups that an actor has at a time: one is read while the other is computed."""
_ONE = Allotment(1, 1, False)
LACKS_MEMORY = ("OutOfMemoryError", "MemoryError")


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done with each case."""

    make: Callable[[], Ensemble]
    """Loads the model; picklable where Ray's workers do it."""
    facts: Facts
    """Of that model."""
    wanted: outputs.Wanted
    out: Path | None
    """Where each case gets a folder, on storage that all workers see; None: nothing is written."""
    window: str = ""
    """What else the answers depend on, in words."""

    @property
    def asked(self) -> str:
        """All that an answer depends on beside the image, see `records.key_of`."""
        return json.dumps([self.facts.digest, self.window, asdict(self.wanted) if self.facts.dense else None])


def predict_cases(items: Sequence[Item], job: Job, workers: Allotment | None = None) -> Iterator[tuple[Item, Record]]:
    """Each case with its answer, in the order in which they come; its files are then at their place.

    Args:
        items: the cases.
        job: what to do with them.
        workers: actors on Ray, each with a model; None for the model in this process.

    Raises:
        ConfigError: the model cannot be loaded, or the results not be written.
    """
    share = 1 if job.facts.dense else min(AT_ONCE, max(1, ceil(len(items) / (IN_FLIGHT * (workers or _ONE).workers))))
    groups = [tuple(items[start : start + share]) for start in range(0, len(items), share)]
    if not groups:
        return
    yield from _here(groups, job) if workers is None else _Pool(job, workers, groups).run()


class Desk:
    """A resident model and the three steps of an answer."""

    def __init__(self, job: Job) -> None:
        self.job, self.model = job, job.make()

    def read(self, group: Group) -> list[Seen]:
        """The images, decoded in a process of their own: one that crashes it is refused."""
        return [_read(item) for item in group]

    def answer(self, seen: Sequence[Seen]) -> list[Answered]:
        """What the model says."""
        answers = iter(self._said([raw for _, raw in seen if isinstance(raw, Case)]))
        return [(item, raw, raw if isinstance(raw, InputError) else next(answers)) for item, raw in seen]

    def store(self, answered: Sequence[Answered]) -> list[tuple[Item, Record]]:
        """Write the files of each case, and its record."""
        return [(item, store(self.job, item, raw, answer)) for item, raw, answer in answered]

    def _said(self, cases: Sequence[Case]) -> list[Prediction | InputError]:
        try:
            return self.model.predict_all(cases, self.job.wanted.probabilities) if cases else []
        except Exception as error:
            if len(cases) > 1:  # only the case that is to blame
                return [self._said([case])[0] for case in cases]
            return [_refusal(error)]


def store(job: Job, item: Item, raw: Case | InputError, answer: Prediction | InputError) -> Record:
    """Write the files of a case and its record.

    Raises ConfigError where they cannot be written: then no other case's can.
    """
    try:
        return _stored(job, item, raw, answer)
    except OSError as error:
        fact = f"--out: '{job.out}' cannot be written: {error.strerror}"
        raise ConfigError([f"{fact}; what is finished stays, and the same command goes on from there"]) from None
    except Exception as error:
        return _stored(job, item, raw, _refusal(error))


def _stored(job: Job, item: Item, raw: Case | InputError, answer: Prediction | InputError) -> Record:
    record = _record(job, item, raw, answer)
    if job.out is None:
        return record
    with records.new_folder(job.out, item.name) as folder:
        if isinstance(raw, Case) and isinstance(answer, Prediction) and not isinstance(item.source, InputError):
            files = outputs.write(folder, raw, item.source, answer, job.facts, job.wanted)
            record = replace(record, files=files)
        records.put(folder, record)
    return record


def _record(job: Job, item: Item, raw: Case | InputError, answer: Prediction | InputError) -> Record:
    key = records.key_of(item.content, job.asked)
    if isinstance(raw, InputError):
        return records.refused(item.name, item.place, item.content, key, raw)
    if isinstance(answer, InputError):
        return records.refused(item.name, item.place, item.content, key, answer)
    unit = "voxels" if raw.unit == "px" else "ml" if raw.spatial_dims == 3 else "mm2"
    scored = len(answer.scores) > 0
    return Record(
        name=item.name,
        place=str(item.place),
        content=item.content,
        key=key,
        labels=answer.labels,
        scores=dict(zip(answer.classes, answer.scores.tolist(), strict=True)) if scored else {},
        volumes=dict(answer.volumes),
        unit=unit if answer.mask is not None else "",
        conformal_set=answer.conformal_set,
        warnings=answer.warnings,
    )


def _read(item: Item) -> Seen:
    if isinstance(item.source, InputError):
        return item, item.source
    source = item.source
    item = item if item.content else replace(item, content=records.content_of(source))
    try:
        return item, read_isolated(source)
    except InputError as error:
        return item, error


def _refusal(error: Exception) -> InputError:
    """Why a case has no answer. What is no fault of the input is logged with its traceback."""
    if isinstance(error, InputError):
        return error
    if isinstance(error, ConfigError):  # all else of the configuration was checked before the first case
        return InputError("too_large_for_memory", str(error))
    if type(error).__name__ in LACKS_MEMORY:
        return InputError("out_of_memory", "the case needs more memory than there is", "take --device cpu")
    logger.error("a case failed", exc_info=error)
    return InputError("failed", f"the model or its output failed with {type(error).__name__}")


def _here(groups: Sequence[Group], job: Job) -> Iterator[tuple[Item, Record]]:
    """In this process: a thread reads ahead, and one writes behind."""
    desk = Desk(job)
    with ThreadPoolExecutor(1) as readers, ThreadPoolExecutor(1) as writers:
        try:
            seen = _ahead(readers, desk.read, groups)
            for done in _ahead(writers, desk.store, map(desk.answer, seen)):
                yield from done
        finally:
            readers.shutdown(cancel_futures=True)


def _ahead(pool: ThreadPoolExecutor, function: Callable[[Input], Output], inputs: Iterable[Input]) -> Iterator[Output]:
    """`map` in order, one step ahead of who asks."""
    pending: deque[Future[Output]] = deque()
    for item in inputs:
        pending.append(pool.submit(function, item))
        if len(pending) > 1:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


class Resident:
    """A model on a worker of Ray, which answers one group while it reads the next."""

    def __init__(self, job: Job) -> None:
        self.desk, self._turn = Desk(job), Lock()

    def work(self, group: Group) -> list[tuple[Item, Record]]:
        """Answer for the cases of a group, and write their files."""
        seen = self.desk.read(group)
        with self._turn:
            answered = self.desk.answer(seen)
        return self.desk.store(answered)


class _Pool:
    """Actors that each hold a model. One that dies is replaced, and what it was at is tried once more.

    It may have died of any of its cases, so each of these is tried by itself, on an actor that has nothing else.
    """

    def __init__(self, job: Job, workers: Allotment, groups: Sequence[Group]) -> None:
        import ray

        cluster.connect()
        resources = {"num_cpus": workers.cpus, "num_gpus": int(workers.gpu), "max_concurrency": IN_FLIGHT}
        self._job, self._kind = job, ray.remote(Resident).options(**resources)
        self._actors = [self._kind.remote(job) for _ in range(min(workers.workers, len(groups)))]
        self._waiting, self._suspects = deque(groups), deque[Group]()
        self._running: dict[Any, tuple[Any, Group, bool]] = {}

    def run(self) -> Iterator[tuple[Item, Record]]:
        """All groups, to their end."""
        import ray

        try:
            while self._waiting or self._suspects or self._running:
                for actor in self._actors:
                    self._hand_out(actor)
                (done,), _ = ray.wait(list(self._running))
                yield from self._result(done)
        finally:
            for actor in self._actors:
                ray.kill(actor)

    def _hand_out(self, actor: Any) -> None:
        mine = [alone for other, _, alone in self._running.values() if other is actor]
        if self._suspects:
            if not mine:
                self._start(actor, self._suspects.popleft(), alone=True)
            return
        for _ in range(0 if any(mine) else IN_FLIGHT - len(mine)):
            if self._waiting:
                self._start(actor, self._waiting.popleft(), alone=False)

    def _start(self, actor: Any, group: Group, alone: bool) -> None:
        self._running[actor.work.remote(group)] = actor, group, alone

    def _result(self, done: Any) -> Iterator[tuple[Item, Record]]:
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        actor, group, alone = self._running.pop(done)
        try:
            answered = ray.get(done)
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, ConfigError) else error from None
        except RayActorError as error:
            if error.actor_init_failed:
                raise ConfigError([f"a worker cannot load the model: {str(error).strip().splitlines()[-1]}"]) from None
            if actor in self._actors:
                ray.kill(actor)
                self._actors[self._actors.index(actor)] = self._kind.remote(self._job)
            if not alone:
                self._suspects.extend((item,) for item in group)
                return
            refusal = InputError("worker_died", "the worker ended over this case, twice", "see Ray's logs")
            answered = [(item, store(self._job, item, refusal, refusal)) for item in group]
        yield from answered
