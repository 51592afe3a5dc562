"""A real browser for tests: chromium, headless, through playwright; and a folder served to it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome")
# no sandbox: containers run as root; the rest keeps the browser from calling out by itself
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync")


def missing(what: str) -> NoReturn:
    """Skip the test, or fail it where GAPKD_BROWSER_TESTS=required."""
    if os.environ.get("GAPKD_BROWSER_TESTS") == "required":
        pytest.fail(f"{what}, and GAPKD_BROWSER_TESTS=required", pytrace=False)
    pytest.skip(what)


def installed(*names: str) -> str:
    """The program of the first of those names; where there is none: `missing`."""
    program = next(filter(None, map(shutil.which, names)), None)
    return program or missing(f"there is no browser here: install one of {', '.join(names)}")


@contextmanager
def chromium() -> Iterator[Browser]:
    """The installed browser, as playwright's synchronous `Browser`; where there is none: `missing`.

    While it is open its thread counts as one with a running event loop, in which asyncio.run()
    refuses to start: close it before anything else in the process runs notebooks or other
    asynchronous code.
    """
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as error:
        missing(f"playwright cannot be imported ({error}): install the extra dev")
    program = installed(*NAMES)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        except Error as error:
            missing(f"{program} does not start ({str(error).splitlines()[0]})")
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def firefox(folder: Path) -> Iterator[Firefox]:
    """The installed Firefox, headless, with its profile in a folder; where there is none:
    `missing`."""
    program = installed("firefox-esr", "firefox")
    command = [program, "--headless", "--no-remote", "--profile", folder]
    with subprocess.Popen([*command, "--remote-debugging-port=0"], stderr=subprocess.PIPE,
                          text=True, env=os.environ | {"HOME": str(folder)}) as process:
        try:
            lines = iter(process.stderr.readline, "")
            heard = (re.search(r"BiDi listening on (ws://\S+)", line) for line in lines)
            address = next(filter(None, heard), None) or missing(f"{program} does not start")
            yield Firefox(f"{address[1]}/session")
        finally:
            process.kill()


class Firefox:
    """A Firefox that listens, spoken to in WebDriver BiDi, which playwright does not have."""

    def __init__(self, address: str):
        websocket = pytest.importorskip("websocket", reason="needs websocket-client")
        self.socket = websocket.create_connection(address, timeout=60, suppress_origin=True)
        self.number = 0
        self.ask("session.new", capabilities={})
        self.tab = self.ask("browsingContext.getTree")["contexts"][0]["context"]

    def ask(self, method: str, **params: object) -> dict:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while (answer := json.loads(self.socket.recv())).get("id") != self.number:
            pass
        assert answer["type"] == "success", answer
        return answer["result"]

    def goto(self, address: str, width: int, height: int) -> None:
        self.resize(width, height)
        self.ask("browsingContext.navigate", context=self.tab, url=address, wait="complete")

    def resize(self, width: int, height: int) -> None:
        self.ask("browsingContext.setViewport", context=self.tab,
                 viewport={"width": width, "height": height})

    def evaluate(self, expression: str) -> object:
        """The value of an expression, which may be a promise, by way of JSON."""
        answer = self.ask("script.evaluate", target={"context": self.tab}, awaitPromise=True,
                          expression=f"Promise.resolve({expression}).then(JSON.stringify)")
        assert answer["type"] == "success", answer
        return json.loads(answer["result"].get("value", "null"))


class Handler(SimpleHTTPRequestHandler):
    """Quiet, and sure of the types that a browser insists on."""

    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".js": "text/javascript",
                      ".mjs": "text/javascript", ".wasm": "application/wasm"}

    policy = ""
    """The Content-Security-Policy that it sends; empty: none."""

    def end_headers(self) -> None:
        if self.policy:
            self.send_header("Content-Security-Policy", self.policy)
        super().end_headers()

    def log_message(self, *_args: object) -> None:
        pass


@contextmanager
def serve(folder: str | Path, policy: str = "") -> Iterator[str]:
    """Serve a folder on a free port of this machine alone, in a thread, with that
    Content-Security-Policy. Yields the address, without a closing slash."""
    handler = partial(type("Strict", (Handler,), {"policy": policy}), directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
