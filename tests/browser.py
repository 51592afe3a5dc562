"""A real browser for tests: chromium, headless, through playwright; and a folder served to it."""

from __future__ import annotations

import os
import shutil
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
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        missing(f"there is no browser here: install one of {', '.join(NAMES)}")
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        except Error as error:
            missing(f"{program} does not start ({str(error).splitlines()[0]})")
        try:
            yield browser
        finally:
            browser.close()


class Handler(SimpleHTTPRequestHandler):
    """Quiet, and sure of the types that a browser insists on."""

    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".js": "text/javascript",
                      ".mjs": "text/javascript", ".wasm": "application/wasm"}

    def log_message(self, *_args: object) -> None:
        pass


@contextmanager
def serve(folder: str | Path) -> Iterator[str]:
    """Serve a folder on a free port of this machine alone, in a thread. Yields the address, without
    a closing slash."""
    handler = partial(Handler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
