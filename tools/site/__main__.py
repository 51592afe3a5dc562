"""Builds the site: `python -m tools.site`, with the extra `docs`."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pkgutil
import re
import shutil
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import tyro

import gapkd
from gapkd import cli
from tools.readme import BADGE, ROOT

MARK = ".buildinfo"  # sphinx leaves it in what it builds
COPIED = ("README.md", "data", "notebooks", "tools")
"""Pages, and the files that they link to or show."""
LEFT_OUT = shutil.ignore_patterns("*.safetensors", "__pycache__", ".ipynb_checkpoints")
CONTENTS = {"Chapters": "notebooks/*", "Solutions": "notebooks/solutions/*",
            "Reference": "command_line\ndata/README\napi/gapkd"}
"""Caption in the sidebar -> the pages below it."""
FRONT = '<meta http-equiv="refresh" content="0; url=README.html">'
FETCHED = re.compile(
    r"""\bsrc(?:set)?=["'](?:https?:)?//[^"']+"""
    r"""|<link (?=[^>]*rel="[^"]*(?:stylesheet|icon|load|fetch))[^>]*href="(?:https?:)?//[^"]+"""
    r"""|url\(["']?(?:https?:)?//[^)]+|@import[^;]+//[^;]+""")
"""What a browser would load from another host by itself."""


@dataclass(frozen=True)
class SiteConfig:
    """Build the course as static pages and check their links."""

    out: str = str(ROOT / "runs" / "site")
    """Folder of the site; one that an earlier build wrote is replaced."""
    links: Literal["offline", "online"] = "offline"
    """online: also ask other hosts whether what the pages link to is there."""


def build(config: SiteConfig, root: Path = ROOT) -> Path:
    """The site of a clone.

    Returns: its folder.

    Raises:
        ValueError: the extra is missing, something is in the way, a page or a link is at fault.
    """
    out = Path(config.out).resolve()
    work = out.with_name(f"{out.name}-build")
    for folder in (out, work):
        if folder.exists() and not (folder / MARK).exists():
            raise ValueError(f"{folder} exists and is not from an earlier build: remove it or "
                             "choose another out")
    if find_spec("sphinx") is None or find_spec("myst_nb") is None:
        raise ValueError("sphinx and myst-nb are missing: use `make site`, or pip install -e "
                         "'.[docs]'")
    from sphinx.cmd.build import build_main

    shutil.rmtree(work, ignore_errors=True)
    (work / "pages").mkdir(parents=True)
    (work / MARK).touch()
    write_pages(root, work / "pages")
    common = ["-q", "-c", str(Path(__file__).parent), "-d", str(work / "doctrees"),
              str(work / "pages")]
    if build_main(["-b", "html", "-W", "--keep-going", *common, str(work / "html")]):
        raise ValueError("the site has faults: mend what is listed above")
    (work / "html" / "index.html").write_text(FRONT)
    if fetched := fetches(work / "html"):
        raise ValueError(f"would be fetched from another host: {'; '.join(fetched)}")
    if config.links == "online" and build_main(["-b", "linkcheck", *common, str(work / "links")]):
        raise ValueError(f"some external addresses do not answer: see {work}/links/output.txt")
    shutil.rmtree(out, ignore_errors=True)
    (work / "html").rename(out)
    print(f"site: {len(list(out.rglob('*.html')))} pages in {out}; every internal link leads "
          f"somewhere. Look at it: python -m http.server --directory {out} --bind 127.0.0.1")
    return out


def fetches(html: Path) -> list[str]:
    """Every "page: what it would fetch from another host", of .html and .css files."""
    found = []
    for file in sorted([*html.rglob("*.html"), *html.rglob("*.css")]):
        text = file.read_text(encoding="utf-8")
        found += [f"{file.relative_to(html)}: {hit[0]}" for hit in FETCHED.finditer(text)]
    return found


def write_pages(root: Path, folder: Path) -> None:
    """The sources of all pages: the tree mirrors the repository, so that links hold as they are."""
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, folder / name, ignore=LEFT_OUT)
        else:
            shutil.copy(root / name, folder / name)
    for file in [*folder.rglob("*.md"), *folder.rglob("*.ipynb")]:  # badges come from another host
        file.write_text(BADGE.sub("", file.read_text(encoding="utf-8")), encoding="utf-8")
    for file in folder.rglob("*.ipynb"):
        fold_first_cell(file)
    with open(folder / "README.md", "a", encoding="utf-8") as front:
        for caption, pages in CONTENTS.items():
            if caption == "Solutions" and not list(folder.glob(f"{pages}.ipynb")):
                continue
            options = f":hidden:\n:glob:\n:caption: {caption}"
            front.write(f"\n```{{toctree}}\n{options}\n\n{pages}\n```\n")
    (folder / "command_line.md").write_text(command_line(), encoding="utf-8")
    write_reference(folder / "api")


def fold_first_cell(file: Path) -> None:
    """Fold away what brings the package to Colab: nobody reads a page for it."""
    notebook = json.loads(file.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            tags = cell["metadata"].get("tags", [])
            cell["metadata"]["tags"] = [*tags, "hide-input"]
            break
    file.write_text(json.dumps(notebook), encoding="utf-8")


def command_line() -> str:
    """Markdown of the page with every command's help."""
    parts = ["# The command line",
             "Every option is a field of a dataclass in `gapkd`; this help and the settings that "
             "are stored in every network come from there."]
    os.environ["COLUMNS"] = "100"
    for command in cli.names():
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            cli.main([command, "--help"])
        parts.append(f"## gapkd {command}\n\n```text\n{said.getvalue().strip()}\n```")
    return "\n\n".join(parts) + "\n"


def write_reference(folder: Path) -> None:
    """A page a module, from its docstrings; that of a room lists its modules."""
    folder.mkdir()
    names = ["gapkd", *(found.name for found in pkgutil.walk_packages(gapkd.__path__, "gapkd."))]
    for name in (name for name in names if not name.endswith("__main__")):
        text = f"{name}\n{'=' * len(name)}\n\n.. automodule:: {name}\n"
        if hasattr(import_module(name), "__path__"):
            below = [other for other in names if re.fullmatch(rf"{name}\.(?!__main__)\w+", other)]
            text += "\n.. toctree::\n   :maxdepth: 1\n\n" + "".join(f"   {one}\n" for one in below)
        (folder / f"{name}.rst").write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0, 2 for bad input."""
    try:
        build(tyro.cli(SiteConfig, prog="python -m tools.site", args=arguments))
    except (ValueError, OSError) as error:
        print(f"tools.site: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
