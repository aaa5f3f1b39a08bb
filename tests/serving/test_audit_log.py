"""The audit: what is kept of an event, which edits are found, and what a crash or a full disk leaves."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medray.config import ConfigError
from medray.serving import audit, chain
from medray.serving.audit import AuditLog, Verdict, cleaned, verify

EVENT: dict[str, Any] = {
    "time": "2026-11-25T23:00:00.123Z",
    "request": "0123456789abcdef" * 2,
    "caller": "ward-3",
    "route": "/v1/predict",
    "status": 200,
    "code": "",
    "outcome": "answered",
    "input": "ab" * 32,
    "model": "phantom/3",
    "digest": "cd" * 32,
    "timings_ms": {"read": 1.23456, "total": 20},
    "batch": 4,
}
SIGNALS = {"signals": {"scores": {"malignant": 0.9}, "labels": ["malignant"], "facts": {"p01": 1.0}}}


class Clock:
    """A day that a test moves on."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 25, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


def events(count: int, begin: int = 0) -> list[dict[str, Any]]:
    return [{**EVENT, **SIGNALS, "request": f"{begin + number:032x}"} for number in range(count)]


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("audit-*.jsonl"))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in files(folder) for line in file.read_text().splitlines()]


def requests(folder: Path) -> list[int]:
    return [int(line["request"], 16) for line in lines(folder) if "request" in line]


def notes(folder: Path) -> list[str]:
    return [line["note"] for line in lines(folder) if "note" in line]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def log(folder: Path, clock: Clock) -> Iterator[AuditLog]:
    log = AuditLog(folder, 400, clock)
    yield log
    log.close()


def test_lines_and_their_chain(log: AuditLog, folder: Path) -> None:
    log.append(events(2))
    log.append(events(1, 2))
    log.append([])
    (file,) = files(folder)
    assert file.name == "audit-2026-11-25.jsonl"
    assert file.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    opened, *kept = lines(folder)
    assert (opened["note"], opened["day"], opened["prev"]) == ("opened", "2026-11-25", "0" * 64)
    assert [line["seq"] for line in kept] == [2, 3, 4]
    assert kept[0].keys() == EVENT.keys() | {"seq", "prev"}
    assert kept[0]["timings_ms"] == {"read": 1.235, "total": 20.0}
    assert b"malignant" not in file.read_bytes()
    raw = file.read_bytes().splitlines()
    assert [line["prev"] for line in kept] == [chain.sha256(line) for line in raw[:-1]]
    assert json.loads((folder / "head.json").read_text()) == {"seq": 4, "hash": chain.sha256(raw[-1])}
    assert verify(folder) == Verdict(4, "2026-11-25T12:00:00Z", EVENT["time"], ())


def test_nothing_but_the_list_is_kept() -> None:
    assert cleaned({}) == {}
    assert cleaned({**EVENT, **SIGNALS}) == {**EVENT, "timings_ms": {"read": 1.235, "total": 20.0}}
    kept = cleaned({**EVENT, "patient": "Doe^Jane", "Doe^Jane": 1, "note": "opened", "seq": 7, "prev": "x"})
    assert kept == {**cleaned(EVENT), "unknown": 5}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("time", "2026-11-25 23:00"),
        ("time", "٢٠٢٦-11-25T23:00:00Z"),
        ("time", None),
        ("request", "Doe^Jane"),
        ("request", EVENT["request"] + "\n"),
        ("caller", "anna@clinic.example"),
        ("caller", "a" * 81),
        ("caller", "Jane Doe"),
        ("route", "/v1/results/Jane Doe"),
        ("route", "/" * 200),
        ("route", "/v1?name=x"),
        ("status", True),
        ("status", 200.0),
        ("status", 20),
        ("status", "200"),
        ("code", "Patient Doe"),
        ("outcome", "odd"),
        ("input", "ab"),
        ("model", "../x y"),
        ("model", b"phantom/3"),
        ("digest", "xyz"),
        ("batch", -1),
        ("batch", None),
        ("timings_ms", {"Jane": 1.0}),
        ("timings_ms", {"total": float("nan")}),
        ("timings_ms", {"total": float("inf")}),
        ("timings_ms", {"total": -1}),
        ("timings_ms", {"total": True}),
        ("timings_ms", {"total": "1"}),
        ("timings_ms", {1: 1}),
        ("timings_ms", [1]),
        ("timings_ms", None),
    ],
)
def test_a_field_of_another_kind_is_left_out_and_named(field: str, value: object) -> None:
    expected = {name: kept for name, kept in cleaned(EVENT).items() if name != field}
    assert cleaned({**EVENT, field: value}) == {**expected, "left_out": [field]}


