"""The repository as a reader finds it: clean notebooks in one frame, whose prose says nothing that
no cell shows; one address; imports that go down."""

import ast
import base64
import json
import os
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

import gapkd

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
LARGEST, LARGEST_FIGURE = 1_000_000, 300_000  # bytes: pictures in all their colours
TAGS = {"parameters", "hide-input", "nbval-check-output", "nbval-ignore-output", "nbval-skip",
        "raises-exception"}

# folders of a machine, Windows too; the lookbehind lets URLs and relative paths pass
MACHINE_PATH = re.compile(
    r"(?<![\w./:])/(?:home|root|tmp|work|mnt|opt|usr|var|private|Users|content)/[\w.-]+"
    r"|\b[A-Z]:\\\\?\w|site-packages|file://")
notebook = pytest.mark.parametrize("path", CHAPTERS + SOLUTIONS, ids=lambda path: path.stem)
chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def cells(path: Path) -> list[dict]:
    """All cells, their sources as one string."""
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in found]


def code_cells(path: Path) -> list[dict]:
    """The code cells that are not empty."""
    return [c for c in cells(path) if c["cell_type"] == "code" and c["source"].strip()]


def markdown(path: Path) -> list[str]:
    """The texts between the code cells."""
    return [c["source"] for c in cells(path) if c["cell_type"] == "markdown"]


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def shows_something(source: str) -> bool:
    """Whether a cell must leave an output: it prints, displays, or ends with a bare expression."""
    if re.search(r"^(?:print|display)\(|^plt\.show\(", source, flags=re.MULTILINE):
        return True
    last = [line for line in source.splitlines() if not re.match(r"\s*(#|$)", line)][-1]
    return bool(re.fullmatch(r"[\w.]+", last)) and last not in {"pass", "continue", "break"}


def texts(output: dict) -> str:
    """Everything in an output that a reader sees as text."""
    shown = {kind: text for kind, text in output.get("data", {}).items() if "text/" in kind}
    return "\n".join("".join(part) for part in (output.get("text", ""), *shown.values()))


def test_there_are_notebooks():
    assert CHAPTERS, "notebooks/ holds no notebook"
    assert [path.name[:3] for path in CHAPTERS] == [f"{i:02}_" for i in range(len(CHAPTERS))]
    assert [path.name for path in SOLUTIONS] == [f"{path.name[:2]}_solutions.ipynb"
                                                 for path in CHAPTERS]


@notebook
def test_stored_executed_from_top_to_bottom(path):
    # nbval compares nothing in a notebook without outputs, and calls it green: hence this test
    assert path.stat().st_size < LARGEST, f"{path.stat().st_size:,} bytes"
    found = code_cells(path)
    assert [cell["execution_count"] for cell in found] == list(range(1, len(found) + 1))
    for cell in found:
        silent = shows_something(cell["source"]) and not cell["outputs"]
        assert not silent, f"stored without what it shows: {cell['source'][:60]}"
        for output in cell["outputs"]:
            number = output.get("execution_count", cell["execution_count"])
            assert number == cell["execution_count"]


@notebook
def test_tags_are_known_and_there_are_verdicts_to_compare(path):
    every = [tag for cell in cells(path) for tag in tags(cell)]
    in_chapter = path in CHAPTERS
    assert every.count("parameters") == 1
    assert set(every) <= TAGS, f"a misspelt tag would switch a check off: {set(every) - TAGS}"
    verdicts = [cell for cell in code_cells(path) if "nbval-check-output" in tags(cell)]
    assert len(verdicts) >= 4 * in_chapter, "cells without nbval-check-output are never compared"
    hidden = [cell for cell in code_cells(path) if "hide-input" in tags(cell)]
    assert len(hidden) <= 3 and all(cell in verdicts for cell in hidden)
    for cell in verdicts:
        assert cell["outputs"], f"a verdict without output: {cell['source'][:60]}"


