"""Isolated decoders of one ingress: files are read side by side, each in a process that may break."""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from medray.imaging.isolation.decoder import Decoder
from medray.types import Case


class Decoders:
    """At most `most` decoders; the first starts at once, others when they are needed."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._idle = deque([Decoder()])
        self._all = list(self._idle)
        self._free = asyncio.Semaphore(most)
        self._threads = ThreadPoolExecutor(most, thread_name_prefix="decoder")

    async def read(self, content: bytes) -> Case:
        """The case of an upload.

        Raises:
            InputError: it cannot be read.
        """
        await self._free.acquire()
        work = asyncio.get_running_loop().run_in_executor(self._threads, self._read, content)
        # Who waits may go; the decoder is free when it is done.
        work.add_done_callback(self._release)
        return await asyncio.shield(work)

    def _release(self, work: asyncio.Future[Case]) -> None:
        self._free.release()
        if not work.cancelled():
            work.exception()

    def _read(self, content: bytes) -> Case:
        try:
            decoder = self._idle.popleft()
        except IndexError:
            decoder = Decoder()
            self._all.append(decoder)
        try:
            return decoder.read(content)
        finally:
            self._idle.append(decoder)

    def close(self) -> None:
        """End the processes."""
        self._threads.shutdown(cancel_futures=True)
        for decoder in self._all:
            decoder.close()
