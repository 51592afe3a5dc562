"""What is written into notebooks and README: badges, first cells, tables of chapters and results.

`python -m tools.readme` writes the Colab badges and the first code cells of all notebooks from the
address in pyproject.toml, and the README's tables from the notebooks and the stored results; tests
keep them in step. `python -m tools.readme 04_full_distillation` executes that chapter first and
stores it with its outputs and its measured time.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from gapkd.chapters import NOTEBOOKS, ROOT, find_notebook

FIRST_CELL = """\
# On Colab, or wherever the package is missing: bring the repository and install it.
import importlib.util
import pathlib
import subprocess
import sys

found = importlib.util.find_spec("gapkd")
if found is None or found.origin is None:  # no origin: a folder of that name, not the package
    clone = pathlib.Path("{name}-course").resolve()
    if not clone.exists():
        subprocess.run(["git", "clone", "--quiet", "{address}", str(clone)], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "-e", str(clone)], check=True)
    sys.path.insert(0, str(clone))

from gapkd.chapters import announce

announce()"""  # noqa: E501
BADGE = re.compile(r"\[!\[Open in Colab\]\([^)]*\)\]\([^)]*/notebooks/(?P<name>[\w-]+)\.ipynb\)")
TIME = re.compile(r"\*\*Time:\*\*[^.]*\.")


# -------------------------------------------------------------------- one address, many places


def address() -> str:
    """The repository's public address: project.urls in pyproject.toml, the one place with it."""
    text = (ROOT / "pyproject.toml").read_text()
    found = re.search(r'^Repository = "(https://[^"]+)"', text, re.MULTILINE)
    if not found:
        raise ValueError("pyproject.toml names no Repository under [project.urls]: add it")
    return found[1].rstrip("/")


def badge(notebook: str) -> str:
    """Markdown of the Colab badge of a chapter."""
    colab = "https://colab.research.google.com"
    owner_name = address().removeprefix("https://github.com/")
    link = f"{colab}/github/{owner_name}/blob/main/notebooks/{notebook}.ipynb"
    return f"[![Open in Colab]({colab}/assets/colab-badge.svg)]({link})"


def first_cell() -> str:
    """Source of every chapter's first code cell."""
    return FIRST_CELL.format(address=address(), name=address().rsplit("/", 1)[1])


def synced(text: str) -> str:
    """Markdown with every Colab badge pointing to the current address."""
    return BADGE.sub(lambda found: badge(found["name"]), text)


def sync_notebook(notebook: dict) -> dict:
    """A notebook (parsed JSON) with its badge and first code cell written anew; the rest as is."""
    notebook = json.loads(json.dumps(notebook))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = synced("".join(cell["source"])).splitlines(keepends=True)
    code = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    code["source"] = first_cell().splitlines(keepends=True)
    return notebook


# ------------------------------------------------------------------------------ the README's tables


def chapter_rows() -> str:
    """The table of chapters: title and measured time come from the notebooks themselves."""
    lines = ["| | chapter | Colab | measured time |", "|---|---|---|---|"]
    for file in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        cells = json.loads(file.read_text())["cells"]
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        title = re.search(r"^# (?:\d+\s*[·:.]\s*)?(.+)$", text, re.MULTILINE)[1]
        measured = re.search(r"\*\*Time:\*\* ([^,.]+)", text)[1].strip()
        link = f"[{title}](notebooks/{file.name})"
        lines.append(f"| {file.stem[:2]} | {link} | {badge(file.stem)} | {measured} |")
    return "\n".join(lines)


def stored(name: str) -> dict:
    """A record of data/results."""
    return json.loads((ROOT / "data" / "results" / f"{name}.json").read_text())


def measured_with(command: str, cls: type, record: dict) -> str:
    """How a record came about: command, machine, day, version."""
    from gapkd.settings import command_line

    return (
        f"Measured with `{command_line(command, cls, record['settings'])}` on "
        f"{record['hardware']}, {record['threads']} threads, {record['date']}, "
        f"commit {record['commit']}."
    )


def study_section(name: str) -> list[str]:
    """Table and note of a stored study."""
    from gapkd.experiments.study import results_note, results_table

    table = stored(name)
    return [results_table(table["runs"], table["references"]), results_note(table)]


