"""A headless Chromium that tells what a page did: dialogs, console lines, requests, and the text that a reader sees.

It is spoken to over two pipes in the DevTools protocol, so that nothing but the browser itself is needed.
"""

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
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
        self._loaded = False
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")

    def visit(self, page: Path) -> Visit:
        """Open a page, touch everything on it, and read it."""
        self._seen, self._loaded = Visit(), False
        url = page.resolve().as_uri()
        self._ask("Page.navigate", url=url)
        while not self._loaded:
            self._note(self._next())
        self._ask("Runtime.evaluate", expression=_TOUCH_ALL, awaitPromise=True)
        found = self._ask("Runtime.evaluate", expression="document.documentElement.textContent", returnByValue=True)
        self._seen.text = found["result"]["value"]
        self._seen.requests = [asked for asked in self._seen.requests if asked.partition("#")[0] != url]
        return self._seen

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
                self._seen.requests.append(about["request"]["url"])


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
