"""What is written into notebooks and README: badges, first cells, notation, tables of chapters and
results.

`python -m tools.readme` writes the Colab badges and the first code cells of all notebooks from the
address in pyproject.toml, their notation from tools/notation.md, and the README's tables from the
notebooks and the stored results; tests keep them in step. `python -m tools.readme
04_full_distillation 04_solutions` executes that chapter and its solutions first and stores them
with their outputs and the measured time. `--story` draws the picture at the top anew.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import tyro

from gapkd.chapters import NOTEBOOKS, ROOT, find_notebook
from gapkd.experiments.results import (
    REFERENCES,
    read_faces,
    read_results,
    results_table,
    sweep_note,
)
from gapkd.experiments.sweep import read_table
from gapkd.files.provenance import hardware
from gapkd.files.storage import write_atomically
from gapkd.settings import command_line
from gapkd.viewing import figures
from gapkd.viewing.diagrams import QUESTIONS
from tools.benchmark import BenchmarkConfig, show_benchmark
from tools.growth import GrowthConfig, show_growth

FIRST_CELL = """\
# Where gapkd is missing (as on Colab): take the clone around this notebook, or else install it.
{imports}import sys
from importlib.util import find_spec
from pathlib import Path

if getattr(find_spec("gapkd"), "origin", None) is None:
    above = [Path.cwd(), *Path.cwd().parents]
    clone = [str(f) for f in above if (f / "gapkd/chapters.py").is_file()]
    sys.path[:0] = clone[:1]
{install}

from gapkd.chapters import announce

announce()"""
INSTALL = """\
    pip = [sys.executable, "-m", "pip", "install", "-q", "git+{address}"]
    if not clone and subprocess.run(pip).returncode:
        sys.exit("gapkd could not be installed (pip says why above): check the connection")"""
UNSET = """\
    if not clone:
        sys.exit("gapkd is not installed here, and this notebook does not know its repository: "
                 "open it in a clone, or run `pip install git+ADDRESS` first.")"""
BADGE = re.compile(
    r"(?:<!-- colab: (?P<chapter>[\w-]+) -->)?"
    r"(?:\[!\[Open in Colab\]\([^)]*\)\]\([^)]*/notebooks/(?P<name>[\w-]+)\.ipynb\))?")
NOTATION = "<details><summary>Notation of the course</summary>"
TIME = re.compile(r"\*\*Time:\*\*.*?\.(?=\s|$)", re.DOTALL)


# -------------------------------------------------------------------- one address, many places


def address() -> str:
    """The repository's public address: project.urls in pyproject.toml, the one place with it."""
    text = (ROOT / "pyproject.toml").read_text()
    found = re.search(r'^Repository = "(https://[^"]+)"', text, re.MULTILINE)
    if not found:
        raise ValueError("pyproject.toml names no Repository under [project.urls]: add it")
    return found[1].rstrip("/")


def is_published() -> bool:
    """Whether that address is more than a placeholder."""
    return "/OWNER/" not in address()


def badge(notebook: str) -> str:
    """Markdown of the Colab badge of a chapter: until the address is known, its place alone."""
    place = f"<!-- colab: {notebook} -->"
    if not is_published():
        return place
    colab = "https://colab.research.google.com"
    owner_name = address().removeprefix("https://github.com/")
    link = f"{colab}/github/{owner_name}/blob/main/notebooks/{notebook}.ipynb"
    return f"{place}[![Open in Colab]({colab}/assets/colab-badge.svg)]({link})"


def first_cell() -> str:
    """Source of every chapter's first code cell."""
    if not is_published():
        return FIRST_CELL.format(imports="", install=UNSET)
    install = INSTALL.format(address=address())
    return FIRST_CELL.format(imports="import subprocess\n", install=install)


def synced(text: str) -> str:
    """Markdown with every Colab badge pointing to the current address."""
    def anew(found: re.Match) -> str:
        name = found["chapter"] or found["name"]
        return badge(name) if name else found[0]

    return BADGE.sub(anew, text)


def notation() -> str:
    """Markdown of the folded table of symbols, the same in every chapter."""
    table = (ROOT / "tools" / "notation.md").read_text(encoding="utf-8")
    return f"{NOTATION}\n\n{table}\n</details>"


def notebooks() -> list[Path]:
    """All chapters, then all solutions."""
    return [*sorted(NOTEBOOKS.glob("*.ipynb")), *sorted(NOTEBOOKS.glob("solutions/*.ipynb"))]


def sync_notebook(notebook: dict) -> dict:
    """A notebook (parsed JSON) with its badge, notation and first code cell written anew; the rest
    as is."""
    notebook = json.loads(json.dumps(notebook))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            text = "".join(cell["source"])
            text = notation() if text.startswith(NOTATION) else synced(text)
            cell["source"] = text.splitlines(keepends=True)
    code = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    code["source"] = first_cell().splitlines(keepends=True)
    return notebook


