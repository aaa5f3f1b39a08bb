"""Commands as people run them, in processes of their own and, where the machine allows that, without a network."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from conftest import REPOSITORY

OFFLINE = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "--"]


def no_network() -> list[str]:
    """What to put before a command so that it reaches loopback alone; empty where that is not allowed."""
    if not shutil.which("unshare") or not shutil.which("ip"):
        return []
    return OFFLINE if subprocess.run([*OFFLINE, "true"], capture_output=True, check=False).returncode == 0 else []


def command(*arguments: str) -> list[str]:
    return [*no_network(), sys.executable, str(REPOSITORY / "jobs" / arguments[0]), *arguments[1:]]


def job(*arguments: str, code: int = 0) -> dict[str, Any]:
    """Run a job to its end; the last line of its stdout."""
    found = subprocess.run(command(*arguments), capture_output=True, text=True, check=False, timeout=400)
    assert found.returncode == code, found.stderr
    return json.loads(found.stdout.splitlines()[-1]) if code in (0, 5) else {"stderr": found.stderr}


def wait_for(file: Path, text: str, process: subprocess.Popen[Any], timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while text not in file.read_text():
        assert process.poll() is None, file.read_text()
        assert time.monotonic() < deadline, file.read_text()
        time.sleep(0.2)


def descendants(pid: int) -> dict[int, str]:
    """Ids and command lines of the processes below one of ours."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            titles[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    below, found = {pid}, {}
    while below := {child for child, parent in parents.items() if parent in below}:
        found |= {child: titles.get(child, "") for child in below}
    return found


def wait_until_gone(processes: dict[int, str], timeout_s: float = 30) -> None:
    """Nothing of a command outlives it for long; a number that another process has by now counts as gone."""
    deadline = time.monotonic() + timeout_s
    while alive := {pid: title for pid, title in processes.items() if title and title_of(pid) == title}:
        assert time.monotonic() < deadline, alive
        time.sleep(0.2)


def title_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""