@notebook
def test_outputs_are_clean(path):
    for cell in code_cells(path):
        for output in cell["outputs"]:
            text, where = texts(output), cell["source"][:60]
            assert output["output_type"] != "error", f"a stored error at: {where}"
            assert output.get("name") != "stderr", f"stored stderr ({text[:80]!r}) at: {where}"
            assert not MACHINE_PATH.search(text), f"a path of a machine in the output of: {where}"
            assert not re.search(r"\d%\||HBox\(children=", text), f"a stored widget at: {where}"


@notebook
def test_every_figure_is_small_and_has_an_alternative_text(path):
    for cell in code_cells(path):
        for output in cell["outputs"]:
            if "image/png" in output.get("data", {}):
                where = cell["source"][-60:]
                png = base64.b64decode("".join(output["data"]["image/png"]))
                assert len(png) < LARGEST_FIGURE, f"{len(png):,} bytes at: {where}"
                assert png[25] != 3, f"reduced to a palette at: {where}"  # the header's colour type
                assert output["metadata"].get("image/png", {}).get("alt"), f"no alt at: {where}"


# ------------------------------------------------------------------------------- the frame


def own_code(path: Path) -> list[dict]:
    """The code cells after the first, which the tool writes; lines for the shell are left out."""
    shell = re.compile(r"^\s*[%!].*$", re.MULTILINE)
    return [c | {"source": shell.sub("", c["source"])} for c in code_cells(path)[1:]]


@notebook
def test_code_cells_are_short_and_narrow(path):
    for cell in own_code(path):
        lines = cell["source"].strip().split("\n")
        if "parameters" not in tags(cell):
            assert len(lines) <= 14, f"{len(lines)} lines: {lines[0]}"
            assert not [line for line in lines if len(line) >= 90]


@chapter
def test_parameters_are_few_and_checked(path):
    code = own_code(path)
    at = next(n for n, cell in enumerate(code) if "parameters" in tags(cell))
    names = [target.id for node in ast.parse(code[at]["source"]).body for target in node.targets]
    assert len(names) <= 10, f"{len(names)} parameters"
    calls = [node for node in ast.walk(ast.parse(code[at + 1]["source"]))
             if isinstance(node, ast.Call) and ast.unparse(node.func) == "check_parameters"]
    assert calls, "the cell after the parameters does not call check_parameters"
    assert {keyword.arg for keyword in calls[0].keywords} == set(names)
    place = f'diagram("course", lit="{path.name[:2]}")'
    assert place in code[at + 1]["source"], "the map of the course is missing"


@notebook
def test_each_module_is_imported_in_one_cell(path):
    seen: dict[str, int] = {}
    for n, cell in enumerate(own_code(path)):
        for node in ast.walk(ast.parse(cell["source"])):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                modules = [node.module]
            for module in modules:
                assert seen.setdefault(module, n) == n, f"{module} is imported in two cells"


@chapter
def test_the_frame_is_the_same_in_every_chapter(path):
    texts = markdown(path)
    prose = re.sub(r"^```.*?^```", "", "\n\n".join(texts), flags=re.MULTILINE | re.DOTALL)
    assert re.match(rf"# {int(path.name[:2])} · \S", texts[0])
    for part in ("**The question.**", "**At the end you will have**", "**It needs**", "**Time:** ",
                 "**Hardware:** "):
        assert part in texts[1], f"{part} is missing"
    found = re.findall(r"^## (.+)$", prose, re.MULTILINE)
    sections = [heading for heading in found if re.match(r"\d+ · ", heading)]
    assert sections and [int(heading.split()[0]) for heading in sections] == list(
        range(1, len(sections) + 1))
    assert found == ["Settings", *sections, "Recap", "Limits of the evidence", "Exercises",
                     "References"]
    notation = "<details><summary>Notation of the course</summary>"
    assert sum(text.startswith(notation) for text in texts) == 1


@chapter
def test_every_exercise_leads_to_its_solution(path):
    exercises = "\n\n".join(markdown(path)).split("\n## Exercises")[1].split("\n## ")[0]
    link = f"(solutions/{path.name[:2]}_solutions.ipynb)"
    assert exercises.count(link) >= 3, f"fewer than three links {link}"


