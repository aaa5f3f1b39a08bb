"""A line to MLflow: a client that tells for how long an answer has been waited for, and that can be hung up."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

Answer = TypeVar("Answer")

CONNECT = "connect"
PATIENCE_S = {CONNECT: 60.0, "log_artifacts": 600.0}
"""How long some questions may take at least: the embedded database makes its tables first, and models are large."""


class HungUp(ConnectionError):
    """Nobody waits for the answer any more."""


class Line:
    """Stands for an MlflowClient, one thread's, which is made with the first question."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._client: Any = None
        self._asked: tuple[str, float] | None = None
        self._hung_up = False

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._connected(), name)
        return partial(self._call, name, found) if callable(found) else found

    def _connected(self) -> Any:
        if self._client is None:
            self._client = self._ask(CONNECT, self._connect)
        return self._client

    def _call(self, name: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        return self._ask(name, lambda: function(*arguments, **named))

    def _ask(self, name: str, question: Callable[[], Answer]) -> Answer:
        if self._hung_up:
            raise HungUp("nobody waits for MLflow any more")
        self._asked = (name, time.monotonic())
        try:
            return question()
        finally:
            self._asked = None

    def silent(self, patience_s: float) -> bool:
        """Whether a question has had no answer for longer than that."""
        asked = self._asked
        if asked is None:
            return False
        name, since = asked
        return time.monotonic() - since > max(patience_s, PATIENCE_S.get(name, 0.0))

    def hang_up(self) -> None:
        """Ask nothing more: what is being asked now may still be answered, the next question raises HungUp."""
        self._hung_up = True


def reason(error: BaseException) -> str:
    """Why something failed, in one line; of a request that got no answer the first cause alone."""
    request, failed, _ = str(error).partition(" failed with exception ")
    first = error
    while failed and (first.__cause__ or first.__context__):
        first = first.__cause__ or first.__context__ or first
    return " ".join((f"{request}: {first}" if failed else str(error)).split())[:300]
