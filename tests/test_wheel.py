"""What a user of `pip install gapkd` has: the wheel, in a fresh environment outside any clone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from test_repository import own_files

from tools.readme import ROOT
from tools.wheel import carried, carry

pytestmark = pytest.mark.slow
BUILD = "from setuptools import build_meta; print(build_meta.build_{kind}({folder!r}))"
DISTILL = ("--teacher toyfaces64 --images 8 --batch 4 --d-channels 4 --no-progress --grid-every 0 "
           "--out runs/tiny").split()
WHERE = """
import gapkd
from gapkd.experiments.results import results
G = gapkd.load_generator("toyfaces64")
print(gapkd.__file__)
print(G.resolution, len(results("table")) > 0)"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist of this clone, and the wheel that is built from what it unpacks to."""
    pytest.importorskip("setuptools", minversion="77", reason="builds packages")
    folder = tmp_path_factory.mktemp("built")
    clone = copied(folder / "clone")  # built elsewhere, so that nothing is left behind here
    sdist = build("sdist", clone, folder)
    shutil.unpack_archive(sdist, folder / "unpacked")
    wheel = build("wheel", next((folder / "unpacked").iterdir()), folder)
    return sdist, wheel


def kept() -> set[str]:
    """What git keeps of this clone, as paths within it."""
    names = {file.relative_to(ROOT).as_posix() for file in own_files()} - {".git"}
    return names | {".ci/run"}


def copied(folder: Path) -> Path:
    """That folder, with a copy of what git keeps."""
    for name in kept():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def build(kind: str, source: Path, folder: Path) -> Path:
    """Build what a build tool would, with the setuptools that is there."""
    command = [sys.executable, "-c", BUILD.format(kind=kind, folder=str(folder))]
    done = subprocess.run(command, cwd=source, env=clean(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def place(built, tmp_path_factory):
    """A folder with an environment of its own, into which the wheel is installed. Everything else
    is taken from this one, which need then not be fetched."""
    folder = tmp_path_factory.mktemp("user")
    run(folder, sys.executable, "-m", "venv", "env")
    packages = Path(run(folder, "env/bin/python", "-c", PURELIB).strip())
    (packages / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    run(folder, "env/bin/python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
        "--force-reinstall", str(built[1]))
    return folder


PURELIB = "import sysconfig; print(sysconfig.get_path('purelib'))"


def clean() -> dict[str, str]:
    """The environment variables of somebody who has no clone."""
    kept = {name: value for name, value in os.environ.items()
            if name not in ("PYTHONPATH", "GAPKD_DATA", "VIRTUAL_ENV")}
    return kept | {"OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def run(folder: Path, program: str, *arguments: str) -> str:
    """What a program prints; programs of the environment are named env/bin/..."""
    program = str(folder / program) if program.startswith("env/") else program
    done = subprocess.run([program, *arguments], cwd=folder, env=clean(), capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below the environment's packages, with its size and time."""
    files = [file for file in (folder / "env").rglob("*") if file.is_file()]
    return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in files}


def test_the_wheel_carries_what_commands_and_chapters_read(built):
    with zipfile.ZipFile(built[1]) as wheel:
        names = set(wheel.namelist())
        notebook = wheel.read("gapkd/_clone/notebooks/00_meet_the_teacher.ipynb").decode()
    assert {f"gapkd/_clone/{file.as_posix()}" for file in carried(ROOT)} <= names
    others = {name.split("/")[0] for name in names} - {"gapkd"}
    assert all(name.endswith(".dist-info") for name in others)
    assert not [name for name in names if "__pycache__" in name or "/." in name]
    assert "image/png" not in notebook and built[1].stat().st_size < 30e6


def test_the_sdist_holds_all_that_its_tests_look_at(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert kept() <= names


def test_it_works_where_there_is_no_clone_and_leaves_its_folder_alone(place):
    before = state(place)
    assert run(place, "env/bin/gapkd", "--version").startswith("gapkd ")
    file, facts = run(place, "env/bin/python", "-c", WHERE).splitlines()
    assert Path(file).is_relative_to(place) and facts == "64 True"
    run(place, "env/bin/gapkd", "sample", "toyfaces64", "--count", "2", "--out", "faces.png")
    run(place, "env/bin/gapkd", "distill", *DISTILL)
    assert (place / "runs" / "tiny" / "generator.safetensors").is_file()
    said = run(place, "env/bin/gapkd", "sweep", "table", "--arms", "dcp", "--dry-run")
    assert "0 of 3 runs are in runs/table.jsonl\nmissing: dcp seed 0" in said
    assert "a page" in run(place, "env/bin/gapkd", "demo", "--help")
    run(place, "env/bin/python", "-m", "gapkd", "chapter", "00")
    assert list((place / "runs").glob("00_*-001/00_*.ipynb"))
    assert state(place) == before


def test_the_pages_that_it_carries_have_no_dead_links(tmp_path):
    carry(ROOT, tmp_path)
    pages = {file: file.read_text(encoding="utf-8") for file in tmp_path.rglob("*.md")}
    assert {page.name for page in pages} == {"README.md", "guide.md"} and len(pages) == 3
    links = [(page.parent / target).resolve() for page, text in pages.items()
             for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)\s]*)?\)", text)]
    assert len(links) > 25 and [link for link in links if not link.exists()] == []
    results = pages[tmp_path / "data/results/README.md"]
    assert "at the top of the README shows" in results and "](https://" in results


def test_leftovers_of_an_earlier_build_go(tmp_path):
    clone, folder = tmp_path / "clone", tmp_path / "build"
    for name in ("data/a.safetensors", "data/.a.lock", "data/results/x.jsonl", "data/story.gif"):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).touch()
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "old.safetensors").touch()
    carry(clone, folder)
    found = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert found == {"data/a.safetensors", "data/results/x.jsonl"}