# ------------------------------------------------------------------------------ the README's tables


def chapter_rows() -> str:
    """The table of chapters: title and measured time come from the notebooks themselves."""
    colab = is_published()
    lines = ["| | chapter | question | time |" + " Colab |" * colab,
             "|---|---|---|---|" + "---|" * colab]
    for file in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        number = file.stem[:2]
        cells = json.loads(file.read_text())["cells"]
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        title = re.search(r"^# (?:\d+\s*[·:.]\s*)?(.+)$", text, re.MULTILINE)[1]
        measured = re.search(r"\*\*Time:\*\* ([^,.]+)", text)[1].strip()
        question = QUESTIONS[number][0].replace("\n", " ")
        lines.append(f"| {number} | [{title}](notebooks/{file.name}) | {question} | {measured} |"
                     + f" {badge(file.stem)} |" * colab)
    if not colab:
        lines += ["", BY_HAND]
    return "\n".join(lines)


BY_HAND = """To open chapters on Colab, write the address of your copy of this repository into
pyproject.toml (`Repository`) and run `python -m tools.readme`: every chapter gets a badge.
Or upload a notebook by hand and put `!pip install git+ADDRESS` above its first cell."""

SUMMARY = {"own": "a mapping network of its own",
           "own-fast": "the same, and that network learns at the full rate",
           "inherited": "**the teacher's mapping network**",
           "recipe": "and the teacher's best channels: the recipe",
           "finished": "the recipe for {images:,} images",
           "paper": "the paper's losses, at its rate: a sixteenth of the others'"}
"""Arms of the README's table, and what they are."""


def summary() -> str:
    """The README's table of results: the finished students at 64 px, means over their seeds."""
    folder = ROOT / "data" / "results"
    runs: dict[str, list[dict]] = {}  # arm -> the records of its seeds
    for record in read_results(folder / "students.jsonl"):
        runs.setdefault(record["arm"], []).append(record)
    runs["finished"] = [record for record in read_results(folder / "finished.jsonl")
                        if record["arm"] == "recipe"]

    def of(arm: str, name: str) -> list[float]:
        return [record["final"][name] for record in runs[arm]]

    fid = next(name for name in runs["teacher"][0]["final"] if name.startswith("second_fid_toy"))
    r, same = "second_agree_mean_correlation", "second_agree_mean_accuracy"
    lines = [f"| {runs['own'][0]['images']:,} images: a student with | r (chance 0) "
             f"| same class (chance) | FID (teacher {of('teacher', fid)[0]:.2f}) |",
             "|---|--:|--:|--:|"]
    for arm, words in SUMMARY.items():
        alike, chance = mean(of(arm, same)), mean(of(arm, f"{same}_chance"))
        once = " (one seed)" if len(runs[arm]) == 1 else ""
        lines.append(f"| {words.format(**runs[arm][0])}{once} | {mean(of(arm, r)):.2f} "
                     f"| {alike:.2f} ({chance:.2f}) | {mean(of(arm, fid)):.2f} |")
    seeds = max(len(runs[arm]) for arm in SUMMARY)
    spread = max(stdev(of(arm, r)) for arm in SUMMARY if len(runs[arm]) > 1)
    fast, slow = (runs[arm][0]["settings"]["lr"] for arm in ("own", "paper"))
    legend = (f"Means of {seeds} seeds (largest standard deviation of r: {spread:.3f}). r: mean "
              "correlation of the factors of the two faces of one z. FID: in toy-face features, "
              "5,000 images. All are read by a network that no student was trained with; the "
              "tables in data/results are read by another. "
              f"Learning rate {fast}, with the recipe's schedule; in the last row {slow}, without "
              "schedule and path-length regularisation. `gapkd distill --teacher toyfaces64 "
              f"--recipe gapkd --lr {fast}` trains the recipe's student.")
    return "\n".join([*lines, "", legend])


def measured(name: str, tool: str, cls: type, show: Callable[[dict], str]) -> list[str]:
    """The tables of a stored record, and how it came about: command, machine, day, version."""
    record = json.loads((ROOT / "data" / "results" / f"{name}.json").read_text())
    command = command_line(f"python -m {tool}", cls, record["settings"])
    return [show(record), f"Measured with `{command}` on {record['hardware']}, {record['threads']} "
                          f"threads, {record['date']}, commit {record['commit']}."]


def sweep_section(name: str, beside: Sequence[dict] = ()) -> list[str]:
    """Table and note of a sweep; `beside`: records of another sweep, shown above it."""
    file = f"tools/sweeps/{name}.yml"
    table = read_table(ROOT / file)
    records = read_results(ROOT / table.results)
    references = [record for record in records if record["arm"] in REFERENCES]
    runs = [record for record in records if record["arm"] in table.arms]
    arms = list(dict.fromkeys(record["arm"] for record in beside))
    arms += [arm for arm in table.arms if arm in {record["arm"] for record in runs}]
    shown = results_table([*beside, *runs], references, arms=arms)
    return [shown, sweep_note(file, runs, references)]


