"""Puts the pages of the site together: front page and sections from the README, chapters, data card, reference.

The tree of pages mirrors the repository, so that relative links and pictures hold as they are; links to what is no page
are led to one.
"""

from __future__ import annotations

import json
import os
import pkgutil
import re
import shutil
from importlib import import_module
from pathlib import Path

from PIL import Image

import gapkd
from gapkd.site import options
from gapkd.site.rendering import escaped
from tools import readme as chapters

TOPICS = {
    "Networks": ("layers", "stylegan2", "stylegan3", "students", "pruning", "slimming", "textbook"),
    "Distillation": ("settings", "training", "distillation", "trainer", "runs", "parallel"),
    "Losses and directions": ("losses", "directions", "features", "editing"),
    "Metrics": ("metrics", "evaluation", "equivariance", "judge", "projection", "cost"),
    "Data and files": ("toyfaces", "datasets", "images", "checkpoints", "foreign", "pickles", "addresses"),
    "Export and sharing": ("export", "demo", "webruntime", "sharing", "modelcard", "origins"),
}
"""Topic -> modules. What is not named here is a tool."""

ICON = "icon.png"
CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
HEADING = re.compile(r"^(#{1,6}) (.+)$", re.MULTILINE)


def write_pages(root: Path, folder: Path) -> None:
    """Write the sources of all pages into an empty folder.

    Args:
        root: the clone, with README.md, notebooks/ and data/.
    Raises ValueError naming a link that leads nowhere.
    """
    if not (root / "README.md").exists() or not (root / "notebooks").exists():
        raise ValueError(f"{root} holds no README.md and no notebooks/: the site is built in a clone of the repository")
    site = Site(root, folder)
    front, sections = split_readme((root / "README.md").read_text(encoding="utf-8"))
    site.anchors = {slug(title): name for name, text in {"index.md": front, **sections}.items()
                    for title in headings(text)}
    files = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    for name, text in sections.items():
        site.write(name, text)
    for file in files:
        site.write_notebook(file)
    site.write("data/README.md", (root / "data" / "README.md").read_text(encoding="utf-8"))
    site.write("command_line.md", options.page())
    write_reference(folder / "api")
    Image.open(root / "data" / "toyfaces32.png").crop((0, 0, 32, 32)).save(folder / ICON)  # a face for the tab
    (folder / "index.md").write_text(front_page(site.led(front, "index.md"), files, sections), encoding="utf-8")


class Site:
    """The folder that pages are written to, and where links within them have to lead."""

    def __init__(self, root: Path, folder: Path):
        self.root, self.folder = root, folder
        self.anchors: dict[str, str] = {}
        """Slug of a heading in the README -> the page that it has come to."""

    def write(self, name: str, text: str) -> None:
        """A page from Markdown whose links are relative to its place in the repository."""
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(self.led(text, name), encoding="utf-8")

    def write_notebook(self, file: Path) -> None:
        """A chapter with its stored outputs."""
        notebook, name = json.loads(file.read_text(encoding="utf-8")), f"notebooks/{file.name}"
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = self.led("".join(cell["source"]), name)
            for data in (output.get("data", {}) for output in cell.get("outputs", ())):
                if "text/markdown" in data:
                    data["text/markdown"] = self.led("".join(data["text/markdown"]), name)
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(json.dumps(notebook), encoding="utf-8")

    def led(self, text: str, name: str) -> str:
        """Markdown with links that lead to pages of the site, words for badges, and figures held to their deviation."""
        def lead(found: re.Match) -> str:
            return found[1] + self.target(found[2], name) + found[3]

        text = chapters.BADGE.sub(plain_badge, text).replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
        parts = CODE.split(text)
        return "".join(part if i % 2 else LINK.sub(lead, part) for i, part in enumerate(parts))

    def target(self, link: str, name: str) -> str:
        """Where a link on the page `name` leads to in the site; files that are no pages are brought along."""
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link) or not path and anchor not in self.anchors:
            return link
        place = Path(name).parent
        goal = os.path.normpath(place / path) if path else "README.md"
        if goal == "README.md":
            goal = self.anchors.get(anchor, "index.md")
        elif (self.root / goal).is_dir() and (self.root / goal).resolve().is_relative_to(self.root.resolve()):
            goal, anchor = next(p for p in (f"{goal}/README.md", f"{Path(goal).parent}/README.md", "index.md")
                                if p == "index.md" or (self.root / p).exists()), ""
        elif re.fullmatch(r"gapkd/\w+\.py", goal) and (self.root / goal).exists():
            goal = f"api/gapkd.{Path(goal).stem}.rst"
        elif goal.startswith("..") or not (self.root / goal).is_file():
            raise ValueError(f"{name} links to {link}, which is not in the repository: mend the link")
        elif Path(goal).suffix not in (".md", ".ipynb"):
            (self.folder / goal).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.root / goal, self.folder / goal)
        return os.path.relpath(goal, place) + (f"#{anchor}" if anchor else "")


def plain_badge(found: re.Match) -> str:
    """A link in words for a Colab badge, whose picture comes from afar; nothing while there is no public address."""
    if "/OWNER/" in chapters.address():
        return ""
    return f"[Open in Colab]({LINK.findall(chapters.badge(found['name']))[-1][1]})"


