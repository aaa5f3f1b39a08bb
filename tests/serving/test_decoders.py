"""Decoders of an ingress: side by side, no more than said, and each is free again whatever becomes of who waits."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from medray.imaging.writer import png_bytes
from medray.serving import decoders
from medray.serving.decoders import Decoders
from medray.types import Case, InputError

IMAGE = np.arange(64, dtype=np.uint8).reshape(8, 8)
PNG = png_bytes(IMAGE)


class Fake:
    """A decoder that holds its file until it may go on, and counts how many are busy."""

    made: list[Fake]
    busy = most = 0
    lock = threading.Lock()
    go_on: threading.Event

    def __init__(self) -> None:
        self.closed = self.mine = False
        Fake.made.append(self)

    def read(self, content: bytes) -> Any:
        with Fake.lock:
            assert not self.mine, "two files at once in one decoder"
            self.mine = True
            Fake.busy += 1
            Fake.most = max(Fake.most, Fake.busy)
        try:
            assert Fake.go_on.wait(10)
            if content.startswith(b"bad"):
                raise InputError("corrupt", "bad")
            if content.startswith(b"broken"):
                raise RuntimeError("the worker does not start")
            return content
        finally:
            with Fake.lock:
                self.mine = False
                Fake.busy -= 1

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    Fake.made, Fake.busy, Fake.most, Fake.go_on = [], 0, 0, threading.Event()
    monkeypatch.setattr(decoders, "Decoder", Fake)
    return Fake


async def until(true: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < 10
        await asyncio.sleep(0.005)


def test_files_are_decoded_side_by_side_and_no_more_than_said(fake: type[Fake]) -> None:
    async def many() -> list[Any]:
        pool = Decoders(3)
        assert len(fake.made) == 1, "the first starts before it is needed"
        tasks = [asyncio.ensure_future(pool.read(b"%d" % number)) for number in range(20)]
        await until(lambda: fake.busy == 3)
        await asyncio.sleep(0.05)
        fake.go_on.set()
        found = await asyncio.gather(*tasks)
        pool.close()
        return found

    assert asyncio.run(many()) == [b"%d" % number for number in range(20)], "everybody has their own"
    assert (fake.most, len(fake.made)) == (3, 3)
    assert all(one.closed for one in fake.made)


def test_others_start_only_when_they_are_needed(fake: type[Fake]) -> None:
    fake.go_on.set()

    async def one_by_one() -> None:
        pool = Decoders(4)
        for _ in range(10):
            await pool.read(b"file")
        pool.close()

    asyncio.run(one_by_one())
    assert len(fake.made) == 1


@pytest.mark.parametrize("content", [b"bad", b"broken"])
def test_a_file_that_fails_frees_its_decoder(fake: type[Fake], content: bytes) -> None:
    fake.go_on.set()

    async def often() -> None:
        pool = Decoders(1)
        for _ in range(5):
            with pytest.raises((InputError, RuntimeError)):
                await pool.read(content)
        assert await asyncio.wait_for(pool.read(b"good"), 5) == b"good"
        pool.close()

    asyncio.run(often())


def test_who_goes_frees_nothing_that_is_still_at_work(fake: type[Fake]) -> None:
    """Otherwise clients that leave would start as many decoders as they like."""

    async def leave() -> None:
        pool = Decoders(2)
        tasks = [asyncio.ensure_future(pool.read(b"bad %d" % number)) for number in range(40)]
        await until(lambda: fake.busy == 2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        waiting = asyncio.ensure_future(pool.read(b"next"))
        await asyncio.sleep(0.05)
        assert (fake.busy, waiting.done()) == (2, False)
        fake.go_on.set()
        assert await asyncio.wait_for(waiting, 5) == b"next"
        assert fake.most == 2
        found = await asyncio.wait_for(asyncio.gather(pool.read(b"x"), pool.read(b"y")), 5)
        assert found == [b"x", b"y"], "both are free again"
        pool.close()

    asyncio.run(leave())


def test_a_decoder_that_cannot_start_takes_no_place(fake: type[Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    async def scarce() -> None:
        pool = Decoders(2)
        first = asyncio.ensure_future(pool.read(b"first"))
        await until(lambda: fake.busy == 1)

        def fail() -> Fake:
            raise OSError("too many open files")

        monkeypatch.setattr(decoders, "Decoder", fail)
        for _ in range(3):
            with pytest.raises(OSError, match="too many"):
                await asyncio.wait_for(pool.read(b"second"), 5)
        fake.go_on.set()
        assert await first == b"first"
        assert await asyncio.wait_for(pool.read(b"third"), 5) == b"third"
        pool.close()

    asyncio.run(scarce())


def test_real_processes_read_refuse_and_come_back_from_death() -> None:
    async def live() -> None:
        pool = Decoders(2)
        try:
            both: list[Case] = await asyncio.gather(pool.read(PNG), pool.read(PNG))
            assert all(np.array_equal(case.image[0], IMAGE) for case in both)
            for content in (b"", b"no image", PNG[:50]):
                with pytest.raises(InputError):
                    await pool.read(content)
            for one in pool._all:
                os.kill(one.worker_pid, signal.SIGKILL)
            again = await asyncio.gather(pool.read(PNG), pool.read(PNG), return_exceptions=True)
            assert all(isinstance(found, Case | InputError) for found in again)
            assert np.array_equal((await pool.read(PNG)).image[0], IMAGE)
            pids = [one.worker_pid for one in pool._all]
        finally:
            pool.close()
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)

    asyncio.run(live())
