"""The browser that other tests stand on says so when it is not there."""

from __future__ import annotations

import sys

import pytest
from browser import chromium


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
    for outcome in (pytest.skip.Exception, pytest.fail.Exception):
        with pytest.raises(outcome, match=said), chromium():
            pass
        monkeypatch.setenv("GAPKD_BROWSER_TESTS", "required")
