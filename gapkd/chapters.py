"""What a chapter's notebook needs while it runs, and how one is run with other parameters.

What is written into the notebooks beforehand, badges and first cells, is in tools/readme.py.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from gapkd.files.storage import ROOT, data_path

NOTEBOOKS = ROOT / "notebooks"


def announce() -> None:
    """Make the kernel ready to train (`parallel.keep_memory`), and print the version, the device
    and whether the embedded networks are there."""
    import torch

    from gapkd import __version__, parallel

    parallel.keep_memory()

    device = f"CPU, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
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


def find_notebook(name: str) -> Path:
    """The notebook of that name, number or path. Raises ValueError naming the chapters."""
    files = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    for file in files:
        number = file.stem[:2]
        if name in (file.stem, file.name, number, number.lstrip("0")):
            return file
    if Path(name).is_file():
        return Path(name)
    known = ", ".join(file.stem for file in files)
    raise ValueError(f"there is no chapter {name}: choose one of {known}")


def parse_parameters(pairs: Sequence[str], known: dict) -> dict:
    """name=value pairs as papermill wants them.

    Args:
        pairs: as typed; values are read as YAML: numbers, booleans, lists.
        known: the notebook's parameters, name -> default, as papermill reports them.

    Raises ValueError naming an unknown or malformed parameter (papermill itself only warns).
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
        name: of the chapter, its number, or the path of a notebook.
        parameters: name=value pairs.
        out: folder for the executed notebook and what it writes; empty: the next free
            runs/<chapter>-NNN.

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
    where = short(executed)
    print(f"running {notebook.stem} (some minutes on two cores); {where} fills in", flush=True)
    try:
        papermill.execute_notebook(
            str(notebook), str(executed), values, cwd=str(folder), log_output=False,
            progress_bar=sys.stderr.isatty(),
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # no warning on transports
        )
    except papermill.PapermillExecutionError as error:
        raise ValueError(
            f"{notebook.name} stopped at cell {error.exec_count}: {error.ename}: {error.evalue}; "
            f"see {where}"
        ) from error
    print(f"notebook  {where}")
    summary = folder / "result.json"
    if summary.exists():
        for key, value in json.loads(summary.read_text()).items():
            is_file = (folder / str(value)).exists()
            print(f"{key:<9} {short(folder / value) if is_file else value}")
    return folder


def short(path: Path) -> str:
    """A path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
