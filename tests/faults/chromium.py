"""A headless Chromium that reports what a page did: dialogs, console lines, requests, and the text that a reader sees.

The DevTools protocol is used over two pipes, so that no package but the browser itself is needed.
"""

import base64
import contextlib
import json
import os
import re
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MOST_PIXELS = 16_000  # height of a picture; the browser cuts off higher ones
_LONGEST_SILENCE_S = 300  # a browser that has died; a slow machine is waited for
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # it runs as root in CI, where the sandbox cannot
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-pipe",
)
# The browser reads file descriptor 3 and writes 4.
_EXEC = "import os, sys; r, w = map(int, sys.argv[1:3]); os.dup2(r, 100); os.dup2(w, 101); os.dup2(100, 3); os.dup2(101, 4); "
_EXEC += "os.execv(sys.argv[3], sys.argv[3:])"
# Whatever waits for a reader's mouse or keyboard gets it; then all that is under way has its turn.
_TOUCH_ALL = """
for (const element of document.querySelectorAll('*'))
  for (const kind of ['mouseover', 'mouseenter', 'focus', 'toggle', 'click', 'error', 'load'])
    element.dispatchEvent(new Event(kind, {cancelable: true}));
for (const details of document.querySelectorAll('details')) details.open = true;
new Promise(done => requestAnimationFrame(() => setTimeout(done, 0)))
"""
_SETTLED = "document.fonts.ready.then(() => new Promise(done => requestAnimationFrame(() => setTimeout(done, 0))))"
_KEYS = {
    "Tab": 9,
    "Enter": 13,
    "Escape": 27,
    " ": 32,
    "End": 35,
    "Home": 36,
    "ArrowUp": 38,
    "ArrowDown": 40,
    "ArrowLeft": 37,
    "ArrowRight": 39,
}
_TEXTS = {"Enter": "\r", " ": " "}


@dataclass
class Visit:
    """What a page did while it was open, and the text in it."""

    dialogs: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    text: str = ""


class Browser:
    """An open tab.  Use `browser()`."""

    def __init__(self, reads: int, writes: int) -> None:
        self._reads, self._writes, self._rest, self._number = reads, writes, b"", 0
        self._session: str | None = None
        self._seen = Visit()
        self._loaded, self._url, self._scripts = False, "about:blank", True
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")

    def visit(self, page: Path) -> Visit:
        """Open a page, touch everything on it, and read it."""
        seen = self.open(page)
        self.run(_TOUCH_ALL)
        seen.text = self.run("document.documentElement.textContent")
        return seen

    def open(
        self, page: Path, *, width: int = 1280, height: int = 900, scheme: str = "light", scripts: bool = True, media: str = ""
    ) -> Visit:
        """Open a page in a window of this size.

        Args:
            page: The HTML file.
            width, height: Size of the window in CSS pixels.
            scheme: Preferred colour scheme: "light" or "dark".
            scripts: Whether the page may run scripts.
            media: "print" to lay out the page for paper, "" for the screen.

        Returns:
            What the page has done; later actions of the page are added to the same object.
        """
        self._ask("Emulation.setScriptExecutionDisabled", value=not scripts)
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": "reduce"}]
        self._ask("Emulation.setEmulatedMedia", media=media, features=features)
        self._url, self._seen, self._loaded = page.resolve().as_uri(), Visit(), False
        self._ask("Page.navigate", url=self._url)
        self._scripts = scripts
        while not self._loaded:
            self._note(self._next())
        self._settle()
        return self._seen

    def run(self, expression: str) -> Any:
        """Evaluate JavaScript in the page, and return its value; a promise is awaited."""
        found = self._ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def click(self, selector: str) -> None:
        """Click the first element that matches a CSS selector, with the mouse."""
        script = "(() => {const e = document.querySelector(%s); e.scrollIntoView({block: 'center', behavior: 'instant'});"
        script += "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]})()"
        x, y = self.run(script % json.dumps(selector))
        for kind in ("mousePressed", "mouseReleased"):
            self._ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self._settle()

    def press(self, *keys: str) -> None:
        """Press and release keys, one after the other: names such as "Tab" and "Enter", or texts to type."""
        for key in keys:
            if key not in _KEYS:
                self._ask("Input.insertText", text=key)
                continue
            about = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": _KEYS[key]}
            self._ask("Input.dispatchKeyEvent", type="keyDown", **about, **({"text": _TEXTS[key]} if key in _TEXTS else {}))
            self._ask("Input.dispatchKeyEvent", type="keyUp", **about)
        self._settle()

    def screenshot(self, path: Path) -> list[Path]:
        """Save the whole page as PNG, and return the files: a high page has several, such as a.png, a-2.png and a-3.png."""
        size = self._ask("Page.getLayoutMetrics")["cssContentSize"]
        saved = []
        for number, top in enumerate(range(0, int(size["height"]), MOST_PIXELS), start=1):
            clip = {"x": 0, "y": top, "width": size["width"], "height": min(size["height"] - top, MOST_PIXELS), "scale": 1}
            found = self._ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
            saved.append(path if number == 1 else path.with_stem(f"{path.stem}-{number}"))
            saved[-1].write_bytes(base64.b64decode(found["data"]))
        return saved

    def pdf(self, path: Path) -> int:
        """Print the page to a PDF file, and return the number of its pages."""
        data = base64.b64decode(self._ask("Page.printToPDF", printBackground=True)["data"])
        path.write_bytes(data)
        return len(re.findall(rb"/Type\s*/Page\b", data))

    def cpu_seconds(self) -> float:
        """The processor time of all processes of the browser so far, in seconds."""
        session, self._session = self._session, None  # the browser is asked, not the tab
        found = self._ask("SystemInfo.getProcessInfo")["processInfo"]
        self._session = session
        return sum(float(process["cpuTime"]) for process in found)

    def _settle(self) -> None:
        """Wait until the page is drawn; a page whose scripts are off resolves no promises."""
        if self._scripts:
            self.run(_SETTLED)

    def close(self) -> None:
        """Let the browser end."""
        self._session = None
        self._send("Browser.close")

    def _send(self, method: str, **parameters: Any) -> int:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._writes, json.dumps(message).encode() + b"\0")
        return self._number

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = self._send(method, **parameters)
        while (answer := self._next()).get("id") != number:
            self._note(answer)
        assert "result" in answer, answer
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._reads], [], [], _LONGEST_SILENCE_S)
            data = os.read(self._reads, 1 << 16) if ready else b""
            assert data, "the browser says nothing any more"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, message: Mapping[str, Any]) -> None:
        about = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Page.javascriptDialogOpening":
                self._seen.dialogs.append(about["message"])
                self._send("Page.handleJavaScriptDialog", accept=True)
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Log.entryAdded":
                self._seen.console.append(json.dumps(about)[:500])
            case "Network.requestWillBeSent":
                if (url := about["request"]["url"].partition("#")[0]) != self._url:
                    self._seen.requests.append(url)


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile, ended with the block."""
    assert PROGRAM is not None
    (theirs, writes), (reads, answers) = os.pipe(), os.pipe()
    command = [
        sys.executable,
        "-S",
        "-E",
        "-c",
        _EXEC,
        str(theirs),
        str(answers),
        PROGRAM,
        *_FLAGS,
        f"--user-data-dir={profile}",
    ]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, pass_fds=(theirs, answers), **quiet)
    os.close(theirs)
    os.close(answers)
    try:
        tab = Browser(reads, writes)
        yield tab
        tab.close()
        process.wait(_LONGEST_SILENCE_S)
    finally:
        process.kill()
        process.wait()
        os.close(reads)
        os.close(writes)
