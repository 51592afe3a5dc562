"""The wheel takes the course along: setuptools asks this class (pyproject.toml) when one is built.

A clone keeps data, notebooks and tables beside the package. In a wheel they lie in gapkd/_clone, at
the same paths, where `gapkd.files.storage.ROOT` then points. An editable install needs no copy.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from setuptools.command.build_py import build_py

CARRIED = ("data/SHA256SUMS", "data/README.md", "data/*.safetensors", "data/*.png",
           "data/results/**/*", "notebooks/**/*.ipynb", "tools/guide.md", "tools/sweeps/*.yml")
"""What lies in the wheel besides the package, seen from the clone: all that commands and chapters
read, or send their readers to."""


def carried(clone: Path) -> list[Path]:
    """The files that a wheel of this clone carries, as paths within it; no leftover of a tool."""
    found = {file.relative_to(clone) for pattern in CARRIED for file in clone.glob(pattern)
             if file.is_file()}
    return sorted(file for file in found if not any(p.startswith(".") for p in file.parts))


def without_outputs(notebook: str) -> str:
    """A notebook as it is before it runs: a third of the size, and it is run anew in any case."""
    content = json.loads(notebook)
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def without_dead_links(page: str, folder: Path, there: set[Path]) -> str:
    """A page of that folder whose links to files that are not there have become plain words."""
    def kept(link: re.Match) -> str:
        return link[0] if Path(os.path.normpath(folder / link[2])) in there else link[1]

    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)#:\s]+)(?:#[^)\s]*)?\)", kept, page)


def carry(clone: Path, folder: Path) -> None:
    """Copy what a wheel carries into a folder, in place of what an earlier build has left there."""
    shutil.rmtree(folder, ignore_errors=True)
    files = carried(clone)
    for file in files:
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".ipynb":
            text = (clone / file).read_text(encoding="utf-8")
            target.write_text(without_outputs(text), encoding="utf-8")
        elif file.suffix == ".md":
            text = (clone / file).read_text(encoding="utf-8")
            target.write_text(without_dead_links(text, file.parent, {*files}), encoding="utf-8")
        else:
            shutil.copyfile(clone / file, target)


class BuildPy(build_py):
    """`build_py`, which also copies what a wheel carries."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            carry(Path.cwd(), Path(self.build_lib, "gapkd", "_clone"))