def split_readme(text: str) -> tuple[str, dict[str, str]]:
    """The README up to its chapters, and file name -> text of every later section, a page of its own."""
    starts = [found.start() for found in re.finditer("^## ", blanked(text), re.MULTILINE)]
    parts = [text[start:end] for start, end in zip([0, *starts], [*starts, None], strict=True)]
    last = next((i for i, part in enumerate(parts) if "<!-- chapters -->" in part), len(parts) - 1)
    pages = {}
    for section in parts[last + 1:]:
        pages[f"{slug(headings(section)[0])}.md"] = raised(section)
    return "".join(parts[:last + 1]), pages


def blanked(text: str) -> str:
    """Markdown of the same length with code blocks blanked out, whose comments look like headings."""
    return re.sub(r"^```.*?^```$", lambda block: re.sub(r"[^\n]", " ", block[0]), text, flags=re.DOTALL | re.MULTILINE)


def headings(text: str) -> list[str]:
    """The titles of all headings, in order."""
    return [found[2] for found in HEADING.finditer(blanked(text))]


def raised(text: str) -> str:
    """Markdown with every heading one level higher."""
    places = [found.start() for found in HEADING.finditer(blanked(text))]
    for place in reversed(places):
        text = text[:place] + text[place + 1:]
    return text


def slug(heading: str) -> str:
    """The anchor of a heading, as on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def question(notebook: dict) -> tuple[str, str]:
    """Title of a chapter, and what it asks: its **The question.** up to the first question mark."""
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    asked = re.search(r"\*\*The question\.\*\*(.+?\?)", "\n\n".join(cells), re.DOTALL)
    return headings("\n\n".join(cells))[0], " ".join(asked[1].split()) if asked else ""


def front_page(readme: str, files: list[Path], sections: dict[str, str]) -> str:
    """The README's beginning with a list of the chapters, then where everything else is."""
    listed = []
    for file in files:
        title, asked = question(json.loads(file.read_text(encoding="utf-8")))
        listed.append(f"- [{title}](notebooks/{file.name})" + (f": {asked}" if asked else ""))
    text = chapters.filled(readme, "chapters", "\n" + "\n".join(listed) + "\n")
    text += "\n## Results, and everything else\n\n"
    for name, section in sections.items():
        title, *below = headings(section)
        inner = ", ".join(f"[{heading}]({name}#{slug(heading)})" for heading in below)
        text += f"- [{title}]({name})" + (f": {inner}" if inner else "") + "\n"
    text += ("- [The modules of the package](api/index.rst), by topic\n- [The command line](command_line.md)\n"
             "- [The card of the embedded networks](data/README.md)\n")
    contents = {"Chapters": [f"notebooks/{file.name}" for file in files], "Results and use": list(sections),
                "Reference": ["api/index.rst", "command_line.md", "The embedded networks <data/README.md>"]}
    for caption, pages in contents.items():
        text += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(pages) + "\n```\n"
    return text


# --------------------------------------------------------------------------------------------------- reference


def module_names() -> dict[str, list[str]]:
    """Topic -> the modules of the package, without the site's own and without __main__."""
    below = [found.name for found in pkgutil.walk_packages(gapkd.__path__, "gapkd.")]
    below = [name for name in below if not name.startswith("gapkd.site") and not name.endswith("__main__")]
    topic_of = {f"gapkd.{stem}": topic for topic, stems in TOPICS.items() for stem in stems}
    names: dict[str, list[str]] = {topic: [n for n in topic_of if topic_of[n] == topic and n in below]
                                   for topic in TOPICS}
    names["Tools"] = [name for name in below if name not in topic_of]
    return names


def write_reference(folder: Path) -> None:
    """A page a module, written from its docstrings, and one that lists them by topic."""
    folder.mkdir(parents=True)
    listing = [_titled("The package"), "What ``import gapkd`` gives at once:", _public_names(),
               "Everything else is reached through its module."]
    for topic, names in module_names().items():
        rows = "\n".join(f"* :doc:`{name}`: {_summary(import_module(name).__doc__)}" for name in names)
        entries = "\n".join(f"   {name}" for name in names)
        listing += [_titled(topic, "-"), rows, f".. toctree::\n   :hidden:\n\n{entries}"]
        for name in names:
            (folder / f"{name}.rst").write_text(f"{_titled(name)}\n\n.. automodule:: {name}\n", encoding="utf-8")
    (folder / "index.rst").write_text("\n\n".join(listing) + "\n", encoding="utf-8")


def _public_names() -> str:
    things = {name: getattr(gapkd, name) for name in gapkd.__all__}
    return "\n".join(f"* :py:obj:`gapkd.{name} <{thing.__module__}.{thing.__name__}>`: {_summary(thing.__doc__)}"
                     for name, thing in sorted(things.items(), key=lambda item: item[0].lower()))


def _summary(doc: str | None) -> str:
    """The first sentence of a docstring, as reStructuredText."""
    paragraph = " ".join((doc or "").split("\n\n")[0].split())
    return escaped(re.split(r"(?<=\.) (?=[A-Z(])", paragraph)[0])


def _titled(title: str, under: str = "=") -> str:
    return f"{title}\n{under * len(title)}"
