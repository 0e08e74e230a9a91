"""A headless Chromium driven over a pipe: no port, no package beyond the standard library."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--remote-debugging-pipe",
)


def find() -> str | None:
    """The browser of this machine, if any."""
    return next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)


class Browser:
    """One tab; everything it says on the console and every request it makes is kept."""

    def __init__(self, profile: Path) -> None:
        # The child reads commands from 3 and answers on 4; numbers above 9 cannot collide with those.
        pairs = [os.pipe(), os.pipe()]
        high = [[fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in pair] for pair in pairs]
        for pair in pairs:
            for fd in pair:
                os.close(fd)
        (read_in, self.write_to), (self.read_from, write_out) = high

        def wire() -> None:
            os.dup2(read_in, 3)
            os.dup2(write_out, 4)

        self.process = subprocess.Popen(
            [find() or "chromium", *FLAGS, f"--user-data-dir={profile}", "about:blank"], preexec_fn=wire,
            close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )
        os.close(read_in)
        os.close(write_out)
        self.number, self.rest = 0, b""
        self.console: list[str] = []
        self.requests: list[str] = []
        self.session: str | None = None
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(t for t in targets if t["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def _receive(self, until: float) -> dict[str, Any]:
        while b"\0" not in self.rest:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self.read_from], [], [], left)[0]:
                raise TimeoutError("the browser does not answer")
            part = os.read(self.read_from, 1 << 20)
            if not part:
                raise RuntimeError("the browser has ended")
            self.rest += part
        text, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(text)
        method, params = message.get("method"), message.get("params", {})
        if method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.console.append(json.dumps(params)[:500])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        return message

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write_to, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + 60
        while True:
            answer = self._receive(until)
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(answer["error"])
                return answer["result"]

    def run(self, expression: str) -> Any:
        """Value of a JavaScript expression; promises are awaited."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"])
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 20) -> Any:
        """Ask until the expression is true."""
        until = time.monotonic() + seconds
        while not (value := self.run(f"!!({expression})")):
            if time.monotonic() > until:
                raise TimeoutError(expression)
            time.sleep(0.05)
        return value

    def open(self, path: Path, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Load a file at a window size and colour scheme."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        # By way of nothing: the old document, complete already, must not be taken for the new one.
        self.call("Page.navigate", url="about:blank")
        self.wait("location.href === 'about:blank'")
        self.requests.clear()
        self.call("Page.navigate", url=path.as_uri())
        self.wait(f"document.readyState === 'complete' && location.href === {json.dumps(path.as_uri())}")

    def press(self, key: str, code: int) -> None:
        """One key, down and up."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code,
                      **({"text": text} if text and kind == "keyDown" else {}))

    def close(self) -> None:
        """End the browser and its children."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(10)
        os.close(self.write_to)
        os.close(self.read_from)


def picture(page: Path, out: Path, width: int = 1280, height: int = 1120) -> None:
    """The top of a page as a PNG of 256 colours, as the README shows it."""
    import base64
    import io
    import tempfile

    from PIL import Image

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(Path(profile))
        try:
            browser.open(page.absolute(), width, height)
            browser.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1.5,
                         mobile=False)
            browser.run("new Promise(done => setTimeout(done, 500))")
            shot = base64.b64decode(browser.call("Page.captureScreenshot", format="png")["data"])
        finally:
            browser.close()
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(256).save(out, optimize=True)


if __name__ == "__main__":
    import sys

    if len(sys.argv) != 3:
        sys.exit("python tests/browser.py REPORT.html PICTURE.png")
    picture(Path(sys.argv[1]), Path(sys.argv[2]))