# ------------------------------------------------------------------------------- numbers in prose


NOT_PROSE = [
    r"(?s)```.*?```", r"`[^`]*`", r"(?s)\$\$.*?\$\$", r"\$[^$]*\$",  # code and formulas
    r"!?\[[^\]]*\]\([^)]*\)", r"</?\w[^>]*>", r"https?://\S+",  # links, tags, addresses
    r"(?m)^\|.*$", r"(?m)^#.*$", r"\*\*Time:\*\*.*",  # tables, headings, what the tool measured
    r"(?:Python|PyTorch|torch|CUDA|BY|Apache|version) ?\d[\d.]*",
]
PUBLICATION = re.compile(r"\b(?:papers?|published|reports?|reported|arXiv)\b|et al\.|"
                         r"\([^()]*\b(?:19|20)\d\d\b[^()]*\)", re.IGNORECASE)
NUMBER = re.compile(r"(?<![\w.,])\d[\d,]*\.\d+(?:\s?%)?|(?<![\w.,])\d[\d,]*\s?%")


def unproven(texts: list[str], shown: str) -> list[str]:
    """Decimals and percentages in markdown that `shown`, the notebook's code and outputs, lacks, in
    sentences that name no publication."""
    prose = "\n\n".join(texts).split("\n## References")[0]
    for pattern in NOT_PROSE:
        prose = re.sub(pattern, " ", prose)
    found = []
    for sentence in re.split(r"(?<=[.!?:])(?<!al\.)\s+|\n\n", prose):
        if not PUBLICATION.search(sentence):
            found += [number for number in NUMBER.findall(sentence) if not is_in(number, shown)]
    return found


def is_in(number: str, shown: str) -> bool:
    """Whether a number stands there as it is; a percentage also as a fraction."""
    digits = number.rstrip("% ")
    ways = [digits if digits == number else rf"{re.escape(digits)}\s?%"]
    if digits != number:
        ways.append(re.escape(f"{float(digits.replace(',', '')) / 100:g}") + "0*")
    return any(re.search(rf"(?<![\d.])(?:{way})(?!\d|\.\d)", shown) for way in ways)


@notebook
def test_numbers_in_prose_are_shown_by_a_cell(path):
    code = code_cells(path)
    shown = [cell["source"] for cell in code]
    shown += [texts(output) for cell in code for output in cell["outputs"]]
    assert not unproven(markdown(path), "\n".join(shown))


@pytest.mark.parametrize("prose, shown, missing", [
    ("It reaches 0.68 of 1.", "r = 0.68", []),
    ("It reaches 0.68 of 1.", "r = 0.684, 10.68, 0.68.1", ["0.68"]),
    ("Keep 30 % of them.", "keep = 0.3", []),
    ("Keep 30 % of them, 70% go.", "30%", ["70%"]),
    ("The paper reports 7.25. We find 7.24.", "", ["7.24"]),
    ("Xu et al. found 7.25.\n\nAnd (Chung, CVPR 2024) 6.35.", "", []),
    ("`0.1` and $0.2$ and [0.3](x0.4)\n\n| 0.5 |\n\n## 0.6\n\nPython 3.10", "", []),
    ("**Time:** 1 min, 2.5 GHz.\n\nIn 1,024.5 ms", "1,024.5", []),
    ("x\n\n## References\n\n0.9", "", [])])
def test_numbers_that_no_cell_shows_are_found(prose, shown, missing):
    assert unproven([prose], shown) == missing


# ------------------------------------------------------------------------------- the whole tree


def own_files() -> list[Path]:
    """Every file of the working tree that is neither a result nor a leftover of a tool."""
    skipped = {"runs", "build", "dist", "__pycache__"}
    found = []
    for folder, below, names in os.walk(ROOT):
        below[:] = [
            name for name in below if name == ".github"
            or not (name in skipped or name.startswith(".") or name.endswith(".egg-info"))]
        found += [Path(folder, name) for name in names]
    return found


