"""Services as they are run here: a process with all that it starts, what CPU time each takes, and their end."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medray.cluster import ENVIRONMENT

START_S, END_S = 180.0, 30.0
TICKS = os.sysconf("SC_CLK_TCK")


class Service:
    """A service and all its processes, from the start until the `with` ends.

    Args:
        name: for a person, and for the file of what it prints.
        command: {port} in a word stands for that of `url`.
        folder: for that file.
        ready: the path that answers 200 once it can be asked.
    """

    def __init__(self, name: str, command: Sequence[str], folder: Path, ready: str = "/readyz") -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.name, self.url, self._ready = name, f"http://127.0.0.1:{port}", ready
        self._command = [word.replace("{port}", str(port)) for word in command]
        self._folder, self._log = folder, folder / f"{name.replace(' ', '-')}.log"

    def __enter__(self) -> Service:
        # Keys, audit and the registry of whoever measures are no business of it; MLflow looks for its server in PATH.
        home, path = str(self._folder / "home"), f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        variables = {**os.environ, **ENVIRONMENT, "MEDRAY_HOME": home, "PATH": path}
        with self._log.open("wb") as log:
            options: dict[str, Any] = {"stdout": log, "stderr": log, "start_new_session": True}
            self._process = subprocess.Popen(self._command, env=variables, **options)
        until = time.monotonic() + START_S
        try:
            while not self._answers():
                if self._process.poll() is not None or time.monotonic() > until:
                    said = self._log.read_text(encoding="utf-8", errors="replace")[-2000:]
                    raise RuntimeError(f"{self.name} does not start: {said}")
                time.sleep(0.1)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _answers(self) -> bool:
        link = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=5)
        with contextlib.closing(link), contextlib.suppress(OSError, http.client.HTTPException):
            link.request("GET", self._ready)
            return link.getresponse().status == 200
        return False

    def __exit__(self, *_: object) -> None:
        before = family(self._process.pid)
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        # Those that outlive what started them; never another's that was given the same number.
        for member in {*before, *family(self._process.pid)}:
            if (now := _process(member.pid)) is not None and now.born == member.born:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member.pid, signal.SIGKILL)

    def cpu(self) -> Mapping[int, Process]:
        """All its processes, by their numbers."""
        return {member.pid: member for member in family(self._process.pid)}


@dataclass(frozen=True, slots=True)
class Process:
    """A process, and the CPU time that it has used."""

    pid: int
    parent: int
    session: int
    born: int
    name: str
    cpu_s: float


def family(root: int) -> list[Process]:
    """The first process of a session and all that descend from it, those too that have lost their parents."""
    everyone = [found for entry in Path("/proc").glob("[0-9]*") if (found := _process(int(entry.name)))]
    inside, grown = {root, *(one.pid for one in everyone if one.session == root)}, True
    while grown:
        more = {one.pid for one in everyone if one.parent in inside} - inside
        inside, grown = inside | more, bool(more)
    return [one for one in everyone if one.pid in inside]


def spent(before: Mapping[int, Process], after: Mapping[int, Process]) -> dict[str, float]:
    """CPU seconds between two looks, by name; Ray's workers carry that of what they run."""
    used: dict[str, float] = {}
    for pid, one in after.items():
        used[one.name] = used.get(one.name, 0.0) + one.cpu_s - (before[pid].cpu_s if pid in before else 0.0)
    return used


def _process(pid: int) -> Process | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return None
    parent, session, born = (int(fields[place]) for place in (1, 3, 19))
    return Process(pid, parent, session, born, _name(words), (int(fields[11]) + int(fields[12])) / TICKS)


def _name(words: Sequence[str]) -> str:
    """ray::ServeReplica:app:model.method -> ServeReplica:app:model; python -m a.b -> a.b; /bin/x -> x."""
    if words[0].startswith("ray::"):
        return words[0][5:].split(".")[0].split(" ")[0]
    program = Path(words[0]).name
    if not program.startswith("python"):
        return program
    given = [word for word in words[1:] if word and not (word.startswith("-") and word != "-m")]
    return Path(given[1] if given[:1] == ["-m"] and len(given) > 1 else (given or [program])[0]).name
