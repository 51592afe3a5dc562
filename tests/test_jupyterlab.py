"""The explorer where readers meet it: in JupyterLab, in a browser, moved by keys."""

from __future__ import annotations

import json
import os
import re
import secrets
import site
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
import pytest

CELL = """\
import torch
from gapkd import Generator
from gapkd.viewing.explore import Explorer

torch.manual_seed(0)
names = ("teacher", "student")
networks = {name: Generator(16, 8, 8, 8, mapping_layers=2).eval() for name in names}
explorer = Explorer(networks, torch.eye(8)[:3], size=64)
explorer
"""
START, KERNEL, REDRAW = 120, 120, 30  # seconds that a busy machine may take for each
QUIET = {"fetchNews": "false", "checkForUpdates": False}  # no question in front of the notebook
OWN = {
    "HOME": "home", "IPYTHONDIR": "ipython", "JUPYTER_CONFIG_DIR": "config",
    "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
    "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    "MPLCONFIGDIR": "matplotlib",
}
"""Where JupyterLab keeps what, in a folder of the test's."""
SERVER = (
    "-m jupyterlab --no-browser --allow-root --ServerApp.ip=127.0.0.1 --ServerApp.port=0 "
    "--LabApp.extension_manager=readonly --LabApp.news_url=None "
    "--MappingKernelManager.cull_connected=True --MappingKernelManager.cull_idle_timeout=300 "
    "--MappingKernelManager.cull_interval=60 --ServerApp.shutdown_no_activity_timeout=300").split()


@contextmanager
def jupyter_lab(folder: Path) -> Iterator[str]:
    """Run JupyterLab on `folder`/notebooks, with all its own files in `folder` too.

    It is ended whatever happens; and should this process be killed before it can, it ends itself
    once idle. Yields the address, with the token.
    """
    (folder / "notebooks").mkdir(exist_ok=True)
    plugin = "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    (folder / plugin).parent.mkdir(parents=True)
    (folder / plugin).write_text(json.dumps(QUIET))
    token, here = secrets.token_hex(16), str(Path(__file__).parent.parent)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "IPYTHON"))}
    environment |= {name: str(folder / value) for name, value in OWN.items()} | {
        "JUPYTER_NO_CONFIG": "1", "JUPYTER_TOKEN": token, "OMP_NUM_THREADS": "1",
        "PYTHONUSERBASE": site.getuserbase(),  # packages are found as before, whatever HOME says
        "PYTHONPATH": os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH")))),
    }
    command = [sys.executable, *SERVER, f"--ServerApp.root_dir={folder / 'notebooks'}"]
    log = folder / "server.log"
    with open(log, "wb") as output:
        server = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield f"{wait_for_address(folder / 'runtime', server, log)}lab/tree/%s?token={token}"
    finally:
        server.terminate()  # it shuts its kernels down first
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_for_address(runtime: Path, server: subprocess.Popen, log: Path) -> str:
    """The address that the server writes into its runtime folder, once it answers there."""
    limit = time.monotonic() + START
    while time.monotonic() < limit:
        if server.poll() is not None:
            pytest.fail(f"JupyterLab ended at once:\n{log.read_text()[-2000:]}")
        with suppress(OSError, ValueError):  # not there yet, half written, not listening yet
            address = json.loads((runtime / f"jpserver-{server.pid}.json").read_text())["url"]
            with urllib.request.urlopen(f"{address}api", timeout=5):
                return address
        time.sleep(0.2)
    pytest.fail(f"JupyterLab did not answer within {START} s:\n{log.read_text()[-2000:]}")


def bytes_shown(page) -> list[bytes]:
    """The files behind the explorer's pictures, in their order."""
    read = """every => Promise.all(every.map(
        async i => [...new Uint8Array(await (await fetch(i.src)).arrayBuffer())]))"""
    return [bytes(file) for file in page.locator("img.widget-image").evaluate_all(read)]


def wait_until(holds, page, what: str, seconds: float) -> None:
    limit = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > limit:
            outputs = page.locator(".jp-OutputArea-output").all_inner_texts()
            pytest.fail(f"{what}: not within {seconds} s; the notebook shows {outputs}")
        page.wait_for_timeout(200)


def run_the_cell(page) -> None:
    """Press the keys until the cell counts as run: while the kernel starts, they are dropped."""
    page.locator(".jp-CodeCell .cm-content").wait_for(timeout=START * 1000)

    def taken() -> bool:
        page.locator(".jp-CodeCell .cm-content").click()
        page.keyboard.press("Control+Enter")
        page.wait_for_timeout(2000)
        return re.search(r"[*\d]", page.locator(".jp-InputPrompt").first.inner_text()) is not None

    wait_until(taken, page, "the cell is run", KERNEL)


@pytest.mark.browser
@pytest.mark.slow
def test_sliders_moved_by_hand_redraw_both_pictures(browser, tmp_path):
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cell = nbformat.v4.new_code_cell(CELL)
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel})
    (tmp_path / "notebooks").mkdir()
    nbformat.write(notebook, tmp_path / "notebooks" / "explorer.ipynb")
    with jupyter_lab(tmp_path) as address:
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto(address % "explorer.ipynb", timeout=START * 1000)
        run_the_cell(page)
        shown = lambda: bytes_shown(page)  # noqa: E731
        wait_until(lambda: len(shown()) == 2, page, "the explorer shows two pictures", KERNEL)

        def both_change(what: str) -> None:
            others = lambda: all(a != b for a, b in zip(shown(), before, strict=True))  # noqa: E731
            wait_until(others, page, what, REDRAW)

        before = shown()
        assert all(file.startswith(b"\x89PNG") for file in before)
        page.locator(".noUi-handle").first.focus()
        page.keyboard.press("ArrowRight")
        both_change("an arrow key on the seed changes both pictures")
        assert page.locator(".widget-readout").first.inner_text() == "1"

        before, start = shown(), before
        page.locator(".widget-readout").nth(3).click()
        page.keyboard.press("Control+a")
        page.keyboard.type("4")
        page.keyboard.press("Enter")
        both_change("a strength typed into its slider changes both pictures")

        page.get_by_role("button", name="reset").click()
        wait_until(lambda: shown() == start, page, "reset brings the first pictures back", REDRAW)
        page.close()
