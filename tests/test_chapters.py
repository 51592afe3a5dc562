"""Running chapters with other parameters, and keeping badges, first cells and README in step."""

from __future__ import annotations

import json

import nbformat
import pytest

from gapkd import chapters
from tools import readme


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """A chapter 07 of three cells in a folder of its own."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    sources = (
        "images = 4  # type: int\nout = ''  # type: str",
        "import json, pathlib\nassert images < 100, 'too many'",
        "pathlib.Path(out, 'result.json').write_text(json.dumps({'result': images * 2}))",
    )
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    made.cells[0].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made.metadata["kernelspec"] = kernel
    nbformat.write(made, folder / "07_tiny.ipynb")
    monkeypatch.setattr(chapters, "NOTEBOOKS", folder)


def test_parameters_reach_the_notebook_and_nothing_is_overwritten(notebook, tmp_path, capsys):
    folder = chapters.run_chapter("07", ["images=21"], str(tmp_path / "out"))
    assert json.loads((folder / "result.json").read_text()) == {"result": 42}
    assert (folder / "07_tiny.ipynb").exists()
    printed = capsys.readouterr().out
    assert "07_tiny.ipynb" in printed and "result    42" in printed
    with pytest.raises(ValueError, match="exists already: choose another out"):
        chapters.run_chapter("07", out=str(tmp_path / "out"))


def test_a_failing_cell_is_one_sentence(notebook, tmp_path):
    message = "07_tiny.ipynb stopped at cell 3: AssertionError: too many"
    with pytest.raises(ValueError, match=message):
        chapters.run_chapter("7", ["images=500"], str(tmp_path / "out"))


@pytest.mark.parametrize("pair, message", [
    ("image=3", "no parameter image: did you mean images"),
    ("images", "name=value"),
    ("zzz=1", "it has images"),
])
def test_wrong_parameters_are_named(pair, message):
    with pytest.raises(ValueError, match=message):
        chapters.parse_parameters([pair], {"images": "4"})


def test_values_are_read_as_numbers_booleans_and_lists():
    pairs = ["a=0.5", "b=true", "c=[1, 2]", "d=x=y"]
    values = chapters.parse_parameters(pairs, dict.fromkeys("abcd"))
    assert values == {"a": 0.5, "b": True, "c": [1, 2], "d": "x=y"}


def test_an_unknown_chapter_names_the_known_ones(notebook):
    with pytest.raises(ValueError, match="no chapter 99: choose one of 07_tiny"):
        chapters.find_notebook("99")


# ------------------------------------------------------------------------------ what is written


FILES = sorted(chapters.NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_badge_and_first_cell_are_in_step_with_the_address(file):
    stored = json.loads(file.read_text())
    assert readme.sync_notebook(stored) == stored
    cells = [cell for cell in stored["cells"] if cell["cell_type"] == "markdown"]
    assert readme.badge(file.stem) in "".join("".join(cell["source"]) for cell in cells)


def test_the_readme_is_in_step():
    page = (chapters.ROOT / "README.md").read_text()
    assert readme.readme(page) == page, "run python -m tools.readme"


def test_another_address_reaches_badge_and_first_cell(monkeypatch):
    monkeypatch.setattr(readme, "address", lambda: "https://github.com/somebody/elsewhere")
    assert "somebody/elsewhere/blob/main/notebooks/04_x.ipynb" in readme.badge("04_x")
    assert '"https://github.com/somebody/elsewhere"' in readme.first_cell()
    old = "see [![Open in Colab](a)](https://b/notebooks/04_x.ipynb) here"
    assert readme.synced(old) == f"see {readme.badge('04_x')} here"
