"""The browser that other tests stand on: it runs scripts of a served folder, and says so when it is not there."""

from __future__ import annotations

import asyncio
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from browser import chromium, serve


@pytest.mark.browser
def test_a_served_page_runs_its_script(browser, tmp_path):
    (tmp_path / "index.html").write_text("<title>no script has run</title><script type=module src=main.mjs></script>")
    (tmp_path / "main.mjs").write_text("document.title = (await (await fetch('data.json')).json()).title")
    (tmp_path / "data.json").write_text('{"title": "read from the folder"}')
    with serve(tmp_path) as address:
        page = browser.new_page()
        page.goto(address)
        page.wait_for_function("document.title == 'read from the folder'", timeout=10_000)
        page.close()


def test_the_server_goes_with_its_block(tmp_path):
    (tmp_path / "a.wasm").write_bytes(b"\0asm")
    with serve(tmp_path) as address, urllib.request.urlopen(f"{address}/a.wasm", timeout=5) as reply:
        assert (reply.headers["Content-Type"], reply.read()) == ("application/wasm", b"\0asm")
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{address}/a.wasm", timeout=5)


def in_a_thread(function):
    """Its result. The fixture's browser is open in the main thread, and a thread can have only one at a time."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


@pytest.mark.browser
def test_a_closed_browser_leaves_no_event_loop_behind():
    async def answer():
        return 42

    def open_close_and_run():
        with chromium() as browser:
            assert browser.is_connected()
        return asyncio.run(answer())

    assert in_a_thread(open_close_and_run) == 42


def open_chromium():
    with chromium():
        raise AssertionError("it opened")


@pytest.mark.parametrize("lacking", ["browser", "playwright", "a browser that starts"])
def test_what_is_missing_skips_or_fails(lacking, monkeypatch):
    if lacking == "playwright":
        monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    else:
        pytest.importorskip("playwright")
        program = None if lacking == "browser" else sys.executable
        monkeypatch.setattr("browser.shutil.which", lambda name: program)
    said = {"browser": "install one of chromium", "playwright": "install the extra dev",
            "a browser that starts": "does not start"}[lacking]
    monkeypatch.delenv("GAPKD_BROWSER_TESTS", raising=False)
    with pytest.raises(pytest.skip.Exception, match=said):
        in_a_thread(open_chromium)
    monkeypatch.setenv("GAPKD_BROWSER_TESTS", "required")
    with pytest.raises(pytest.fail.Exception, match=said):
        in_a_thread(open_chromium)
