"""The repository as a reader finds it: clean notebooks, one address, imports that go down."""

import ast
import json
import os
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST = 2**20  # bytes: pictures in all their colours
TAGS = {"parameters", "hide-input", "nbval-check-output", "nbval-ignore-output", "nbval-skip",
        "raises-exception"}

# folders of a machine, Windows too; the lookbehind lets URLs and relative paths pass
MACHINE_PATH = re.compile(
    r"(?<![\w./:])/(?:home|root|tmp|work|mnt|opt|usr|var|private|Users|content)/[\w.-]+"
    r"|\b[A-Z]:\\\\?\w|site-packages|file://")
notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path) -> list[dict]:
    """All cells, their sources as one string."""
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in found]


def code_cells(path: Path) -> list[dict]:
    """The code cells that are not empty."""
    return [c for c in cells(path) if c["cell_type"] == "code" and c["source"].strip()]


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
    assert NOTEBOOKS, "notebooks/ holds no notebook"
    assert [path.name[:3] for path in NOTEBOOKS] == [f"{i:02}_" for i in range(len(NOTEBOOKS))]


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
    assert every.count("parameters") == 1
    assert set(every) <= TAGS, f"a misspelt tag would switch a check off: {set(every) - TAGS}"
    verdicts = [cell for cell in code_cells(path) if "nbval-check-output" in tags(cell)]
    assert verdicts, "no cell is tagged nbval-check-output: it would be run but never compared"
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
            assert not re.search(r"\d%\|", text), f"a stored progress bar at: {where}"


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
    {"parallel", "settings"}, {"files.storage"}, {"networks"}, {"data"}, {"files"},
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


def test_every_module_has_a_room():
    assert {room(module) for module in modules()} <= set().union(*FLOORS)


def test_imports_go_down():
    up = [f"{module} -> {to}" for module, to in arrows() if floor(to) > floor(room(module))]
    assert not up


def test_rooms_do_not_import_in_a_circle():
    below = {name: set() for rooms in FLOORS for name in rooms}
    for module, to in arrows():
        below[room(module)].add(to)
    TopologicalSorter(below).prepare()  # raises CycleError, which names them


def test_nothing_in_the_package_imports_tools():
    for module, tree in modules().items():
        assert not [name for name in imported(tree) if name.startswith("tools")], module


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
