"""The chapters: what their first cells need, how they are run with other parameters, and their common text.

`python -m gapkd.chapters` writes the Colab badges and the first code cells of all notebooks from the address in
pyproject.toml, and the README's tables from the notebooks and the stored results; a test keeps them in step.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"

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

announce()"""


def announce() -> None:
    """Print the version, the device and whether the embedded networks are there."""
    from gapkd import __version__
    from gapkd.files.checkpoints import data_path

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    try:
        data_path("toyfaces32.safetensors")
        data = "found"
    except FileNotFoundError as error:
        data = str(error)
    print(f"gapkd {__version__} · device: {device} · embedded networks: {data}")


def new_run(name: str) -> str:
    """The next free folder runs/<name>-NNN of the repository, for the `out` of a live training."""
    from gapkd.training.runs import next_run_folder

    return str(next_run_folder(name, ROOT / "runs"))


def results(name: str) -> list[dict]:
    """The stored longer runs in data/results/<name>.json: one record a run, with settings, seed, commit, hardware."""
    return _study(name)["runs"]


def reference_rows(name: str) -> list[dict]:
    """What gives the figures of `results` their scale: real images against other real ones, and the teacher."""
    return _study(name).get("references", [])


def _study(name: str) -> dict:
    from gapkd.files.checkpoints import data_path

    return json.loads(data_path(f"results/{name}.json").read_text())


def find_notebook(name: str) -> Path:
    """The notebook of that name, number or path. Raises ValueError naming the chapters."""
    files = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    for file in files:
        if name in (file.stem, file.name, file.stem[:2], file.stem[:2].lstrip("0")):
            return file
    if Path(name).is_file():
        return Path(name)
    raise ValueError(f"there is no chapter {name}: choose one of {', '.join(f.stem for f in files)}")


def parse_parameters(pairs: Sequence[str], known: dict) -> dict:
    """name=value pairs as papermill wants them.

    Args:
        known: the notebook's parameters, name -> default, as papermill reports them.
    Raises ValueError naming an unknown or malformed parameter (papermill itself only warns and runs on).
    """
    import yaml

    values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"write parameters as name=value, not {pair!r}")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
            raise ValueError(f"this chapter has no parameter {name}: {hint}")
        values[name] = yaml.safe_load(text)
    return values


def run_chapter(name: str, parameters: Sequence[str] = (), out: str = "") -> Path:
    """Execute a chapter through papermill and print where its results are.

    Args:
        parameters: name=value pairs.
        out: folder for the executed notebook and what it writes; empty: the next free runs/<chapter>-NNN.
    Returns: that folder.
    """
    import papermill

    notebook = find_notebook(name)
    folder = Path(out or new_run(notebook.stem)).resolve()
    executed = folder / notebook.name
    if executed.exists():
        raise ValueError(f"{executed} exists already: choose another out")
    known = {p: d["default"] for p, d in papermill.inspect_notebook(str(notebook)).items()}
    values = parse_parameters(parameters, known)
    if "out" in known and "out" not in values:
        values["out"] = str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"running {notebook.stem} (some minutes on two cores); the notebook fills in {short(executed)}", flush=True)
    try:
        papermill.execute_notebook(str(notebook), str(executed), values, cwd=str(folder),
                                   progress_bar=sys.stderr.isatty(), log_output=False,
                                   extra_arguments=["--IPKernelApp.log_level=CRITICAL"])  # no warning on transports
    except papermill.PapermillExecutionError as error:
        raise ValueError(f"{notebook.name} stopped at cell {error.exec_count}: {error.ename}: {error.evalue}; "
                         f"see {short(executed)}") from error
    print(f"notebook  {short(executed)}")
    summary = folder / "result.json"
    if summary.exists():
        for key, value in json.loads(summary.read_text()).items():
            print(f"{key:<9} {short(folder / value) if (folder / str(value)).exists() else value}")
    return folder


