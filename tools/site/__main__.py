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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import tyro

import gapkd
from gapkd import cli
from gapkd.sharing.export import ExportError
from gapkd.sharing.web import DemoConfig, DemoError, write_demo
from tools.readme import BADGE, ROOT

MARK = ".buildinfo"  # sphinx leaves it in what it builds
COPIED = ("README.md", "data", "notebooks", "tools")
"""Pages, and the files that they link to or show."""
LEFT_OUT = shutil.ignore_patterns("*.safetensors", "__pycache__", ".ipynb_checkpoints")
CONTENTS = {"Chapters": ["notebooks/*"], "Solutions": ["notebooks/solutions/*"],
            "Results and guide": ["data/results/README", "tools/guide"],
            "Reference": ["command_line", "data/README", "api/gapkd"]}
"""Caption in the sidebar -> the pages below it, of which some may be missing."""
STRANGERS = ("toyfaces64", "toyfaces64_stranger")
DEMOS = {"demo": DemoConfig(),
         "demo-strangers": DemoConfig(*STRANGERS, names=("toyfaces64", "a stranger"))}
"""Folder on the site -> the page of `gapkd demo` in it."""
PAIR = "demo", "Student and teacher draw the same z"
FRAMES = {
    "01": [("demo-strangers", "Two strangers draw the same z",
            "`toyfaces64` and `toyfaces64_stranger`, trained alike from other seeds, given the "
            "same z: they draw different people. A slider moves each along its own direction."),
           (*PAIR, "A student that was distilled with its teacher's mapping network, and that "
                   "teacher, given the same z.")],
    "07": [(*PAIR, "Student and teacher, drawing on your device; a slider edits both.")]}
"""Chapter -> the pages of `gapkd demo` that it ends with: folder, title, what is said above."""
PICTURED = re.compile(r"^!\[.*\]\(data/demo\.gif\)$", re.MULTILINE)
"""The front page's picture of the page in "demo"."""
FRONT = '<meta http-equiv="refresh" content="0; url=README.html">'
FRAME = """<div class="demo">
<iframe src="../{name}/index.html" title="{title}" loading="lazy"></iframe>
<a href="../{name}/index.html">Open the page by itself</a>
</div>"""
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
    """The site of a clone; returns its folder. Raises ValueError when the extra is missing, when
    something is in the way, or when a page or a link is at fault."""
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
    demos = write_demos(work / "demos")
    write_pages(root, work / "pages", demos)
    common = ["-q", "-c", str(Path(__file__).parent), "-d", str(work / "doctrees"),
              str(work / "pages")]
    if build_main(["-b", "html", "-W", "--keep-going", *common, str(work / "html")]):
        raise ValueError("the site has faults: mend what is listed above")
    (work / "html" / "index.html").write_text(FRONT)
    for name in demos:
        (work / "demos" / name).rename(work / "html" / name)
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


def write_demos(folder: Path) -> list[str]:
    """The pages of `gapkd demo` below a folder, where the extra `export` and onnxruntime-web are to
    be had. Returns: their names."""
    try:
        for name, config in DEMOS.items():
            write_demo(replace(config, out=str(folder / name)))
    except (DemoError, ExportError) as error:
        print(f"site: without the pages that draw in the browser: {error}")
        return []
    return list(DEMOS)


def write_pages(root: Path, folder: Path, demos: Sequence[str] = ()) -> None:
    """The sources of all pages, with frames for those demos: the tree mirrors the repository, so
    that links hold as they are."""
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, folder / name, ignore=LEFT_OUT)
        else:
            shutil.copy(root / name, folder / name)
    for file in [*folder.rglob("*.md"), *folder.rglob("*.ipynb")]:  # badges come from another host
        file.write_text(BADGE.sub("", file.read_text(encoding="utf-8")), encoding="utf-8")
    if PAIR[0] in demos:
        front = folder / "README.md"
        link = f'<p><a href="{PAIR[0]}/index.html">Open this page</a>: it draws on your device.</p>'
        text = PICTURED.sub(lambda found: f"{found[0]}\n\n{link}", front.read_text("utf-8"))
        front.write_text(text, encoding="utf-8")
    for file in folder.rglob("*.ipynb"):
        notebook = json.loads(file.read_text(encoding="utf-8"))
        fold_first_cell(notebook)
        if file.parent.name == "notebooks":
            frames = FRAMES.get(file.name[:2], [])
            add_frames(notebook, [frame for frame in frames if frame[0] in demos])
        file.write_text(json.dumps(notebook), encoding="utf-8")
    (folder / "command_line.md").write_text(command_line(), encoding="utf-8")
    write_reference(folder / "api")
    with open(folder / "README.md", "a", encoding="utf-8") as front:
        for caption, names in CONTENTS.items():
            if pages := "\n".join(name for name in names if list(folder.glob(f"{name}.*"))):
                options = f":hidden:\n:glob:\n:caption: {caption}"
                front.write(f"\n```{{toctree}}\n{options}\n\n{pages}\n```\n")


def fold_first_cell(notebook: dict) -> None:
    """Fold away what brings the package to Colab: nobody reads a page for it."""
    first = next((cell for cell in notebook["cells"] if cell["cell_type"] == "code"), None)
    if first:
        first["metadata"]["tags"] = [*first["metadata"].get("tags", []), "hide-input"]


def add_frames(notebook: dict, frames: Sequence[tuple[str, str, str]]) -> None:
    """End a chapter's page with frames, if there are any."""
    parts = ["## Try it here"]
    for name, title, text in frames:
        parts += [text, FRAME.format(name=name, title=title)]
    if frames:
        notebook["cells"].append({"cell_type": "markdown", "id": "try", "metadata": {},
                                  "source": "\n\n".join(parts)})


def command_line() -> str:
    """Markdown of the page with every command's help."""
    parts = ["# The command line",
             "Every option is a field of a dataclass in `gapkd`; this help and the settings that "
             "are stored in every network come from there."]
    os.environ["COLUMNS"] = "100"
    for command in cli.ALL:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            cli.main([command, "--help"])
        parts.append(f"## gapkd {command}\n\n```text\n{said.getvalue().strip()}\n```")
    return "\n\n".join(parts) + "\n"


def write_reference(folder: Path) -> None:
    """A page a module, from its docstrings; that of a room lists its modules."""
    folder.mkdir()
    names = ["gapkd", *(found.name for found in pkgutil.walk_packages(gapkd.__path__, "gapkd."))]
    names = [name for name in names if not name.endswith("__main__")]
    for name in names:
        text = f"{name}\n{'=' * len(name)}\n\n.. automodule:: {name}\n"
        if below := [other for other in names if other.rpartition(".")[0] == name]:
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
