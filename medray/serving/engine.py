"""The models in memory: each answers its own requests, and all share one lane to the device."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from medray.config import ConfigError
from medray.inference.predictor import Predictor
from medray.sections.service import ServeSection
from medray.serving.lane import Lane
from medray.serving.messages import Answered, Asked, Entry
from medray.serving.problems import Refused
from medray.serving.resident import Question, Resident
from medray.types import Array, Case

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
SHARES = 10_000
"""Parts of all images that a canary's share is counted in."""


class Engine:
    """What a model replica is, without Ray. `serve` says which models are resident; safe from many tasks."""

    def __init__(self, cfg: ServeSection, device: str = "cpu") -> None:
        self._cfg, self._device = cfg, device
        self._lane = Lane(cfg.batching)
        self._threads = ThreadPoolExecutor(cfg.max_ongoing_requests + 2, thread_name_prefix="request")
        self._residents: dict[Entry, Resident] = {}
        """All that are in memory; changed under `_loading`."""
        self._served: dict[Entry, Resident] = {}
        """Those that answer, in their order; never changed, only replaced."""
        self._standby: set[Hashable] = set()
        self._loading = threading.Lock()

    def serve(self, lineup: Sequence[Entry], standby: Sequence[Entry] = ()) -> None:
        """Answer with these models from now on; what is not resident yet is loaded first, the rest is let go.

        `standby` is loaded by a thread while others answer, so that a later `serve` has it at hand.

        Raises:
            BundleError: one does not answer as it did when it was made; nothing has changed then.
        """
        with self._loading:
            before = self._residents
            try:
                for entry in lineup:
                    self._load(entry)
            except BaseException:
                self._residents = before
                raise
            self._standby = {_files(entry) for entry in standby}
            kept = {_files(entry) for entry in lineup} | self._standby
            self._served = {entry: self._residents[entry] for entry in lineup}
            self._residents = {entry: one for entry, one in self._residents.items() if _files(entry) in kept}
        if standby:
            threading.Thread(target=self._stand_by, args=(tuple(standby),), name="standby", daemon=True).start()

    def _stand_by(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            with self._loading:
                if _files(entry) in self._standby:
                    try:
                        self._load(entry)
                    except Exception:
                        # `serve` will say so to who asks for it.
                        logger.exception("%s does not stand by", entry.reference)

    def _load(self, entry: Entry) -> None:
        """Make an entry resident; one that changed its part alone keeps its predictor."""
        if entry in self._residents:
            return
        known = next((one for other, one in self._residents.items() if _files(other) == _files(entry)), None)
        resident = Resident(entry, known.predictor if known else Predictor(Path(entry.folder), self._device))
        if known is None:
            resident.warm()
        self._residents = {**self._residents, entry: resident}

    async def predict(self, asked: Asked, raw: Case) -> Answered:
        """The answer; a cancelled one ends at its next pass.

        Raises:
            InputError: the image is not what the model takes.
            Refused: no such model, method or class, or no room for it.
        """
        resident = self._resident(asked)
        question = Question(asked, raw)
        try:
            return await self._in_thread(lambda: self._answer(resident, question))
        except asyncio.CancelledError:
            question.stop.set()
            raise

    async def follow(self, asked: Asked, raw: Case) -> AsyncGenerator[float | Answered, None]:
        """Shares that are done, and at the end the answer; raises as `predict`."""
        resident = self._resident(asked)
        loop, shares = asyncio.get_running_loop(), asyncio.Queue[float]()
        question = Question(asked, raw, lambda share: _tell(loop, shares, share))
        work = asyncio.ensure_future(self._in_thread(lambda: self._answer(resident, question)))
        try:
            while not work.done():
                news = asyncio.ensure_future(shares.get())
                try:
                    await asyncio.wait([work, news], return_when=asyncio.FIRST_COMPLETED)
                    if news.done():
                        yield news.result()
                finally:
                    news.cancel()
            yield work.result()
        finally:
            question.stop.set()
            # Who has gone takes no exception.
            work.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def infer(self, model: str, images: Array) -> tuple[Entry, Array]:
        """Scores (B, K), or (B, K, *W), of network inputs (B, C, *W) float32, calibrated as those of `predict` are.

        Raises:
            Refused: no such model, or another shape than it takes.
        """
        resident = self._resident(Asked("", model, hashlib.sha256(images.tobytes()).hexdigest()))
        io = resident.predictor.bundle.io
        if images.shape[1:] != (io.in_channels, *io.size):
            takes = ["batch", io.in_channels, *io.size]
            raise Refused(422, "wrong_shape", f"the input has shape {list(images.shape)}", f"the model takes {takes}")
        most = self._most(resident)
        parts = torch.split(torch.from_numpy(np.require(images, requirements="W")), most)
        asks = [self._lane.ask(resident.key, resident.predictor.run, part, most) for part in parts]
        try:
            passed = [await asyncio.wrap_future(ask) for ask in asks]
        except torch.OutOfMemoryError:
            raise _no_room() from None
        found = np.concatenate([one.scores.float().cpu().numpy() for one in passed])
        return resident.entry, found if io.dense else resident.predictor.trust.calibrated(found)

    async def models(self) -> list[dict[str, Any]]:
        """What is served, the first by default."""
        return [{**one.about(), "default": place == 0} for place, one in enumerate(self._served.values())]

    async def card(self, model: str) -> dict[str, Any]:
        """What is known of a model.

        Raises:
            Refused: no such model.
        """
        resident = self._resident(Asked("", model), canary=False)
        return {**resident.about(), "card": dict(resident.predictor.bundle.card)}

    @property
    def waiting(self) -> int:
        """Images and windows that wait for a pass."""
        return self._lane.waiting

    def close(self) -> None:
        """End the lane."""
        self._lane.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _resident(self, asked: Asked, canary: bool = True) -> Resident:
        """Who answers."""
        if asked.shadow and self._lane.waiting:
            raise Refused(503, "busy", "the models are busy, and nobody waits for a shadow")
        name, _, version = asked.model.partition("@")
        served = self._served
        heard = [entry for entry in served if entry.part != "shadow" or asked.shadow]
        found = [entry for entry in heard if name in ("", entry.name)]
        if version:
            found = [entry for entry in found if version in (entry.version, entry.alias)]
        if not found:
            there = ", ".join(dict.fromkeys(f"{entry.name}@{entry.version}" for entry in heard)) or "none"
            raise Refused(404, "no_model", "no such model is served", f"there are: {there}")
        if version:
            return served[found[0]]
        alike = [entry for entry in found if entry.name == found[0].name and (canary or entry.part != "canary")]
        return served[_chosen(alike, asked.sticky)]

    def _most(self, resident: Resident) -> int:
        """Images per pass; a dense model's bundle says how many windows have room."""
        dense = resident.predictor.task.dense
        return resident.predictor.window.batch if dense else self._cfg.max_batch

    def _answer(self, resident: Resident, question: Question) -> Answered:
        """In a thread of its own."""
        shadow = next(
            (f"{entry.name}@{entry.version}" for entry in self._served if _shadows(entry, resident.entry)), ""
        )

        def run(images: Tensor) -> tuple[Tensor, Tensor | None]:
            question.go_on()
            passed = self._lane.ask(resident.key, resident.predictor.run, images, self._most(resident)).result()
            question.passed(passed, len(images))
            return passed.scores, passed.embedded

        try:
            return resident.answer(question, run, self._lane.turn, shadow)
        except ConfigError as error:
            # The command line's words for the same things.
            fact = str(error).replace("--method", "explain").replace("--target", "target").replace("--bundle", "model")
            raise Refused(422, "not_possible", fact, "ask for something else") from None
        except torch.OutOfMemoryError:
            raise _no_room() from None

    async def _in_thread(self, function: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)


def _no_room() -> Refused:
    return Refused(503, "out_of_memory", "the device has no room for this now", "try again", {"Retry-After": "5"})


def _tell(loop: asyncio.AbstractEventLoop, shares: asyncio.Queue[float], share: float) -> None:
    loop.call_soon_threadsafe(shares.put_nowait, share)


def _files(entry: Entry) -> Hashable:
    return entry.name, entry.version, entry.digest, entry.folder


def _shadows(entry: Entry, other: Entry) -> bool:
    return entry.part == "shadow" and entry.name == other.name and other.part == "serving"


def _chosen(alike: Sequence[Entry], sticky: str) -> Entry:
    """The version that answers for equal `sticky` words: a canary by its share, else who serves."""
    serving = next((entry for entry in alike if entry.part == "serving"), alike[0])
    canary = next((entry for entry in alike if entry.part == "canary"), None)
    if canary is None:
        return serving
    place = int.from_bytes(hashlib.sha256(sticky.encode()).digest()[:8], "big") % SHARES
    return canary if place < canary.share * SHARES else serving
