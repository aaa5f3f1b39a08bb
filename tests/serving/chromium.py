"""A headless Chromium, told what to do by its own protocol: no driver, and no request but to the page's host."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

PROGRAM = Path("/usr/bin/chromium")
ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--remote-debugging-port=0"),
)
PATIENCE_S = 30.0


class Tab:
    """One page, and what it complained of."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._count, self._session = socket, 0, ""
        self.complaints: list[str] = []
        """Errors of the console, exceptions that nobody caught, breaches of the page's policy."""
        self.hosts: set[str] = set()
        """All that were asked for something."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to one command."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        self._socket.send(json.dumps({**message, **({"sessionId": self._session} if self._session else {})}))
        while True:
            heard = json.loads(self._socket.recv(timeout=PATIENCE_S))
            if heard.get("id") == self._count:
                assert "error" not in heard, heard["error"]
                return dict(heard["result"])
            self._note(heard.get("method", ""), heard.get("params", {}))

    def _note(self, method: str, said: dict[str, Any]) -> None:
        if method == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.complaints.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(said["exceptionDetails"])[:500])
        elif method == "Runtime.consoleAPICalled" and said["type"] in ("error", "assert"):
            self.complaints.append(json.dumps(said["args"])[:500])
        elif method == "Network.requestWillBeSent":
            address = urlsplit(said["request"]["url"])
            if address.scheme not in ("blob", "data"):
                self.hosts.add(address.netloc)

    def open(self, address: str) -> None:
        """Go to a page."""
        self.send("Page.navigate", url=address)

    def run(self, script: str) -> Any:
        """The value of an expression, awaited."""
        found = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + PATIENCE_S
        while not self.run(script):
            assert time.monotonic() < end, (
                f"{script} never came true; the page says {self.run('document.body.innerText')}"
            )
            time.sleep(0.05)

    def choose(self, selector: str, files: Sequence[Path]) -> None:
        """Choose files in an input, as a person would."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def press(self, key: str) -> None:
        """A key on what has the focus."""
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key)

    def resize(self, width: int, height: int) -> None:
        """The window, in CSS pixels."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)


@contextmanager
def tab(folder: Path) -> Iterator[Tab]:
    """A new page of a new browser, which keeps what it must in `folder`. Skips the test where there is none."""
    client = pytest.importorskip("websockets.sync.client")
    if not PROGRAM.exists():
        pytest.skip(f"{PROGRAM} is not there")
    command = [str(PROGRAM), *ARGUMENTS, f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        said = folder / "DevToolsActivePort"
        end = time.monotonic() + PATIENCE_S
        while not said.exists() or len(said.read_text().splitlines()) < 2:
            assert time.monotonic() < end, "the browser does not start"
            time.sleep(0.05)
        port, path = said.read_text().splitlines()
        with client.connect(f"ws://127.0.0.1:{port}{path}", max_size=1 << 28, compression=None) as socket:
            yield Tab(socket)
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
