"""A new champion takes over: fetched, checked in a process of its own, stood by in every replica, then asked."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from medray.sections.service import ServeSection
from medray.serving import app
from medray.serving.lineup import of_registry
from medray.serving.messages import Entry

logger = logging.getLogger(__name__)
CHECK_S = 300.0
"""A candidate that has not answered its golden input by then is not taken."""
STANDBY = 2.0
"""Replicas have this many times as long as the check took to load a candidate beside the old one."""


def _checked(folder: str) -> float:
    """Seconds that a bundle takes to load and to answer its golden input; raises where it does not."""
    from medray.inference.predictor import Predictor

    began = time.perf_counter()
    Predictor(Path(folder))
    return time.perf_counter() - began


def _in_own_process(folder: str) -> float:
    check = ray.remote(num_cpus=0, max_calls=1, max_retries=0)(_checked)
    return float(ray.get(check.remote(folder), timeout=CHECK_S))


class Service:
    """A service that runs, and what it serves; `change` is lossless, and changes nothing where it fails."""

    def __init__(self, lineup: Sequence[Entry], cfg: ServeSection, cpus: float, gpu: bool) -> None:
        self.lineup = tuple(lineup)
        self._cfg, self._cpus, self._gpu = cfg, cpus, gpu

    def deploy(self) -> None:
        """Start it."""
        app.deploy(self._application(self.lineup))

    def change(self, lineup: Sequence[Entry]) -> None:
        """Serve something else from now on.

        Raises:
            Exception: a candidate does not load or answer as it should, or replicas do not take it; the old ones
                answer on.
        """
        new = [entry for entry in lineup if entry.folder not in {one.folder for one in self.lineup}]
        seconds = [_in_own_process(entry.folder) for entry in new]
        try:
            if new:
                app.deploy(self._application(self.lineup, new))
                time.sleep(STANDBY * sum(seconds))
            app.deploy(self._application(lineup))
        except BaseException:
            app.deploy(self._application(self.lineup))
            raise
        self.lineup = tuple(lineup)

    def _application(self, lineup: Sequence[Entry], standby: Sequence[Entry] = ()) -> Any:
        return app.application(lineup, self._cfg, self._cpus, self._gpu, standby)


class Follower:
    """Has a service serve what an alias of the registry names."""

    def __init__(self, service: Service, alias: str, uri: str | None, say: Callable[[str], None]) -> None:
        self._service, self._alias, self._uri, self._say = service, alias, uri, say
        self._refused: set[str] = set()
        self._silent = False

    def look(self) -> None:
        """Look once; a registry that is down, or a candidate that is no good, changes nothing and is said once."""
        lineup = list(self._service.lineup)
        for place, entry in enumerate(lineup):
            if entry.part == "serving" and entry.alias:
                lineup[place] = self._newest(entry)
        # A canary or shadow that became the champion has nobody to stand beside.
        heard = {entry.reference for entry in lineup if entry.part == "serving"}
        lineup = [entry for entry in lineup if entry.part == "serving" or entry.reference not in heard]
        if tuple(lineup) == self._service.lineup:
            return
        names = ", ".join(entry.reference for entry in lineup)
        began = time.monotonic()
        try:
            self._service.change(lineup)
        except Exception as error:
            self._refused |= {entry.digest for entry in lineup if entry not in self._service.lineup}
            logger.debug("a candidate was refused", exc_info=error)
            old = ", ".join(entry.reference for entry in self._service.lineup)
            self._say(f"{names} is not taken ({_short(error)}); {old} answers on")
        else:
            self._say(f"{names} answers now, {time.monotonic() - began:.1f} s after it was found")

    def _newest(self, entry: Entry) -> Entry:
        """What the alias names now; the same where it cannot be told, or was refused."""
        try:
            found = of_registry(f"{entry.name}@{self._alias}", self._uri, say=None)
        except Exception as error:
            if not self._silent:
                self._say(f"the registry does not answer ({type(error).__name__}); {entry.reference} answers on")
            self._silent = True
            return entry
        self._silent = False
        if found.digest in self._refused or (found.version, found.digest) == (entry.version, entry.digest):
            return entry
        return replace(found, alias=self._alias)


def _short(error: BaseException) -> str:
    """The last line of an error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
