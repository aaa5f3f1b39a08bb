"""How a verb becomes a process: one JSON line on stdout, everything else on stderr, an exit code.

Exit codes: 0 well, 1 the run failed, 2 usage or config, 3 the data check refused, 4 a gate was not met,
5 finished with some cases refused, 75 interrupted and resumable, 130 Ctrl-C.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

import cyclopts

from medray.cluster import prepare_environment
from medray.config import ConfigError

GOES_ON = "a training, a search or a prediction goes on with the same command"
GOODBYE_S = 3.0
"""How long Ray has for an orderly end."""
FAILED, USAGE, DATA, PARTIAL, RESUMABLE, INTERRUPTED = 1, 2, 3, 5, 75, 130


class Result(dict[str, Any]):
    """What a verb returns: the last line of stdout. `exit_code` is the process's."""

    exit_code = 0


class Terminated(BaseException):
    """SIGTERM: what is running is closed in good order, as with Ctrl-C."""


def _terminate(*_: object) -> None:
    # Once Ray is loaded its own handler runs first and sets an alarm that aborts the process 3 s later.
    signal.alarm(0)
    raise Terminated


def run(app: cyclopts.App, arguments: list[str]) -> None:
    """Run a command line to its end, which is the process's."""
    prepare_environment()
    signal.signal(signal.SIGTERM, _terminate)
    with _clean_stdout() as stdout:
        code = answer(app, arguments, stdout)
    if "ray" in sys.modules:
        # What is left of a cluster of our own ends with this process.
        leaving = threading.Thread(target=sys.modules["ray"].shutdown, daemon=True)
        leaving.start()
        leaving.join(GOODBYE_S)
    # Threads that libraries leave behind could hold the process for seconds; all is written and closed by now.
    sys.stderr.flush()
    os._exit(code)


def answer(app: cyclopts.App, arguments: list[str], stdout: TextIO) -> int:
    """Run one verb; a mistake of the user's is a line on stderr and a code, never a traceback."""
    try:
        result = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except (ConfigError, cyclopts.CycloptsError) as error:
        return _complain(str(error), USAGE)
    except KeyboardInterrupt:
        return _complain(f"interrupted; {GOES_ON}", INTERRUPTED)
    except Terminated:
        return _complain(f"terminated; {GOES_ON}", RESUMABLE)
    except Exception as error:
        code = _codes().get(type(error).__name__)
        if code is None:
            raise
        return _complain(str(error), code)
    if isinstance(result, Result):
        stdout.write(json.dumps(result) + "\n")
        stdout.flush()
        return result.exit_code
    if isinstance(result, str):
        stdout.write(result if result.endswith("\n") else result + "\n")
        stdout.flush()
    return 0


def _codes() -> Mapping[str, int]:
    """Exit codes of the errors that say all a user needs; anything else is a fault of medray's, with its traceback.

    By name, since importing the classes would import the libraries of their rooms.
    """
    return {
        "DataRefused": DATA,
        "InputError": DATA,
        "StoreError": FAILED,
        "TrainingFailed": FAILED,
        "NonFiniteLoss": FAILED,
        "BundleError": FAILED,
        "RegistryError": USAGE,
        "OutOfMemory": FAILED,
        "StorageError": RESUMABLE,
        "Interrupted": RESUMABLE,
        "RunNotFound": USAGE,
        "RunLocked": USAGE,
        "TrackingFailed": FAILED,
    }


def _complain(message: str, code: int) -> int:
    sys.stderr.write(f"medray: {message}\n")
    return code


@contextlib.contextmanager
def _clean_stdout() -> Iterator[TextIO]:
    """The real stdout for the result; whatever else writes to stdout, in any thread or library, lands on stderr."""
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as stdout:
        os.dup2(2, 1)
        try:
            yield stdout
        finally:
            sys.stdout.flush()
