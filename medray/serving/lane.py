"""The lane to one device: forward passes wait for their turn, and those of several requests share batches.

Asks of one network and shape stand in a queue, from which a batch takes one image of each ask in turn; queues take
turns too. So whoever comes waits for the pass in flight and, of as many networks as are busy, one each, however many
windows a volume has left.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from medray.inference.predictor import Run

Result = TypeVar("Result")


class Passed(NamedTuple):
    """What came of an ask."""

    scores: Tensor
    """(b, K), or (b, K, *W)."""
    embedded: Tensor | None
    """(b, F)."""
    queued_s: float
    """From the ask to its first pass."""
    forward_s: float
    """Of the passes that it had images in."""
    batch: int
    """Images in the largest of them."""


@dataclass(slots=True, eq=False)
class _Ask:
    run: Run
    images: Tensor
    most: int
    asked: float
    done: Future[Passed]
    next: int = 0
    """The first image that is in no pass yet."""
    started: float = 0.0
    forward_s: float = 0.0
    batch: int = 0
    scores: list[Tensor] = field(default_factory=list)
    embedded: list[Tensor] = field(default_factory=list)


Picks = list[tuple[_Ask, int]]
"""Images of a batch: of which ask, and which."""


class Lane:
    """A thread that has the device to itself; safe to ask from many threads. `close` ends it."""

    def __init__(self, share: bool = True) -> None:
        """`share`: whether a batch may hold images of several asks; without, each ask is a pass of its own."""
        self._share = share
        self._queues: OrderedDict[Hashable, deque[_Ask]] = OrderedDict()
        self._last: Hashable = None
        """Whose pass is in flight: it stands behind all that come meanwhile."""
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="lane", daemon=True)
        self._thread.start()

    def ask(self, network: Hashable, run: Run, images: Tensor, most: int) -> Future[Passed]:
        """Have `run` answer images (b, C, *W).

        Args:
            network: what may share a pass with what, together with the images' shape.
            run: answers a batch; what it raises for an image alone is raised to who asked, and to nobody else.
            images: as `run` takes them.
            most: images per pass.
        """
        ask = _Ask(run, images, max(most, 1), time.perf_counter(), Future())
        key = (network, tuple(images.shape[1:]), images.dtype)
        with self._changed:
            if self._closed:
                raise RuntimeError("the lane is closed")
            self._queues.setdefault(key, deque()).append(ask)
            self._changed.notify()
        return ask.done

    def turn(self, function: Callable[[], Result]) -> Result:
        """What `function` gives when it has had its turn on the device; waits for it."""
        found: list[Result] = []

        def run(nothing: Tensor) -> tuple[Tensor, None]:
            found.append(function())
            return nothing, None

        self.ask(run, run, torch.zeros(1), 1).result()
        return found[0]

    @property
    def waiting(self) -> int:
        """Images that are in no pass yet."""
        with self._changed:
            return sum(len(ask.images) - ask.next for queue in self._queues.values() for ask in queue)

    def close(self) -> None:
        """End after the pass in flight; what waits is cancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while picks := self._take():
            self._pass(picks)
            # An idle lane would keep the image and, by `run`, a model that is served no longer.
            del picks

    def _take(self) -> Picks:
        """The next batch, once there is one; none when the lane is closed."""
        with self._changed:
            while True:
                if self._closed:
                    for queue in self._queues.values():
                        for ask in queue:
                            if not ask.done.cancel():
                                ask.done.set_exception(RuntimeError("the lane is closed"))
                    return []
                if self._last in self._queues:
                    self._queues.move_to_end(self._last)
                self._last = None
                if self._queues:
                    key, queue = next(iter(self._queues.items()))
                    picks = self._share_out(queue) if self._share else self._whole(queue)
                    if queue:
                        self._last = key
                    else:
                        del self._queues[key]
                    if picks:
                        return picks
                else:
                    self._changed.wait()

    @staticmethod
    def _share_out(queue: deque[_Ask]) -> Picks:
        """One image of each ask in turn, until the batch is full or the queue empty."""
        picks: Picks = []
        most = queue[0].most
        while queue and len(picks) < (most := min(most, queue[0].most)):
            ask = queue.popleft()
            if ask.next == 0 and not ask.done.set_running_or_notify_cancel():
                continue
            picks.append((ask, ask.next))
            ask.next += 1
            if ask.next < len(ask.images):
                queue.append(ask)
        return picks

    @staticmethod
    def _whole(queue: deque[_Ask]) -> Picks:
        ask = queue.popleft()
        if not ask.done.set_running_or_notify_cancel():
            return []
        ask.next = len(ask.images)
        return [(ask, place) for place in range(len(ask.images))]

    def _pass(self, picks: Picks) -> None:
        """Run a batch and hand on what came of it; where it fails, each ask by itself, so that only the cause does."""
        asks = list(dict.fromkeys(ask for ask, _ in picks))
        started = time.perf_counter()
        try:
            scores, embedded = asks[0].run(_batch(picks))
            if len(scores) != len(picks):
                raise ValueError(f"{len(scores)} answers to {len(picks)} images")
        except BaseException as error:
            if len(asks) == 1:
                self._fail(asks[0], error)
                return
            for ask in asks:
                self._pass([pick for pick in picks if pick[0] is ask])
            return
        spent = time.perf_counter() - started
        for ask in asks:
            ask.started = ask.started or started
            ask.forward_s += spent
            ask.batch = max(ask.batch, len(picks))
        if len(asks) == 1:
            self._hand_on(asks[0], scores, embedded)
        else:
            for place, (ask, _) in enumerate(picks):
                one = slice(place, place + 1)
                self._hand_on(ask, scores[one], None if embedded is None else embedded[one])

    def _hand_on(self, ask: _Ask, scores: Tensor, embedded: Tensor | None) -> None:
        try:
            _give(ask, scores, embedded)
        except BaseException as error:  # such as no memory for the whole answer: the lane goes on
            self._fail(ask, error)

    def _fail(self, ask: _Ask, error: BaseException) -> None:
        """Tell who asked; images that still wait are taken out."""
        with self._changed:
            for queue in self._queues.values():
                if ask in queue:
                    queue.remove(ask)
            for key in [key for key, queue in self._queues.items() if not queue]:
                del self._queues[key]
        if not ask.done.done():
            ask.done.set_exception(error)


def _batch(picks: Sequence[tuple[_Ask, int]]) -> Tensor:
    """(B, C, *W) the images of a batch; those of one ask as they lie there."""
    ask, first = picks[0]
    if all(other is ask for other, _ in picks):
        return ask.images[first : first + len(picks)]
    return torch.stack([ask.images[place] for ask, place in picks])


def _give(ask: _Ask, scores: Tensor, embedded: Tensor | None) -> None:
    """Add the answers of an ask's next images; the last ones are the result."""
    ask.scores.append(scores)
    if embedded is not None:
        ask.embedded.append(embedded)
    if sum(map(len, ask.scores)) < len(ask.images) or ask.done.done():
        return
    found = ask.scores[0] if len(ask.scores) == 1 else torch.cat(ask.scores)
    features = None
    if ask.embedded:
        features = ask.embedded[0] if len(ask.embedded) == 1 else torch.cat(ask.embedded)
    ask.done.set_result(Passed(found, features, ask.started - ask.asked, ask.forward_s, ask.batch))
