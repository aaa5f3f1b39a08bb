"""The MLflow record of a training while it runs: a thread follows the run's folder, and nobody waits for it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from medray.config import Experiment
from medray.pipeline.prepare import Prepared
from medray.tracking.line import HungUp, Line, reason
from medray.training import handover
from medray.training.folder import Interrupted
from medray.training.handover import End
from medray.training.progress import say

if TYPE_CHECKING:
    from medray.training.delivery import Delivered, Delivery

EVERY_S = 2.0
PATIENCE_S = 20.0
"""How long the end of a run waits for an answer of MLflow, or for MLflow to come back after it failed then."""
LAST_WORD_S = 4.0
"""How long one that failed waits for an answer; for one that was asked to stop, all that is done for MLflow."""
POLL_S = 0.02


def status_of(error: BaseException) -> str:
    """MLflow's word for a run that `error` broke off."""
    return "FAILED" if isinstance(error, Exception) and not isinstance(error, Interrupted) else "KILLED"


class LiveRecord:
    """Brings MLflow to where a run's folder is while it is being trained: see delivery.py.

    Args:
        experiment: the run.
        folder: the run's.
        prepared: its data; None for the whole of a cross-validation.
        parent: name of the folder of the whole that it is a part of.
    """

    def __init__(
        self, experiment: Experiment, folder: Path, prepared: Prepared | None = None, parent: str | None = None
    ) -> None:
        self._experiment = experiment
        self._folder = folder
        self._prepared = prepared
        self._parent = parent
        self._line = Line(self._connect)
        self._delivery: Delivery | None = None
        self._delivered: Delivered | None = None
        self._complained = False
        self._patience_s = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="mlflow", daemon=True)

    def open(self) -> None:
        """Note the start in the folder, and begin to follow it."""
        handover.begin(self._folder, self._prepared, self._parent)
        self._thread.start()

    def deliver(self, patience_s: float | None = None) -> Delivered | None:
        """Bring MLflow the end of the run, which its folder holds, and write into its result what came of it.

        Returns:
            What MLflow has; None where it did not answer, which is said: the folder keeps all for `medray sync`.
        """
        from medray.training.delivery import settle

        patience_s = PATIENCE_S if patience_s is None else patience_s
        # An outage that is known by now is not waited for.
        self._end(patience_s, 0.0 if self._complained else patience_s)
        delivered = self._delivered
        if delivered is None:
            say(f"MLflow does not have all of {self._folder.name}; when it answers: medray sync {self._folder.name}")
            return None
        if delivered.registered is not None:
            say(delivered.registered.verdict)
        settle(self._folder, delivered)
        return delivered

    def abandon(self, status: str, patience_s: float = LAST_WORD_S) -> None:
        """The run broke off as FAILED or KILLED: note it, and tell MLflow if it answers."""
        if self._over.is_set() or self._thread.ident is None:
            self._line.hang_up()
            return
        if not (self._folder / handover.END).is_file():
            handover.end(self._folder, End(status))
        # Whoever asked a run to stop soon kills what is still there, and its folder keeps all.
        self._end(patience_s, 0.0, patience_s if status == "KILLED" else math.inf)

    def _end(self, silence_s: float, patience_s: float, limit_s: float = math.inf) -> None:
        """Let the thread do the last; it is left where it is if MLflow is silent for so long, or all takes too long."""
        self._patience_s = patience_s
        self._over.set()
        deadline = time.monotonic() + limit_s
        while self._thread.is_alive():
            if self._line.silent(silence_s) or time.monotonic() > deadline:
                self._line.hang_up()
                return
            self._thread.join(POLL_S)

    def _follow(self) -> None:
        while not self._over.wait(EVERY_S):
            self._attempt(lambda delivery: delivery.catch_up())
        begun = time.monotonic()
        while not self._attempt(self._finish) and time.monotonic() - begun < self._patience_s:
            time.sleep(min(EVERY_S, self._patience_s))

    def _finish(self, delivery: Delivery) -> None:
        self._delivered = delivery.finish()

    def _attempt(self, act: Callable[[Delivery], object]) -> bool:
        """Whether it worked; it is said once that it does not, and once that it does again."""
        try:
            act(self._opened())
        except HungUp:
            return True
        except Exception as error:
            if not self._complained:
                say(f"MLflow cannot be written: {reason(error)}; the run goes on, all is kept in {self._folder}")
            self._complained = True
            return False
        if self._complained:
            say("MLflow can be written again; it has all that came in between")
        self._complained = False
        return True

    def _opened(self) -> Delivery:
        """Made in the thread: its imports take seconds."""
        if self._delivery is None:
            from medray.training.delivery import Delivery

            # The line stands for a client.
            self._delivery = Delivery(self._folder, self._line, self._experiment, self._prepared)
        return self._delivery

    def _connect(self) -> object:
        from medray.tracking.run import client

        return client(self._experiment.tracking.uri)