def short(path: Path) -> str:
    """A path as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


# ------------------------------------------------------------------------------------------- one address, many places


def address() -> str:
    """The repository's public address: project.urls in pyproject.toml, the one place that holds it."""
    found = re.search(r'^Repository = "(https://[^"]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    if not found:
        raise ValueError("pyproject.toml names no Repository under [project.urls]: add it")
    return found[1].rstrip("/")


def badge(notebook: str) -> str:
    """Markdown of the Colab badge of a chapter."""
    owner_name = address().removeprefix("https://github.com/")
    link = f"https://colab.research.google.com/github/{owner_name}/blob/main/notebooks/{notebook}.ipynb"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({link})"


def first_cell() -> str:
    """Source of every chapter's first code cell."""
    return FIRST_CELL.format(address=address(), name=address().rsplit("/", 1)[1])


BADGE = re.compile(r"\[!\[Open in Colab\]\([^)]*\)\]\([^)]*/notebooks/(?P<name>[\w-]+)\.ipynb\)")


def synced(text: str) -> str:
    """Markdown with every Colab badge pointing to the current address."""
    return BADGE.sub(lambda found: badge(found["name"]), text)


def sync_notebook(notebook: dict, name: str) -> dict:
    """A notebook (parsed JSON) with its badge and its first code cell written anew; all else untouched."""
    notebook = json.loads(json.dumps(notebook))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = synced("".join(cell["source"])).splitlines(keepends=True)
    code = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    code["source"] = first_cell().splitlines(keepends=True)
    return notebook


def chapter_rows() -> str:
    """The README's table of chapters: title and measured time come from the notebooks themselves."""
    lines = ["", "| | chapter | Colab | measured time |", "|---|---|---|---|"]
    for file in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        cells = json.loads(file.read_text())["cells"]
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        title = re.search(r"^# (.+)$", text, re.MULTILINE)
        measured = re.search(r"\*\*Time:\*\* ([^,.]+)", text)
        name = re.sub(r"^\d+\s*[·:.]\s*", "", title[1]) if title else file.stem
        lines.append(f"| {file.stem[:2]} | [{name}](notebooks/{file.name}) | {badge(file.stem)} "
                     f"| {measured[1].strip() if measured else ''} |")
    return "\n".join([*lines, ""])


def filled(text: str, mark: str, content: str) -> str:
    """Markdown with what stands between <!-- mark --> and <!-- /mark --> replaced."""
    between = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
    return between.sub(lambda m: f"{m[1]}{content}\n{m[2]}", text)


def readme(text: str) -> str:
    """The README with its badges and its tables of chapters, results and speed written anew."""
    from gapkd.benchmark import BenchmarkConfig, show_benchmark
    from gapkd.experiments.study import results_note, results_table
    from gapkd.experiments.sweep import REFERENCES, read_results, read_table, sweep_note
    from gapkd.settings import command_line
    from gapkd.training.plan import GrowthConfig, show_growth

    def stored(name: str) -> dict:
        return json.loads((ROOT / "data" / "results" / f"{name}.json").read_text())

    def measured_with(command: str, cls: type, table: dict) -> str:
        return (f"Measured with `{command_line(command, cls, table['settings'])}` on {table['hardware']}, "
                f"{table['threads']} threads, {table['date']}, commit {table['commit']}.")

    def study(name: str) -> list[str]:
        table = stored(name)
        return [results_table(table["runs"], table["references"]), results_note(table)]

    def speed(name: str) -> list[str]:
        record = stored(name)
        return [*show_benchmark(record), measured_with("gapkd benchmark", BenchmarkConfig, record)]

    def sweep(name: str, beside: Sequence[dict] = ()) -> list[str]:
        table = read_table(ROOT / "sweeps" / f"{name}.yml")
        records = read_results(ROOT / table.results)
        rows = [{"name": r["arm"], **r["final"]} for r in records if r["arm"] in REFERENCES]
        runs = [r for r in records if r["arm"] in table.arms]
        arms = [arm for arm in table.arms if any(r["arm"] == arm for r in runs)]
        return [results_table([*beside, *runs], rows, arms=[*dict.fromkeys(r["arm"] for r in beside), *arms]),
                sweep_note(f"sweeps/{name}.yml", runs)]

    growth = stored("growth")
    whole = [r | {"arm": f"{arm}, 30 %"} for arm in ("paper", "gapkd")
             for r in read_results(ROOT / "data" / "results" / "table.jsonl") if r["arm"] == arm]
    sections = {
        "table": sweep("table"), "sizes": sweep("sizes", beside=whole),
        "stylegan3": study("stylegan3_runs"), "photographs": study("photographs"),
        "speed": speed("benchmark"), "stylegan3-speed": speed("stylegan3_speed"),
        "growth": [show_growth(growth), measured_with("gapkd growth", GrowthConfig, growth)],
        "chapters": [chapter_rows().strip()]}
    for mark, parts in sections.items():
        text = filled(text, mark, "\n" + "\n\n".join(parts) + "\n")
    return synced(text)


TIME = re.compile(r"\*\*Time:\*\*[^.]*\.")


def execute(name: str) -> float:
    """Run a chapter from top to bottom and store it with its outputs and its measured time; returns the seconds."""
    import nbformat
    from nbclient import NotebookClient

    from gapkd.training.runs import hardware

    file = find_notebook(name)
    notebook = nbformat.read(file, as_version=4)
    start = time.perf_counter()
    NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOKS)}},
                   record_timing=False).execute()
    seconds = time.perf_counter() - start
    minutes = f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"
    measured = f"**Time:** {minutes}, measured with {torch.get_num_threads()} threads on {hardware()}."
    notebook.metadata.pop("widgets", None)  # the widgets' state is of no use without their kernel
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = TIME.sub(measured, cell.source)
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):  # the picture of a widget is what readers without a kernel get
                output["data"].pop("application/vnd.jupyter.widget-view+json", None)
    nbformat.write(notebook, file)
    return seconds


def main() -> None:
    """Write badges, first cells and the README's tables; chapters named on the command line are executed first."""
    for name in sys.argv[1:]:
        print(f"{name}: {execute(name):.0f} s", flush=True)
    for file in sorted(NOTEBOOKS.glob("*.ipynb")):
        before = file.read_text()
        after = json.dumps(sync_notebook(json.loads(before), file.stem), indent=1, ensure_ascii=False) + "\n"
        if after != before:
            file.write_text(after)
            print(f"wrote {file.name}")
    page = ROOT / "README.md"
    if readme(page.read_text()) != page.read_text():
        page.write_text(readme(page.read_text()))
        print("wrote README.md")


if __name__ == "__main__":
    main()
