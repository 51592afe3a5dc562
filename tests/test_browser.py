"""The browser that other tests stand on: it runs scripts of a served folder, and says so when it is
not there."""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from browser import chromium, serve


def in_a_thread(function):
    """Its result. The fixture's browser is open in the main thread, one a thread is all."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


@pytest.mark.browser
def test_a_served_page_runs_its_script_and_a_closed_browser_leaves_no_event_loop(tmp_path):
    script = "document.title = (await (await fetch('data.json')).json()).title"
    (tmp_path / "index.html").write_text("<script type=module src=a.mjs></script>")
    (tmp_path / "a.mjs").write_text(script)
    (tmp_path / "data.json").write_text('{"title": "read from the folder"}')

    async def answer():
        return 42

    def visit():
        with chromium() as browser, serve(tmp_path) as address:
            page = browser.new_page()
            page.goto(address)
            page.wait_for_function("document.title == 'read from the folder'", timeout=10_000)
        return asyncio.run(answer())

    assert in_a_thread(visit) == 42


def open_chromium():
    with chromium():
        raise AssertionError("it opened")


@pytest.mark.parametrize("lacking, said", [
    ("browser", "install one of chromium"), ("playwright", "install the extra dev"),
    ("a browser that starts", "does not start")])
def test_what_is_missing_skips_or_fails(lacking, said, monkeypatch):
    if lacking == "playwright":
        monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    else:
        pytest.importorskip("playwright")
        program = None if lacking == "browser" else sys.executable
        monkeypatch.setattr("browser.shutil.which", lambda name: program)
    monkeypatch.delenv("GAPKD_BROWSER_TESTS", raising=False)
    with pytest.raises(pytest.skip.Exception, match=said):
        in_a_thread(open_chromium)
    monkeypatch.setenv("GAPKD_BROWSER_TESTS", "required")
    with pytest.raises(pytest.fail.Exception, match=said):
        in_a_thread(open_chromium)
