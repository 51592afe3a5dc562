"""A notebook on Colab, as far as its packages go: what is there already stays as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from importlib.metadata import distribution
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from test_wheel import PURELIB, ROOT, clean, copied, run

from tools import readme

pytestmark = pytest.mark.slow
COLAB = ["huggingface_hub>=0.34,<1", "ipykernel==6.17.1", "ipython==7.34.0", "ipywidgets==7.7.1",
         "jupyter-client==6.1.12", "matplotlib>=3.10", "nbconvert<8", "notebook==6.5.7",
         "numpy>=2.0,<2.1", "pillow>=11,<12", "scipy>=1.13", "setuptools", "tornado<6.5"]
"""Colab's versions, where they matter; torch is lent from the environment of the tests."""
CHECK = """
import base64, json
import ipywidgets, torch
import gapkd
from gapkd.viewing import figures
from gapkd.viewing.explore import Explorer

G = gapkd.load_generator("toyfaces32")
images = G(torch.randn(4, G.z_dim), truncation=0.7).clamp(-1, 1)
sheet = figures.show_grid(images, ncols=4, title="Four faces")
print(json.dumps([gapkd.__file__, ipywidgets.__version__, tuple(images.shape)]))"""
EXPLORER = """
explorer = Explorer({"teacher": G}, torch.eye(G.w_dim)[:3])
explorer.seed.value = 3
explorer"""


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """A folder with an environment like Colab's. Skips where the packages cannot be had."""
    folder = tmp_path_factory.mktemp("colab")
    run(folder, sys.executable, "-m", "venv", "env")
    packages = Path(run(folder, "env/bin/python", "-c", PURELIB).strip())
    lend("torch", packages)
    pip = [folder / "env/bin/python", "-m", "pip", "install", "--quiet", *COLAB]
    done = subprocess.run(pip, cwd=folder, env=clean(), capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no word from pip"])[-1]
        pytest.skip(f"Colab's packages are not to be had here: {reason[:200]}")
    (packages / "google" / "colab").mkdir(parents=True)
    (packages / "google" / "colab" / "__init__.py").touch()
    return folder


def lend(name: str, packages: Path, seen: frozenset | set = frozenset()) -> None:
    """Link an installed package, and what it needs, into another environment."""
    seen = seen or set()
    seen.add(name)
    found, home = distribution(name), Path(sysconfig.get_path("purelib"))
    for top in {file.parts[0] for file in found.files} - {"..", "__pycache__"}:
        if not (packages / top).exists():
            (packages / top).symlink_to(home / top)
    for line in found.requires or ():
        need = Requirement(line)
        if need.name not in seen and (need.marker is None or need.marker.evaluate({"extra": ""})):
            lend(need.name, packages, seen)


def versions(folder: Path) -> dict[str, str]:
    """Package -> version, of all that is installed in the environment."""
    listed = json.loads(run(folder, "env/bin/python", "-m", "pip", "list", "--format", "json"))
    return {package["name"].lower(): package["version"] for package in listed}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The address of a repository with what git keeps of this clone."""
    folder = copied(tmp_path_factory.mktemp("published") / "gapkd")
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "All"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder.as_uri()


def chapter_00() -> list[str]:
    """Its code cells without the first one."""
    notebook = nbformat.read(ROOT / "notebooks" / "00_meet_the_teacher.ipynb", 4)
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"][1:]


def execute(folder: Path, *sources: str) -> subprocess.CompletedProcess:
    """Run a notebook of these cells, in the environment, to ran.ipynb."""
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    nbformat.write(made, folder / "colab.ipynb")
    command = [folder / "env/bin/python", "-m", "nbconvert", "--to", "notebook", "--execute",
               "--ExecutePreprocessor.timeout=600", "--output", "ran.ipynb", "colab.ipynb"]
    variables = clean() | {"JUPYTER_PREFER_ENV_PATH": "1", "PATH": os.defpath,
                           "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)


def test_the_first_cell_and_chapter_00_run_and_touch_nothing_that_is_there(colab, published,
                                                                           monkeypatch):
    before = versions(colab)
    assert before["ipywidgets"] == "7.7.1" and before["torch"] == distribution("torch").version
    monkeypatch.setattr(readme, "address", lambda: published)
    done = execute(colab, readme.first_cell(), *chapter_00(), CHECK, "sheet", EXPLORER)
    if "No matching distribution found" in done.stderr:
        pytest.skip("what gapkd needs is not to be had here")
    assert done.returncode == 0, done.stderr
    after = versions(colab)
    assert {name: after.get(name) for name in before} == before and "gapkd" in after
    outputs = [cell.outputs for cell in nbformat.read(colab / "ran.ipynb", 4).cells]
    assert outputs[0][-1].text.startswith("gapkd ") and "networks: found" in outputs[0][-1].text
    check, sheet, explorer = outputs[-3:]
    place, widgets, shape = json.loads(check[0].text)
    assert Path(place).is_relative_to(colab) and widgets == "7.7.1" and shape == [4, 3, 32, 32]
    assert "image/png" in sheet[0].data
    view = explorer[0].data["application/vnd.jupyter.widget-view+json"]
    assert view["version_major"] == 2 and "image/png" in explorer[0].data


def test_without_an_address_the_first_cell_says_where_it_goes(tmp_path, monkeypatch, capsys):
    """Here, as a program in a folder without a clone above it, by a Python without gapkd."""
    monkeypatch.setattr(readme, "address", lambda: "https://host/OWNER/gapkd")
    command = [sys.executable, "-I", "-S", "-c", readme.first_cell()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "open it in a clone, or run `pip install git+ADDRESS` first" in done.stderr


def test_the_first_cell_finds_the_clone_around_it(tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "address", lambda: "https://host/OWNER/gapkd")
    (tmp_path / "gapkd").mkdir()
    (tmp_path / "gapkd" / "__init__.py").touch()
    (tmp_path / "gapkd" / "chapters.py").write_text("def announce(): print('from the clone')")
    (tmp_path / "notebooks" / "gapkd").mkdir(parents=True)  # a mere folder is not the package
    command = [sys.executable, "-S", "-c", readme.first_cell()]
    done = subprocess.run(command, cwd=tmp_path / "notebooks", env=clean(), capture_output=True,
                          text=True)
    assert done.stdout == "from the clone\n", done.stderr
