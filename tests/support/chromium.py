"""A headless Chromium that opens a page, over the pipe that its developer tools speak."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


def program() -> str | None:
    """Where a Chromium is, if there is one."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


class Browser:
    """One tab of a running Chromium; `events` are all that it told so far."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = to, back
        self._rest, self._number, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = found["sessionId"]
        for room in ("Page", "Network", "Log", "DOM", "CSS"):
            self.call(f"{room}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """What Chromium answers; events before the answer go to `events`."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (found := self._read()).get("id") != self._number:
            self.events.append(found)
        assert "error" not in found, found
        return found["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            data = os.read(self._back, 1 << 16)
            assert data, "Chromium has ended"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        return found

    def open(self, path: Path, width: int, *, dark: bool) -> None:
        """Open a file in a window so many pixels wide, and wait until it is there."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=800,
                  deviceScaleFactor=1, mobile=width < 600)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        found = self.call("Page.navigate", url=path.resolve().as_uri())
        assert "errorText" not in found, found
        while not any(each.get("method") == "Page.loadEventFired" for each in self.events):
            self.events.append(self._read())

    def requests(self) -> list[str]:
        """The addresses that the page has asked for."""
        asked = [each for each in self.events if each.get("method") == "Network.requestWillBeSent"]
        return [each["params"]["request"]["url"] for each in asked]

    def complaints(self) -> list[str]:
        """What the browser logged: scripts that were refused, faults."""
        logged = [each for each in self.events if each.get("method") == "Log.entryAdded"]
        return [each["params"]["entry"]["text"] for each in logged]

    def size(self) -> tuple[int, int]:
        """Width and height of all that can be scrolled to."""
        found = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return found["width"], found["height"]

    def body(self) -> int:
        """The number of the body among the page's nodes."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        found: int = self.call("DOM.querySelector", nodeId=root, selector="body")["nodeId"]
        return found

    def screenshot(self) -> bytes:
        """The whole page as PNG."""
        width, height = self.size()
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(found["data"])

    def pdf(self) -> bytes:
        """The page as it is printed."""
        found = self.call("Page.printToPDF", printBackground=False, preferCSSPageSize=True)
        return base64.b64decode(found["data"])


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A Chromium with its profile in `folder`, ended behind the block."""
    found = program()
    assert found is not None
    to_read, to_write = os.pipe()
    back_read, back_write = os.pipe()
    words = [
        found, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-dev-shm-usage", f"--user-data-dir={folder}", "--remote-debugging-pipe",
    ]  # fmt: skip
    # It reads from descriptor 3 and writes to 4.
    shell = f'exec "$@" 3<&{to_read} 4>&{back_write}'
    with subprocess.Popen(
        ["bash", "-c", shell, "bash", *words], pass_fds=(to_read, back_write),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        os.close(to_read)
        os.close(back_write)
        try:
            yield Browser(to_write, back_read)
        finally:
            process.kill()
            os.close(to_write)
            os.close(back_read)