def test_the_public_address_has_one_home():
    """Outside pyproject.toml it stands only where a command writes it: notebooks and README."""
    chapters = (ROOT / "notebooks").rglob("*.ipynb")
    written = {ROOT / "pyproject.toml", ROOT / "README.md", *chapters}
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    address = re.search(r'^Repository = "https://([^"]+)"', pyproject, flags=re.MULTILINE)[1]
    kinds = {".py", ".md", ".yml", ".toml", ".txt", ".cfg", ".ipynb"}
    for path in own_files():
        if path not in written and path.suffix in kinds:
            assert address not in path.read_text(encoding="utf-8"), path.relative_to(ROOT)


# ------------------------------------------------------------------------------------- the house


FLOORS = [
    {"parallel", "progress", "settings"}, {"files.storage"}, {"networks"}, {"data"}, {"files"},
    {"distillation"}, {"metrics"}, {"training"}, {"experiments", "viewing", "sharing"},
    {"chapters"}, {"cli"},
]
"""Rooms from the cellar up: imports go down, or stay on the floor, and never in a circle."""


def modules() -> dict[str, ast.Module]:
    """Module, without "gapkd.", -> its syntax tree; without the package itself."""
    found = {}
    for file in sorted((ROOT / "gapkd").rglob("*.py")):
        parts = file.relative_to(ROOT / "gapkd").with_suffix("").parts
        if parts[0] not in ("__init__", "__main__"):
            found[".".join(parts).removesuffix(".__init__")] = ast.parse(file.read_text())
    return found


def imported(tree: ast.Module) -> set[str]:
    """Every module of ours that is imported anywhere in it, and every name taken from one."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in ("gapkd", "tools")}


def room(module: str) -> str:
    """The room of a module, "files.storage" being one of its own."""
    name = module.removeprefix("gapkd.")
    return "files.storage" if name.startswith("files.storage") else name.split(".")[0]


def arrows() -> set[tuple[str, str]]:
    """(module, room that it imports from), within the package."""
    rooms = set().union(*FLOORS)
    found = {(module, room(name)) for module, tree in modules().items() for name in imported(tree)}
    return {(module, to) for module, to in found if to in rooms and to != room(module)}


def floor(name: str) -> int:
    return next((n for n, rooms in enumerate(FLOORS) if name in rooms), len(FLOORS))


def test_imports_go_down_and_never_in_a_circle():
    every, found = modules(), arrows()
    assert {room(module) for module in every} <= set().union(*FLOORS)
    assert not [f"{module} -> {to}" for module, to in found if floor(to) > floor(room(module))]
    below = {name: set() for rooms in FLOORS for name in rooms}
    for module, to in found:
        below[room(module)].add(to)
    TopologicalSorter(below).prepare()  # raises CycleError, which names them
    for module, tree in every.items():
        names = imported(tree)
        assert not [name for name in names if name.startswith("tools")], module
        if module != "networks.base":  # whose methods for the hub go through the public names
            assert "gapkd" not in names, module


def test_every_public_name_leads_somewhere():
    for name in gapkd.__all__:
        assert getattr(gapkd, name).__name__ == name


def test_a_floor_has_few_doors():
    for folder in {ROOT / "gapkd", *(file.parent for file in (ROOT / "gapkd").rglob("*.py"))}:
        names = {file.stem for file in folder.iterdir() if not file.name.startswith("__")}
        assert len(names) <= 14, f"{folder.relative_to(ROOT)} has {len(names)} entries"


def test_functions_fit_a_screen():
    long = []
    for module, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60:
                long.append(f"{module}.{node.name}")
    assert not long, "longer than 60 lines"


@notebook
def test_what_is_folded_is_rendered(path):
    """A line that begins with a tag is left as it is, markup and links too, until a blank line."""
    for cell in cells(path):
        if cell["cell_type"] == "markdown":
            for token in MarkdownIt("commonmark").parse(cell["source"]):
                if token.type == "html_block" and not token.content.startswith("<!--"):
                    assert not re.search(r"[`*]|\]\(", token.content), token.content
