"""A page in a headless Chromium, driven over two pipes by its DevTools protocol, which needs no package."""
import contextlib
import json
import os
import select
import shutil
import signal
from itertools import count

import pytest

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"]
PATIENCE = 60  # seconds for an answer
COMPLAINTS = {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"}


class Page:
    """A page as tests see it. complaints: what its console shows, as of a file that is not there."""

    def __init__(self, commands, answers):
        self.commands, self.answers, self.numbers, self.rest = commands, answers, count(), b""
        self.session, self.events, self.complaints = {}, set(), []

    def open(self, path, width, height):
        """Show a file in a window of this size."""
        target = self.call("Target.createTarget", url="about:blank")
        self.session = {"sessionId": self.call("Target.attachToTarget", **target, flatten=True)["sessionId"]}
        for domain in ("Runtime", "Log", "Page"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=path.as_uri())
        while "Page.loadEventFired" not in self.events:
            self.receive()

    def call(self, method, **params):
        """Call a method of the protocol and return its result."""
        number, answer = next(self.numbers), {}
        os.write(self.commands, json.dumps({"id": number, "method": method, "params": params, **self.session}).encode() + b"\0")
        while answer.get("id") != number:
            answer = self.receive()
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def receive(self):
        """Return the next answer or event."""
        while b"\0" not in self.rest:
            data = os.read(self.answers, 1 << 20) if select.select([self.answers], [], [], PATIENCE)[0] else b""
            assert data, f"Chromium has ended, or is silent for {PATIENCE} s"
            self.rest += data
        text, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(text)
        self.events.add(message.get("method"))
        self.complaints += [message] if message.get("method") in COMPLAINTS else []
        return message

    def run(self, code):
        """Return the value of a JavaScript expression; of a promise, the value that it comes to."""
        done = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")


@contextlib.contextmanager
def chromium(profile):
    """Start a Chromium, with a new folder for its profile, for a block that gets a `Page`; skip a test where there is none."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if not program:
        pytest.skip("there is no Chromium here to show the page")
    (there, commands), (answers, back) = os.pipe(), os.pipe()
    files = [(os.POSIX_SPAWN_DUP2, there, 3), (os.POSIX_SPAWN_DUP2, back, 4),  # what it reads and what it writes
             *((os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2))]
    command = [program, *FLAGS, f"--user-data-dir={profile}"]
    process = os.posix_spawn(program, command, os.environ, file_actions=files, setpgroup=0)
    os.close(there), os.close(back)
    try:
        yield Page(commands, answers)
    finally:
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(commands), os.close(answers)