def whole_models() -> list[dict]:
    """The records of the table's sweep that stand beside those of other sizes."""
    records = read_results(ROOT / "data" / "results" / "table.jsonl")
    return [record | {"arm": f"{arm}, 30 %"} for arm in ("paper", "gapkd")
            for record in records if record["arm"] == arm]


def filled(text: str, mark: str, content: str) -> str:
    """Markdown with what stands between <!-- mark --> and <!-- /mark --> replaced."""
    between = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
    return between.sub(lambda found: f"{found[1]}{content}\n{found[2]}", text)


def readme(text: str) -> str:
    """The README with its badges, its table of chapters and its summary written anew."""
    for mark, content in {"chapters": chapter_rows(), "summary": summary()}.items():
        text = filled(text, mark, f"\n{content}\n")
    return synced(text)


def results_page(text: str) -> str:
    """The page of results with its tables written anew."""
    speed = "tools.benchmark", BenchmarkConfig, show_benchmark
    alone = ("table", "table64", "stranger64", "long", "students", "finished", "stylegan3",
             "photographs")
    sections = {name: sweep_section(name) for name in alone} | {
        "sizes": sweep_section("sizes", beside=whole_models()),
        "speed": measured("benchmark", *speed),
        "stylegan3-speed": measured("stylegan3_speed", *speed),
        "exports-speed": measured("exports", *speed),
        "growth": measured("growth", "tools.growth", GrowthConfig, show_growth),
    }
    for mark, parts in sections.items():
        text = filled(text, mark, "\n" + "\n\n".join(parts) + "\n")
    return text


# ----------------------------------------------------------------------------------------- writing


def execute(name: str) -> float:
    """Run a chapter, or the solutions of one ("04_solutions"), from top to bottom and store it with
    its outputs and its measured time.

    Returns: seconds.
    """
    import nbformat
    import torch
    from nbclient import NotebookClient

    solutions = NOTEBOOKS / "solutions" / f"{name}.ipynb"
    file = solutions if solutions.exists() else find_notebook(name)
    notebook = nbformat.read(file, as_version=4)
    start = time.perf_counter()
    NotebookClient(notebook, timeout=None, kernel_name="python3", record_timing=False,
                   resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    seconds = time.perf_counter() - start
    taken = "{} min {:02} s".format(*divmod(round(seconds), 60))
    taken += f", measured with {torch.get_num_threads()} threads on {hardware()}."
    notebook.metadata.pop("widgets", None)  # the widgets' state is of no use without their kernel
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = TIME.sub(f"**Time:** {taken}", cell.source)
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):  # a widget's picture is for all readers
                output["data"].pop("application/vnd.jupyter.widget-view+json", None)
    nbformat.write(notebook, file)
    return seconds


STORY = {"teacher": "the teacher", "own": "a student with\nits own mapping",
         "inherited": "one that inherits\nthe mapping",
         "recipe": "one that inherits\nchannels, too"}
"""Arms of `students` in the picture at the top, and what it calls them."""


def draw_story() -> None:
    """The README's picture: the teacher's faces above those of the first seed's students."""
    folder = ROOT / "data" / "results"
    faces = read_faces(folder / "students.jsonl", list(STORY))
    rows = {STORY[arm]: images[:6] for arm, images in faces.items()}
    finished = read_faces(folder / "finished.jsonl", ["recipe"])["recipe"]
    rows["the last one, trained\nfour times as long"] = finished[:6]
    title = "The same z down every column: what must a small StyleGAN inherit?"
    picture = figures.to_png(figures.compare_rows(rows, title, ncols=6, size=128))
    write_atomically(ROOT / "data" / "story.png", picture)


PAGES = {ROOT / "README.md": readme, ROOT / "data" / "results" / "README.md": results_page}
"""What `main` writes besides notebooks, and how."""


@dataclass(frozen=True)
class ReadmeConfig:
    """Write badges, first cells, notation and the README's tables."""

    chapters: tyro.conf.Positional[tuple[str, ...]] = ()
    """Run these first, and store them with their outputs."""
    story: bool = False
    """Draw the picture at the top anew."""


def main(config: ReadmeConfig) -> None:
    """Write what has changed, and say so."""
    for name in config.chapters:
        print(f"{name}: {execute(name):.0f} s", flush=True)
    if config.story:
        draw_story()
    for file in notebooks():
        notebook = sync_notebook(json.loads(file.read_text()))
        replace(file, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    for page, write in PAGES.items():
        replace(page, write(page.read_text()))


def replace(file: Path, text: str) -> None:
    """Write a file anew, and say so, if its text is another one."""
    if file.read_text() != text:
        file.write_text(text)
        print(f"wrote {file.name}")


if __name__ == "__main__":
    main(tyro.cli(ReadmeConfig, prog="python -m tools.readme"))