def test_empty_fields_of_a_refused_request() -> None:
    refused = {**EVENT, "status": 401, "caller": "", "code": "no_key", "outcome": "refused"}
    refused |= {"input": "", "model": "", "digest": "", "timings_ms": {}}
    assert cleaned(refused) == refused


def test_one_writer(log: AuditLog, folder: Path) -> None:
    with pytest.raises(ConfigError, match="another service"):
        AuditLog(folder, 400)
    log.close()
    log.close()
    with pytest.raises(OSError, match="closed"):
        log.append(events(1))
    AuditLog(folder, 400).close()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        AuditLog(tmp_path / "file" / "audit", 400)


def test_threads_do_not_mix(log: AuditLog, folder: Path) -> None:
    threads = [threading.Thread(target=lambda: [log.append(events(3)) for _ in range(10)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    verdict = verify(folder)
    assert (verdict.lines, verdict.faults) == (121, ())


def test_a_file_a_day_and_a_clock_that_goes_back(log: AuditLog, folder: Path, clock: Clock) -> None:
    log.append(events(1))
    clock.now += timedelta(days=2)
    log.append(events(1, 1))
    clock.now -= timedelta(days=1)
    log.append(events(1, 2))
    assert [file.name for file in files(folder)] == ["audit-2026-11-25.jsonl", "audit-2026-11-27.jsonl"]
    assert requests(folder) == [0, 1, 2]
    log.close()
    again = AuditLog(folder, 400, clock)
    again.append(events(1, 3))
    again.close()
    assert requests(folder) == [0, 1, 2, 3]
    assert verify(folder).faults == ()


# What was edited.


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record of three days."""
    folder, clock = tmp_path_factory.mktemp("whole") / "audit", Clock()
    log = AuditLog(folder, 400, clock)
    for day in range(3):
        log.append(events(3, 3 * day))
        clock.now += timedelta(days=1)
    log.close()
    assert verify(folder).faults == ()
    return folder


@pytest.fixture(scope="module")
def edited(whole: Path) -> Path:
    """The same, to be edited; what a test leaves there does not count."""
    return whole.with_name("edited")


def copied(whole: Path, edited: Path) -> list[Path]:
    shutil.rmtree(edited, ignore_errors=True)
    shutil.copytree(whole, edited)
    return files(edited)


@given(st.data())
def test_every_changed_byte_is_found(whole: Path, edited: Path, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from([*copied(whole, edited), edited / "head.json"]))
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[place]))
    file.write_bytes(content)
    faults = verify(edited).faults
    assert faults
    line = bytes(file.read_bytes()[:place]).count(b"\n") + 1
    near = {f"{file.name}:{line}", f"{file.name}:{line + 1}", f"{file.name}:{line - 1}", "head.json:1"}
    near |= {f"{later.name}:1" for later in files(edited) if later > file}
    assert near & {fault.split()[0] for fault in faults}


@given(st.data())
def test_every_byte_taken_out_or_put_in_is_found(whole: Path, edited: Path, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from([*copied(whole, edited), edited / "head.json"]))
    content = file.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    more = data.draw(st.sampled_from([b"", b" ", b"\n", b"\r\n", b"\0"]))
    file.write_bytes(content[:place] + more + content[place + (not more) :])
    assert verify(edited).faults


@given(st.data())
def test_every_deleted_repeated_moved_or_swapped_line_is_found(whole: Path, edited: Path, data: st.DataObject) -> None:
    there = copied(whole, edited)
    all_lines = [file.read_bytes().splitlines(keepends=True) for file in there]
    places = st.tuples(st.integers(0, 2), st.integers(0, 3))
    (file, line), (other, place) = data.draw(places), data.draw(places)
    kind = data.draw(st.sampled_from(["delete", "repeat", "move", "swap"]))
    before = [list(content) for content in all_lines]
    if kind == "swap":
        all_lines[file][line], all_lines[other][place] = all_lines[other][place], all_lines[file][line]
    else:
        taken = all_lines[file][line]
        if kind != "repeat":
            del all_lines[file][line]
        if kind != "delete":
            all_lines[other].insert(place, taken)
    for path, content in zip(there, all_lines, strict=True):
        path.write_bytes(b"".join(content))
    assert bool(verify(edited).faults) == (all_lines != before)


@pytest.mark.parametrize(
    ("gone", "fault"),
    [
        (0, "audit-2026-11-26.jsonl:1 is the first line; number 4 before it is gone, and not for its age"),
        (1, "audit-2026-11-27.jsonl:1 has number 9 after 4: lines are missing, put in, or moved"),
        (2, "head.json:1 names number 12, which is not there: the end was cut off"),
        (3, "head.json:1 is gone or was changed: whether the end was cut off cannot be told"),
    ],
)
def test_deleted_files_are_found(whole: Path, edited: Path, gone: int, fault: str) -> None:
    [*copied(whole, edited), edited / "head.json"][gone].unlink()
    assert verify(edited).faults == (fault,)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_cut_end_is_found_and_stays_so(whole: Path, edited: Path, count: int) -> None:
    file = copied(whole, edited)[-1]
    kept = file.read_bytes().splitlines(keepends=True)[:-count]
    file.write_bytes(b"".join(kept))
    assert any("the end was cut off" in fault for fault in verify(edited).faults)
    clock = Clock()
    clock.now += timedelta(days=2)
    for begin in (100, 200):
        log = AuditLog(edited, 400, clock)
        log.append(events(2, begin))
        log.close()
    (fault,) = (fault for fault in verify(edited).faults if "has number" in fault)
    assert f"audit-2026-11-27.jsonl:{max(len(kept), 0) + 1} " in fault


def test_a_head_that_is_gone_does_not_heal(whole: Path, edited: Path) -> None:
    copied(whole, edited)
    (edited / "head.json").unlink()
    AuditLog(edited, 400, Clock()).close()
    assert any("has number 1 after 12" in fault for fault in verify(edited).faults)


def test_other_edits_are_found(whole: Path, edited: Path) -> None:
    first, second, third = copied(whole, edited)
    second.rename(edited / "audit-2026-11-24.jsonl")
    assert verify(edited).faults
    copied(whole, edited)
    first.rename(edited / "audit-2026-11-20.jsonl")
    assert any("names its day" in fault for fault in verify(edited).faults)
    copied(whole, edited)
    shutil.copy(first, edited / "audit-2026-11-24.jsonl")
    assert verify(edited).faults
    copied(whole, edited)
    shutil.copy(third, edited / "audit-2026-11-28.jsonl")
    assert verify(edited).faults
    copied(whole, edited)
    third.write_bytes(third.read_bytes()[:-1])
    assert any("is cut off" in fault for fault in verify(edited).faults)
    for hostile in (b"[" * 100_000, b"\0" * 1000, b'{"seq":true,"prev":"x"}', b'{"seq":1e999}', b"9" * 10_000, b"\xff"):
        copied(whole, edited)
        third.write_bytes(third.read_bytes() + hostile + b"\n")
        assert verify(edited).faults == (f"{third.name}:5 is no line of the record",)
    copied(whole, edited)
    follows = chain.dumped({"seq": 13, "prev": chain.read_head(edited)[1], "note": "retired", "last_seq": [1]})  # type: ignore[index]
    third.write_bytes(third.read_bytes() + follows + b"\n")
    assert verify(edited).faults == (), "lines after the head are those of a crash"


def test_an_empty_record(folder: Path, clock: Clock) -> None:
    AuditLog(folder, 400, clock).close()
    assert verify(folder) == Verdict(0, None, None, ())
    (folder / "head.json").unlink()
    assert verify(folder).faults
    AuditLog(folder, 400, clock).close()
    assert verify(folder).faults == ()


# What crashes leave.


def crashed(folder: Path, log: AuditLog) -> None:
    """Let go of the folder without another word."""
    log.close()
    assert verify(folder).faults == ()


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_half_a_line(log: AuditLog, folder: Path, clock: Clock, share: float) -> None:
    log.append(events(3))
    crashed(folder, log)
    (file,) = files(folder)
    line, _ = chain.chained(events(1, 3), chain.read_head(folder) or chain.START)
    torn = line[: max(1, int(share * len(line)))]
    with file.open("ab") as stream:
        stream.write(torn)
    clock.now += timedelta(days=1)
    again = AuditLog(folder, 400, clock)
    again.append(events(1, 4))
    again.close()
    assert verify(folder).faults == ()
    assert requests(folder) == [0, 1, 2, 4]
    (said,) = (line for line in lines(folder) if line.get("note") == "recovered")
    assert (said["torn_bytes"], said["file"]) == (len(torn), file.name)
    assert (folder / "audit-2026-11-25.torn").read_bytes() == torn + b"\n"


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_lines_without_their_head(log: AuditLog, folder: Path, clock: Clock, kept: int) -> None:
    log.append(events(3))
    crashed(folder, log)
    (file,) = files(folder)
    content, _ = chain.chained(events(3, 3), chain.read_head(folder) or chain.START)
    with file.open("ab") as stream:
        stream.write(b"".join(content.splitlines(keepends=True)[:kept]))
    assert verify(folder).faults == ()
    AuditLog(folder, 400, clock).close()
    assert verify(folder).faults == ()
    assert requests(folder) == list(range(3 + kept))
    assert lines(folder)[-1]["lines_after_head"] == kept


def test_a_crash_at_a_days_change(log: AuditLog, folder: Path, clock: Clock) -> None:
    log.append(events(3))
    head = (folder / "head.json").read_bytes()
    clock.now += timedelta(days=1)
    log.append(events(2, 3))
    crashed(folder, log)
    (folder / "head.json").write_bytes(head)
    AuditLog(folder, 400, clock).close()
    assert verify(folder).faults == ()
    assert requests(folder) == [0, 1, 2, 3, 4]
    (folder / "audit-2026-11-27.jsonl").touch()
    clock.now += timedelta(days=1)
    again = AuditLog(folder, 400, clock)
    again.append(events(1, 5))
    again.close()
    assert verify(folder).faults == ()


def test_a_repeated_last_line_is_no_crash(log: AuditLog, folder: Path, clock: Clock) -> None:
    log.append(events(3))
    crashed(folder, log)
    (file,) = files(folder)
    with file.open("ab") as stream:
        stream.write(file.read_bytes().splitlines(keepends=True)[-1])
    AuditLog(folder, 400, clock).close()
    assert verify(folder).faults


def write_until_killed(folder: Path) -> None:
    log = AuditLog(folder, 400)
    number = 0
    while True:
        log.append(events(5, number))
        number += 5


def test_a_writer_that_is_killed(folder: Path) -> None:
    context, begin = multiprocessing.get_context("fork"), 0
    for _ in range(3):
        writer = context.Process(target=write_until_killed, args=(folder,))
        writer.start()
        ends = time.monotonic() + 20
        while (begin >= (head := chain.read_head(folder) or chain.START)[0]) and time.monotonic() < ends:
            time.sleep(0.01)
        os.kill(writer.pid or 0, signal.SIGKILL)
        writer.join()
        assert head[0] > begin
        begin = head[0]
        AuditLog(folder, 400).close()
        assert verify(folder).faults == ()


# A disk that takes no more.


def test_a_file_that_may_not_grow(log: AuditLog, folder: Path) -> None:
    log.append(events(3))
    (file,) = files(folder)
    size = file.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 700, hard))
    try:
        for _ in range(3):
            with pytest.raises(OSError, match="too large"):
                log.append(events(4, 3))
            assert file.stat().st_size == size
            assert verify(folder).faults == ()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.append(events(4, 3))
    assert requests(folder) == [0, 1, 2, 3, 4, 5, 6]
    assert verify(folder).faults == ()


@pytest.mark.parametrize("call", ["write", "fsync", "truncate", "rename"])
def test_a_disk_that_fails_anywhere(
    log: AuditLog, folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    log.append(events(3))
    clock.now += timedelta(days=1)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    write = os.write
    half = iter([True])

    def half_a_line(handle: int, content: memoryview) -> int:
        return write(handle, content[: len(content) // 2]) if next(half, False) else full()

    with monkeypatch.context() as patch:
        patch.setattr(chain.Path if call == "rename" else os, call, full)
        if call in ("write", "truncate"):
            patch.setattr(os, "write", half_a_line)
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                log.append(events(4, 3))
    log.append(events(4, 3))
    assert requests(folder) == [0, 1, 2, 3, 4, 5, 6]
    assert verify(folder).faults == ()
    log.close()
    AuditLog(folder, 400, clock).close()
    assert notes(folder) == ["opened", "opened"]


# Age.


def test_old_files_go_and_the_chain_stays(log: AuditLog, folder: Path, clock: Clock) -> None:
    log.close()
    log = AuditLog(folder, 2, clock)
    (folder / "audit-2026-11-25.torn").write_text("x")
    for day in range(5):
        log.append(events(2, 2 * day))
        assert verify(folder).faults == ()
        clock.now += timedelta(days=1)
    log.close()
    assert [file.name[6:16] for file in files(folder)] == ["2026-11-27", "2026-11-28", "2026-11-29"]
    assert not (folder / "audit-2026-11-25.torn").exists()
    assert requests(folder) == [4, 5, 6, 7, 8, 9]
    assert notes(folder).count("retired") == 2
    clock.now += timedelta(days=30)
    AuditLog(folder, 2, clock).close()
    assert verify(folder).faults == ()
    assert [line.get("note") for line in lines(folder)] == ["opened", "retired", "retired", "retired"]
    assert len(files(folder)) == 1


def test_a_file_that_is_too_young_to_go_is_missed(log: AuditLog, folder: Path, clock: Clock) -> None:
    log.close()
    log = AuditLog(folder, 2, clock)
    for day in range(5):
        log.append(events(2, 2 * day))
        clock.now += timedelta(days=1)
    log.close()
    files(folder)[0].unlink()
    assert any("not for its age" in fault for fault in verify(folder).faults)


def test_a_crash_before_old_files_are_gone(
    log: AuditLog, folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.append(events(2))
    clock.now += timedelta(days=1)
    log.append(events(2))
    log.close()
    clock.now += timedelta(days=10)
    unlink, left = Path.unlink, iter([True])

    def once(file: Path) -> None:
        if not next(left, False):
            raise PermissionError
        unlink(file)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", once)
        AuditLog(folder, 2, clock).close()
    assert len(files(folder)) == 2
    assert verify(folder).faults == ()
    AuditLog(folder, 2, clock).close()
    assert len(files(folder)) == 1
    assert verify(folder).faults == ()


def test_verified_while_it_is_written(log: AuditLog, folder: Path) -> None:
    done = threading.Event()
    faults: list[str] = []

    def look() -> None:
        while not done.is_set():
            faults.extend(verify(folder).faults)

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(50):
        log.append(events(4, number))
    done.set()
    reader.join()
    assert faults == []


def test_a_thousand_events_are_fast(log: AuditLog, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs: list[int] = []
    monkeypatch.setattr(audit.os, "fsync", syncs.append)
    many = events(1000)
    began = time.perf_counter()
    for begin in range(0, 1000, 16):
        log.append(many[begin : begin + 16])
    spent = time.perf_counter() - began
    assert spent < 1
    assert len(syncs) == 2 * 63 + 1, "lines and head once a group, and the new file's folder"
    assert verify(folder).lines == 1001
