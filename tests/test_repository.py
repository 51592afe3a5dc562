"""The repository as a reader finds it: notebooks stored executed and clean, its address in one place."""

import json
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST = 500_000  # bytes
TAGS = {"parameters", "nbval-check-output", "nbval-ignore-output", "nbval-skip", "raises-exception"}

# folders of a machine, Windows too; the lookbehind lets URLs and relative paths pass
MACHINE_PATH = re.compile(r"(?<![\w./:])/(?:home|root|tmp|work|mnt|opt|usr|var|private|Users|content)/[\w.-]+"
                          r"|\b[A-Z]:\\\\?\w|site-packages|file://")
notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[dict]:
    """The code cells that are not empty."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def shows_something(cell: dict) -> bool:
    """Whether running the cell must leave an output: it prints, displays, or ends with a bare expression."""
    source = "".join(cell["source"])
    if re.search(r"^(?:print|display)\(|^plt\.show\(", source, flags=re.MULTILINE):
        return True
    last = [line for line in source.splitlines() if line.strip() and not line.lstrip().startswith("#")][-1]
    return bool(re.fullmatch(r"[\w.]+", last)) and last not in {"pass", "continue", "break"}


def texts(output: dict) -> str:
    """Everything in an output that a reader sees as text."""
    data = output.get("data", {})
    parts = [output.get("text", ""), *(value for kind, value in data.items() if kind.startswith("text/"))]
    return "\n".join("".join(part) for part in parts)


def test_there_are_notebooks():
    assert NOTEBOOKS, "notebooks/ holds no notebook"
    assert [path.name[:3] for path in NOTEBOOKS] == [f"{i:02}_" for i in range(len(NOTEBOOKS))]


@notebook
def test_stored_executed_from_top_to_bottom(path):
    # nbval compares nothing in a notebook without outputs, and calls it green: hence this test
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    silent = ["".join(cell["source"])[:60] for cell in cells if shows_something(cell) and not cell["outputs"]]
    assert not silent, f"cells that show something are stored without it: {silent}"
    for cell in cells:
        for output in cell["outputs"]:
            assert output.get("execution_count", cell["execution_count"]) == cell["execution_count"]


@notebook
def test_has_verdicts_to_compare(path):
    verdicts = [cell for cell in code_cells(path) if "nbval-check-output" in tags(cell)]
    assert verdicts, "no cell is tagged nbval-check-output: the notebook would be run but never compared"
    for cell in verdicts:
        assert cell["outputs"], f"a verdict without output: {''.join(cell['source'])[:60]}"


@notebook
def test_outputs_are_clean(path):
    for cell in code_cells(path):
        for output in cell["outputs"]:
            where = "".join(cell["source"])[:60]
            assert output["output_type"] != "error", f"a stored error ({output.get('ename')}) at: {where}"
            assert output.get("name") != "stderr", f"stored stderr ({texts(output)[:80]!r}) at: {where}"
            assert not MACHINE_PATH.search(texts(output)), f"a path of a machine in the output of: {where}"
            assert not re.search(r"\d%\|", texts(output)), f"a stored progress bar at: {where}"


@notebook
def test_is_light(path):
    assert path.stat().st_size < LARGEST, f"{path.stat().st_size:,} bytes"


@notebook
def test_has_one_parameters_cell_and_no_injected_one(path):
    every = [tag for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] for tag in tags(cell)]
    assert every.count("parameters") == 1
    assert set(every) <= TAGS, f"unknown tags (a misspelt one would switch a check off): {set(every) - TAGS}"


def own_files() -> list[Path]:
    """Every file of the working tree that is neither a result nor a leftover of a tool."""
    skipped = {"runs", "build", "dist", "__pycache__"}
    found = []
    for folder, below, names in os.walk(ROOT):
        below[:] = [name for name in below if name == ".github"
                    or not (name in skipped or name.startswith(".") or name.endswith(".egg-info"))]
        found += [Path(folder, name) for name in names]
    return found


def test_the_public_address_has_one_home():
    """Outside pyproject.toml the address stands only where a command writes it: notebooks and the README."""
    written = {ROOT / "pyproject.toml", ROOT / "README.md", *NOTEBOOKS}
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    address = re.search(r'^Repository = "https://([^"]+)"', pyproject, flags=re.MULTILINE)[1]
    for path in own_files():
        if path not in written and path.suffix in {".py", ".md", ".yml", ".toml", ".txt", ".cfg", ".ipynb"}:
            assert address not in path.read_text(encoding="utf-8"), path.relative_to(ROOT)