def sweep_section(name: str, beside: Sequence[dict] = ()) -> list[str]:
    """Table and note of sweeps/<name>.yml; `beside`: records of another sweep, shown above it."""
    from gapkd.experiments.study import results_table
    from gapkd.experiments.sweep import REFERENCES, read_results, read_table, sweep_note

    table = read_table(ROOT / "sweeps" / f"{name}.yml")
    records = read_results(ROOT / table.results)
    references = [{"name": r["arm"], **r["final"]} for r in records if r["arm"] in REFERENCES]
    runs = [record for record in records if record["arm"] in table.arms]
    measured = {record["arm"] for record in runs}
    arms = list(dict.fromkeys(record["arm"] for record in beside))
    arms += [arm for arm in table.arms if arm in measured]
    shown = results_table([*beside, *runs], references, arms=arms)
    return [shown, sweep_note(f"sweeps/{name}.yml", runs)]


def whole_models() -> list[dict]:
    """The records of the table's sweep that stand beside those of other sizes."""
    from gapkd.experiments.sweep import read_results

    records = read_results(ROOT / "data" / "results" / "table.jsonl")
    return [r | {"arm": f"{r['arm']}, 30 %"} for arm in ("paper", "gapkd")
            for r in records if r["arm"] == arm]


def speed_section(name: str) -> list[str]:
    """Tables of a stored benchmark."""
    from gapkd.benchmark import BenchmarkConfig, show_benchmark

    record = stored(name)
    return [*show_benchmark(record), measured_with("gapkd benchmark", BenchmarkConfig, record)]


def growth_section() -> list[str]:
    """How time and memory grow."""
    from gapkd.training.plan import GrowthConfig, show_growth

    record = stored("growth")
    return [show_growth(record), measured_with("gapkd growth", GrowthConfig, record)]


def filled(text: str, mark: str, content: str) -> str:
    """Markdown with what stands between <!-- mark --> and <!-- /mark --> replaced."""
    between = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
    return between.sub(lambda found: f"{found[1]}{content}\n{found[2]}", text)


def readme(text: str) -> str:
    """The README with its badges and its tables of chapters, results and speed written anew."""
    sections = {
        "chapters": [chapter_rows()],
        "table": sweep_section("table"),
        "sizes": sweep_section("sizes", beside=whole_models()),
        "stylegan3": study_section("stylegan3_runs"),
        "photographs": study_section("photographs"),
        "speed": speed_section("benchmark"),
        "stylegan3-speed": speed_section("stylegan3_speed"),
        "growth": growth_section(),
    }
    for mark, parts in sections.items():
        text = filled(text, mark, "\n" + "\n\n".join(parts) + "\n")
    return synced(text)


# ----------------------------------------------------------------------------------------- writing


def execute(name: str) -> float:
    """Run a chapter from top to bottom and store it with its outputs and its measured time.

    Returns: seconds.
    """
    import nbformat
    import torch
    from nbclient import NotebookClient

    from gapkd.training.runs import hardware

    file = find_notebook(name)
    notebook = nbformat.read(file, as_version=4)
    start = time.perf_counter()
    NotebookClient(
        notebook, timeout=None, kernel_name="python3", record_timing=False,
        resources={"metadata": {"path": str(NOTEBOOKS)}},
    ).execute()
    seconds = time.perf_counter() - start
    minutes = f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"
    place = f"{torch.get_num_threads()} threads on {hardware()}"
    notebook.metadata.pop("widgets", None)  # the widgets' state is of no use without their kernel
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = TIME.sub(f"**Time:** {minutes}, measured with {place}.", cell.source)
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                # the picture of a widget is what readers without a kernel get
                output["data"].pop("application/vnd.jupyter.widget-view+json", None)
    nbformat.write(notebook, file)
    return seconds


def main() -> None:
    """Write badges, first cells and tables; chapters named on the command line are run first."""
    for name in sys.argv[1:]:
        print(f"{name}: {execute(name):.0f} s", flush=True)
    for file in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = sync_notebook(json.loads(file.read_text()))
        replace(file, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    page = ROOT / "README.md"
    replace(page, readme(page.read_text()))


def replace(file: Path, text: str) -> None:
    """Write a file anew, and say so, if its text is another one."""
    if file.read_text() != text:
        file.write_text(text)
        print(f"wrote {file.name}")


if __name__ == "__main__":
    main()
