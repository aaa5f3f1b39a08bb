"""Decoding of foreign bytes in a process of its own: a crash, a hang or a bomb costs one file and not the service.

The worker is where hostile bytes run, so nothing that it says is unpickled or believed: see `exchange`. What it gives
up, see `confinement`.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from medray.imaging.isolation import confinement, exchange
from medray.imaging.limits import DEFAULT_LIMITS, Limits
from medray.imaging.reader import read
from medray.types import Case, InputError, Source

logger = logging.getLogger(__name__)

START_S = 120.0
"""A worker that has not started by then, on a busy machine, never will."""
PATIENCE_S = 600.0
"""CPU time of one file where no client waits."""
FAREWELL_S = 2.0
"""How long a worker whose link is down may take to end by itself, so that its exit status tells why."""
OUT_OF_MEMORY = 77
"""Exit status after a failed allocation: what it was in the middle of may be half done."""
LIBRARIES_BYTES = 256 << 20
"""Address space for libraries, of which all decoders' take half: one that cannot be mapped would end the process."""
KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "TMPDIR", "TZ")
"""Of the environment: the keys and passwords in it are no business of a decoder."""
HINT = "the file is damaged, or made to do harm: export it again"


class Decoder:
    """`medray.imaging.reader.read` in one worker process with limits; a context manager, safe to share by threads.

    Args:
        memory_bytes: address space that one file may take over what the worker has mapped before it (and
            LIBRARIES_BYTES for the libraries that the first file of a kind loads).
        cpu_s: CPU time of one file (to the next whole second).
        deadline_s: wall-clock time of one file, from its turn.
        limits: as for `reader.read`.

    Files are decoded one after another. A worker that fails is replaced, and the next file works again.
    """

    def __init__(
        self,
        memory_bytes: int = 4 << 30,
        cpu_s: float = 20.0,
        deadline_s: float = 60.0,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._budget = {"memory_bytes": memory_bytes, "cpu_s": cpu_s, "limits": asdict(limits)}
        self._deadline_s = deadline_s
        self._turn = threading.Lock()
        self._closed = False
        self._worker = _Worker()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def worker_pid(self) -> int:
        """The process that decodes the next file, unless it ends before."""
        return self._worker.process.pid

    def close(self) -> None:
        """End the worker, once the file that it decodes is done."""
        with self._turn:
            self._closed = True
            self._worker.stop(FAREWELL_S)

    def read(self, source: Source | str) -> Case:
        """The Case of `source` as `reader.read` gives it; its image is private and writable, and freed as any array is.

        Raises InputError: what `reader.read` raises, and decoder_timeout (over deadline_s or cpu_s),
        too_large_decompressed (over memory_bytes) and decoder_crashed (all else that ended the worker).
        Raises RuntimeError where the decoder is closed or no worker can be started.
        """
        with self._turn:
            if self._closed:
                raise RuntimeError("the decoder is closed")
            # One that ended between files, killed from outside, is not the next file's fault.
            if self._worker.process.poll() is not None:
                self._replace()
            try:
                return self._worker.ask(source, self._budget, self._deadline_s)
            except InputError:
                raise
            except ConnectionError as error:
                raise self._refusal(error, self._replace(FAREWELL_S)) from None
            except TimeoutError as error:
                raise self._refusal(error, self._replace()) from None
            except BaseException:
                # An answer that comes later would be taken for the next file's.
                self._replace()
                raise

    def _replace(self, patience_s: float = 0.0) -> int:
        """The exit status of the old worker."""
        status = self._worker.stop(patience_s)
        self._worker = _Worker()
        return status

    def _refusal(self, error: OSError, status: int) -> InputError:
        memory_bytes, cpu_s = self._budget["memory_bytes"], self._budget["cpu_s"]
        if isinstance(error, TimeoutError):
            return InputError("decoder_timeout", f"decoding took more than {self._deadline_s:g} s", HINT)
        if status == -signal.SIGXCPU:
            return InputError("decoder_timeout", f"decoding took more than {cpu_s:g} s of CPU time", HINT)
        if status == OUT_OF_MEMORY:
            return InputError("too_large_decompressed", f"decoding takes more than {memory_bytes} bytes of memory")
        return InputError("decoder_crashed", "the decoder broke down over this file", HINT)


def read_isolated(source: Source) -> Case:
    """As `Decoder.read`, by the decoder of this process, which starts with the first call and is kept.

    Nobody waits for the answer as for a service's: the longest series has the time that it takes.
    """
    return _own(os.getpid()).read(source)


@lru_cache(maxsize=1)
def _own(_process: int) -> Decoder:
    decoder = Decoder(cpu_s=PATIENCE_S, deadline_s=2 * PATIENCE_S)
    atexit.register(decoder.close)
    return decoder


class _Worker:
    """A clean interpreter and not a fork: the parent may hold threads, CUDA and Ray."""

    def __init__(self) -> None:
        self.link, theirs = socket.socketpair()
        self.bulk = exchange.Bulk()
        self.ready = False
        kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        # A pool of BLAS threads would only map memory.
        settings = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
        lifeline, self.lifeline = os.pipe()
        shared = [theirs.fileno(), self.bulk.file, lifeline]
        with theirs, os.fdopen(lifeline):
            self.process = subprocess.Popen(
                # -P: a json.py in the working folder is not the standard library's.
                [sys.executable, "-P", "-m", "medray.imaging.isolation.decoder", *map(str, shared)],
                pass_fds=shared,
                env={**kept, **settings},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # Decoders print what they find in a file.
                stderr=subprocess.DEVNULL,
                # Out of the terminal's group: Ctrl-C is the parent's to handle.
                process_group=0,
            )

    def ask(self, source: Source | str, budget: dict[str, Any], deadline_s: float) -> Case:
        """Raises InputError, TimeoutError, or ConnectionError where the worker is gone or talks nonsense."""
        self._wait_until_ready()
        until = time.monotonic() + deadline_s
        try:
            words = exchange.question(source, self.bulk)
            self.link.settimeout(deadline_s)
            exchange.send(self.link, {**words, **budget})
            reply = exchange.receive(self.link, exchange.MAX_ANSWER_BYTES, until)
            return exchange.case_of(reply, self.bulk, budget["memory_bytes"])
        finally:
            self.bulk.shrink()

    def _wait_until_ready(self) -> None:
        if self.ready:
            return
        try:
            said = exchange.receive(self.link, exchange.MAX_ANSWER_BYTES, time.monotonic() + START_S)
        except (TimeoutError, ConnectionError):
            raise RuntimeError(
                "the decoder's worker does not start; to see why, run: python -m medray.imaging.isolation.decoder"
            ) from None
        self.ready = True
        if not said.get("confined"):
            logger.warning("decoding is limited, but not confined: this Linux has no Landlock (5.13)")

    def stop(self, patience_s: float) -> int:
        """Close the link, which is the sign to end, and give the exit status; kill what has not ended in time."""
        self.link.close()
        self.bulk.close()
        try:
            return self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            if self.lifeline >= 0:
                os.close(self.lifeline)
            self.lifeline = -1


def main(link: socket.socket, bulk: exchange.Bulk, lifeline: int) -> None:
    """Decode what the parent asks for until it closes its end, or is no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Nothing is ever written to this pipe: all that can happen on it is the end of the parent, and then SIGIO ends
    # this process, whatever it is busy with. Not PR_SET_PDEATHSIG, which follows the thread that started the worker:
    # servers let idle threads end.
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    exchange.send(link, {"confined": confinement.give_up_rights()})
    while True:
        try:
            words = exchange.receive(link, exchange.MAX_MESSAGE_BYTES)
        except ConnectionError:
            return
        exchange.send(link, _decode(words, bulk))


def _decode(words: dict[str, Any], bulk: exchange.Bulk) -> dict[str, Any]:
    """The answer; the voxels are in `bulk`."""
    confinement.allow(words["memory_bytes"] + LIBRARIES_BYTES, words["cpu_s"])
    try:
        return exchange.answer(read(exchange.source_of(words, bulk), Limits(**words["limits"])), bulk)
    except InputError as error:
        return exchange.refusal(error)
    except Exception as error:
        if _is_lack_of_memory(error):
            os._exit(OUT_OF_MEMORY)
        # A mistake of the reader; its message may hold what is in the file, its type does not.
        return exchange.refusal(InputError("decoder_crashed", f"the decoder failed with {type(error).__name__}", HINT))


def _is_lack_of_memory(error: Exception) -> bool:
    """Whether an allocation failed or a memory file met its limit."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.EFBIG))


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), exchange.Bulk(int(sys.argv[2])), int(sys.argv[3]))
