"""From places to results: what `medray predict` does. The same command again goes on where the last one ended.

Every finished case has a folder under the output with its answer in it (see records). It is found again by the content
of the image, the model and the options; a changed image, another model or other options are computed anew.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from medray import bundle, cluster
from medray.cluster import Allotment
from medray.config import ConfigError
from medray.datasets.files import absolute
from medray.inference import cases, records, table
from medray.inference.batch import Job, predict_cases
from medray.inference.cases import Item
from medray.inference.ensemble import Ensemble, facts_of, window_of
from medray.inference.outputs import Wanted
from medray.inference.records import Record
from medray.sections.training import ScalingSection

PLAIN = Wanted()
OUT = Path("predictions")
CSV = "predictions.csv"
PROGRESS_S = 10.0
"""Seconds between two lines of progress."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a person asks for."""

    places: tuple[Path, ...]
    """Images, folders and archives of them."""
    bundles: tuple[Path, ...]
    """Folders of the model, or of several whose probabilities are averaged."""
    device: str = "cpu"
    window: Mapping[str, Any] | None = None
    """Changes to how whole images are read, see sections/inference.py."""
    wanted: Wanted = PLAIN
    out: Path | None = None
    """By default OUT; nothing is written for one image of which nothing but a few numbers is said."""
    csv: Path | None = None
    """By default CSV in the output."""
    workers: int | None = None
    """By default one, in this process; on a cluster one per GPU, or one."""
    retry: bool = False
    """Also try again what was refused."""
    again: bool = False
    """Also compute again what is done."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of it."""

    rows: table.Rows
    """In the order in which the cases were found."""
    already: int
    """How many of them an earlier command had done."""
    seconds: float
    out: Path | None
    csv: Path | None

    @property
    def refused(self) -> int:
        """How many have no answer."""
        return sum(record.error is not None for _, record in self.rows)


def run(request: Request, say: Callable[[str], None]) -> Summary:
    """Answer for every case; `say` is told, a line at a time, what a person should see.

    Raises:
        ConfigError: places that hold nothing, options or models that do not fit, results that cannot be written.
        BundleError: a model that is altered, or does not answer as it did.
    """
    start = time.monotonic()
    folders = [absolute(folder) for folder in request.bundles]
    models = [bundle.load(folder) for folder in folders]
    facts = facts_of(models)
    windows = [window_of(model, request.window or {}) for model in models]
    if request.wanted.probabilities and not facts.dense:
        raise ConfigError([f"--probabilities: '{facts.name}' answers per image, and its table has them: leave it out"])
    if request.workers is not None and request.workers < 1:
        raise ConfigError([f"--workers: {request.workers} is below 1"])
    out = absolute(request.out or OUT)
    # Before a folder is made for results.
    table.image_files(request.places, out)
    lone = request.out is None and not facts.dense and len(request.places) == 1 and request.places[0].is_file()
    with _workplace(None if lone else out) as unpacked:
        found = cases.find([absolute(place) for place in request.places], facts.axes, out, unpacked)
        workers = None if lone else _workers(request)
        # A worker of Ray sees no GPU but its own.
        make = partial(Ensemble.load, folders, "cuda" if workers and workers.gpu else request.device, request.window)
        words = json.dumps([window.model_dump(mode="json") for window in windows]) if facts.dense else ""
        job = Job(make, facts, request.wanted, None if lone else out, words)
        items, done = _left(found, job, request)
        already = len(done)
        if already:
            say(f"{already} of {len(items)} were done")
        todo = [item for item in items if item.name not in done]
        progress = Progress(len(todo), say)
        for item, record in predict_cases(todo, job, workers):
            done[item.name] = record
            progress.step(record)
    rows = [(item.place, done[item.name]) for item in items]
    csv = request.csv or (None if job.out is None else job.out / CSV)
    if csv:
        table.write_csv(csv, rows)
    return Summary(rows, already, time.monotonic() - start, job.out, csv)


@contextmanager
def _workplace(out: Path | None) -> Iterator[Path]:
    """A folder for what is unpacked, in the output: workers on other machines see it."""
    if out is None:
        with TemporaryDirectory() as folder:
            yield Path(folder)
        return
    with records.alone_in(out), TemporaryDirectory(prefix=".", suffix=records.PART, dir=out) as folder:
        yield Path(folder)


def _left(found: Sequence[cases.Found], job: Job, request: Request) -> tuple[list[Item], dict[str, Record]]:
    """All cases, and the records of those that are done, by name."""
    items, done = [], {}
    for item, record in cases.items(found, job.out, reserved=(CSV,)):
        items.append(item)
        if record is None or job.out is None or request.again:
            continue
        if record.is_done(job.out / item.name, records.key_of(item.content, job.asked), request.retry):
            done[item.name] = record
    return items, done


def _workers(request: Request) -> Allotment | None:
    """Actors on Ray, or None for this process.

    Raises:
        ConfigError: there is no room for as many.
    """
    if request.workers == 1 or (request.workers is None and not cluster.joins_cluster()):
        return None
    return cluster.allot(ScalingSection(workers=request.workers or "auto", gpu=request.device.startswith("cuda")))


class Progress:
    """Says every PROGRESS_S seconds how far it is, and at once what was refused."""

    def __init__(self, total: int, say: Callable[[str], None]) -> None:
        self._total, self._say = total, say
        self._done = self._refused = 0
        self._start = self._said = time.monotonic()

    def step(self, record: Record) -> None:
        """One more case is finished."""
        self._done += 1
        self._refused += record.error is not None
        now = time.monotonic()
        if now - self._said < PROGRESS_S or self._done == self._total:
            return
        self._said = now
        rate = self._done / (now - self._start)
        refused = f", {self._refused} refused" if self._refused else ""
        left = clock((self._total - self._done) / rate)
        self._say(f"{self._done}/{self._total}  {rate:.3g} cases/s, {left} left{refused}")


def clock(seconds: float) -> str:
    """Hours, minutes and seconds as h:mm:ss, or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
