"""Running chapters with other parameters, and keeping badges, first cells and README in step."""

from __future__ import annotations

import ast
import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

import gapkd
from gapkd import chapters, settings
from gapkd.files import storage
from gapkd.files.checkpoints import load_generator, save_network
from gapkd.networks.stylegan2 import Generator
from gapkd.sharing.hub import save_pretrained
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
    chapters.run_chapter(checked_notebook(tmp_path, "a = 1"), out=str(tmp_path / "out"))
    assert "result    42" not in capsys.readouterr().out, "another chapter's result"


def test_a_kernel_of_another_name_is_this_one_and_one_that_dies_is_one_sentence(notebook, tmp_path):
    made = nbformat.read(chapters.NOTEBOOKS / "07_tiny.ipynb", 4)
    made.metadata["kernelspec"] = {"name": "conda-env-x", "display_name": "x", "language": "python"}
    nbformat.write(made, tmp_path / "named.ipynb")
    folder = chapters.run_chapter(str(tmp_path / "named.ipynb"), out=str(tmp_path / "out"))
    assert json.loads((folder / "result.json").read_text()) == {"result": 8}
    made.cells[1].source = "import os\nos._exit(1)"
    nbformat.write(made, tmp_path / "dying.ipynb")
    with pytest.raises(ValueError, match="dying.ipynb stopped, its kernel died .*; see "):
        chapters.run_chapter(str(tmp_path / "dying.ipynb"), out=str(tmp_path / "out"))


def test_a_failing_cell_is_one_sentence(notebook, tmp_path):
    with pytest.raises(ValueError, match=r"07_tiny.ipynb stopped at In \[3\]: AssertionError: too"):
        chapters.run_chapter("7", ["images=500"], str(tmp_path / "out"))


@pytest.mark.parametrize("default, text, value", [
    (0.1, "1e-3", 0.001), (0.1, "2", 2), (15_000, "1e5", 100_000), (1, "2.0", 2),
    (False, "on", True), (True, "no", False), ([2, 3], "[1, 2]", [1, 2]),
    (["paper"], "[on, 1e2]", ["on", 100]), ("x", "on", "on"), ("x", "1e3", "1e3"),
    ("", "x=y", "x=y"), ("x", "''", ""), (None, "0.5", 0.5), (1, "010", 10)])
def test_values_are_of_the_kind_of_the_default(default, text, value):
    found = chapters.parse_parameters([f"a={text}"], {"a": (default, "")})["a"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("default, pair, message", [
    (4, "images=many", "images must be a whole number, not 'many'"),
    (4, "images=0.5", "a whole number"), (4, "images=true", "a whole number"),
    (0.5, "images=x", "must be a number"), (True, "images=2", "true or false"),
    ([2], "images=2", "images must be a list, not 2"), ([2], "images=[1", "must be a list"),
    (4, "image=3", "no parameter image: did you mean images"), (4, "zzz=1", "it has images"),
    (4, "images", "name=value"), (4, "=5", "name=value")])
def test_wrong_parameters_are_named_before_the_kernel_starts(default, pair, message):
    with pytest.raises(ValueError, match=message):
        chapters.parse_parameters([pair], {"images": (default, "")})


@pytest.mark.parametrize("pairs", [["images=3", "images=4"], ["lr=1e-3", "lr=2e-3"]])
def test_a_parameter_that_is_given_twice_is_refused(pairs):
    with pytest.raises(ValueError, match=f"{pairs[0].partition('=')[0]} is given twice: leave one"):
        chapters.parse_parameters(pairs, {"images": (4, ""), "settings": ("", "")})


def test_files_count_from_where_the_command_was_typed(notebook, tmp_path, monkeypatch):
    """Files by the words beside a parameter, or since its default is an embedded network."""
    monkeypatch.setattr(chapters, "ROOT", tmp_path / "clone")
    for name in ("clone/runs/old", "here/photos", "here/random", "here/toyfaces"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "here" / "me.jpg").touch()
    monkeypatch.chdir(tmp_path / "here")
    known = {"data": ("toyfaces", '"toyfaces", or a folder or zip'),
             "mapping": ("inherit", "inherit or random"),
             "photo": ("", "your own picture, by its full path"),
             "student": ("toyfaces32", "a student"),
             "resume": ("", "folder of an earlier run"),
             "out": ("", "folder for the results")}
    read = lambda text: chapters.parse_parameters([text], known).popitem()[1]  # noqa: E731
    assert read("data=photos") == str(tmp_path / "here" / "photos")
    assert read("photo=me.jpg") == str(tmp_path / "here" / "me.jpg")
    assert read("student=photos") == str(tmp_path / "here" / "photos")
    assert read("resume=runs/old") == str(tmp_path / "clone" / "runs" / "old")
    assert read("out=new") == str(tmp_path / "here" / "new")
    for text in ("data=toyfaces", "mapping=random", "photo=", "student=toyfaces64",
                 "student=https://host/net.pkl"):
        assert read(text) == text.partition("=")[2]
    for text in ("data=phptos", "photo=you.jpg", "student=toyfaces65"):
        with pytest.raises(ValueError, match=f"{text}: there is neither a file nor .*/here/"):
            read(text)
    for text in ("data=https://host/photos.zip", "data=hf://user/name", "photo=file:///a.png"):
        with pytest.raises(ValueError, match=f"{text}: only networks may have an address: give"):
            read(text)
    with pytest.raises(ValueError, match="that exists, or a model hub's .* as hf://user/name"):
        read("student=user/name")
    with pytest.raises(ValueError, match="give a path that exists$"):  # it takes files alone
        chapters.parse_parameters(["perceptual=user/name"], known | SHORT)


SHORT = {"images": (4, ""), "teacher": ("toyfaces64", ""),
         "settings": ("recipe: gapkd, reuse: 4", "")}


@pytest.mark.parametrize("pairs, text", [
    (["flip=false", "lr=1e-3"], "recipe: gapkd, reuse: 4, flip: false, lr: 1e-3"),
    (["settings=recipe: paper"], "recipe: paper"),
    (["kernel=1", "settings="], "kernel: 1"),
    (["ld_blocks=[1, 2]", "images=9"], "recipe: gapkd, reuse: 4, ld_blocks: [1, 2]"),
    (["perceptual=lpips", "discriminator=toyfaces64_discriminator"],
     'recipe: gapkd, reuse: 4, perceptual: lpips, discriminator: "toyfaces64_discriminator"'),
    (["fid_features=https://host/judge.safetensors"],
     'recipe: gapkd, reuse: 4, fid_features: "https://host/judge.safetensors"')])
def test_settings_that_are_no_parameters_join_the_text_of_settings(pairs, text):
    assert chapters.parse_parameters(pairs, SHORT)["settings"] == text
    with pytest.raises(ValueError, match="data=https://host/a.zip: only networks may have"):
        chapters.parse_parameters(["data=https://host/a.zip"], SHORT)
    with pytest.raises(ValueError, match="no parameter kernel: it has images"):
        chapters.parse_parameters(["kernel=1"], {"images": (4, "")})


def test_a_number_is_no_file_whatever_the_words_beside_it_say():
    known = {"pictures": (60, "drawn into a folder"), "pair": ((1, 2), "in the file")}
    assert chapters.parse_parameters(["pictures=30"], known) == {"pictures": 30}
    with pytest.raises(ValueError, match="pair must be a tuple, not 'x'"):
        chapters.parse_parameters(["pair=x"], known)


@pytest.mark.parametrize("pair, message", [
    ("kernal=1", "no parameter kernal: did you mean kernel"),
    ("r1_end=1", "no parameter r1_end: did you mean lr_end"),
    ("kernel=2", "kernel must be one of 3, 1, not 2"),
    ("lr=fast", "lr must be a number, not 'fast'"),
    ("ld_blocks=[1", "cannot be read as settings: write name: value"),
    ("ld_blocks=1,2", r"ld_blocks=1,2: write several numbers as \[1, 2\]"),
    ("lr=0,001", "lr=0,001: .* and 0.5 with a point"),
    ("settings=reus: 4", "DistillConfig has no setting reus; did you mean reuse"),
    ("settings=images: 64", "images is a parameter of its own .* give images=... instead"),
    ("batch=0", "batch must be at least 1, not 0"),
    ("ld_weight=-3", "ld_weight must not be negative, but is -3"),
    ("discriminator=nowhere.pkl", "there is neither a file nor a folder .*nowhere.pkl")])
def test_wrong_settings_are_refused_before_the_kernel_starts(pair, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "gapkd.files.checkpoints", None)  # would take seconds
    with pytest.raises(ValueError, match=message):
        chapters.parse_parameters([pair], SHORT)


@pytest.mark.parametrize("pair, message", [
    ("ld_blocks=[9]", r"ld_blocks must name blocks 1 to 4 of the 64 px .*, not \[9\]"),
    ("ld_blocks=[]", r"ld_blocks must name blocks 1 to 4 .*, not \[\]"),
    ("settings=kind: mobile, kernel: 1", "depthwise convolutions are 3x3"),
    ("discriminator=toyfaces32_discriminator", "generator is one of 64 px, .* one of 32 px"),
    ("device=cuda:9", "device 'cuda:9' is not usable here")])
def test_settings_that_do_not_fit_the_teacher_leave_no_folder(pair, message, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(chapters, "runs_folder", lambda: tmp_path / "runs")
    monkeypatch.setitem(sys.modules, "papermill", None)  # no kernel is started
    file = checked_notebook(tmp_path, 'teacher = "toyfaces64"\nsettings = "recipe: gapkd"')
    with pytest.raises(ValueError, match=message):
        chapters.run_chapter(file, [pair])
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("given, message", [
    ({"settings": "batch: 0"}, "batch must be at least 1, not 0"),
    ({"settings": "recipe: gapkd, ld_blocks: [9]"}, r"ld_blocks must name .* 1 to 4 .*not \[9\]"),
    ({"settings": "keep: 0.5"}, "settings: keep is a parameter of its own"),
    ({"device": "cuda:9"}, "device 'cuda:9' is not usable here")])
def test_the_cell_below_the_parameters_refuses_wrong_settings(given, message):
    """As papermill and JupyterLab meet it: in chapter 4, before its run has a folder."""
    known, _ = chapters._settings_of(chapters.find_notebook("04"))
    cells = json.loads(chapters.find_notebook("04").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    at = next(n for n, source in enumerate(code) if "check_parameters(" in source)
    assert not any("mkdir(" in source for source in code[:at + 1])
    call = next(ast.unparse(node) for node in ast.parse(code[at]).body
                if ast.unparse(node).startswith("check_settings("))
    scope = {name: default for name, (default, _) in known.items()}
    scope["check_settings"] = chapters.check_settings
    exec(call, scope)  # the defaults pass
    with pytest.raises(ValueError, match=message):
        exec(call, scope | given)


def test_the_chapter_of_make_distill_takes_every_setting():
    """papermill leaves out a line of parameters that it cannot read, and only says so."""
    import papermill

    assert chapters.find_notebook("0") == chapters.find_notebook("00")
    known, _ = chapters._settings_of(chapters.find_notebook("04"))
    assert papermill.inspect_notebook(str(chapters.find_notebook("04"))).keys() == known.keys()
    given = chapters.parse_parameters(["kernel=1", "synthesis=random", "gan_weight=1"], known)
    assert settings.read_settings(given["settings"])["gan_weight"] == 1
    own = chapters.parse_parameters(["keep=0.5", "lr=0.01", "reuse=1", "recipe=paper"], known)
    config = settings.DistillConfig(**settings.read_settings(own["settings"]))
    assert config == settings.DistillConfig(recipe="paper", lr=0.01)  # which the chapter's was not


def test_where_the_repository_can_only_be_read(notebook, tmp_path, monkeypatch, capsys):
    (tmp_path / "clone").touch()  # nothing can be made in it
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(storage, "ROOT", tmp_path / "clone")
    monkeypatch.chdir(tmp_path / "here")
    assert chapters.new_run("a") == str(tmp_path / "here" / "runs" / "a-001")
    assert "clone/runs cannot be written: this run goes into" in capsys.readouterr().out
    with monkeypatch.context() as wheel:  # has no runs of its own: nothing to be said
        wheel.setattr(storage, "INSTALLED", True)
        assert chapters.new_run("a") == str(tmp_path / "here" / "runs" / "a-001")
    assert capsys.readouterr().out == ""
    (tmp_path / "here" / "runs").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert chapters.new_run("a") == str(tmp_path / "home" / "gapkd-runs" / "a-001")
    (tmp_path / "home").touch()
    with pytest.raises(ValueError, match="no run can be written below .*: name a folder with out"):
        chapters.new_run("a")
    with pytest.raises(ValueError, match="cannot be made, since .*/clone is a file"):
        chapters.run_chapter("07", out=str(tmp_path / "clone" / "out"))


CHECKED = """images = 4  # type: int  how many
blocks = [2, 3]         # "#" is no comment here
name: str = "x # y"     # type: str  of the run, ä

teacher = "toyfaces32"  # type: str  file of a network"""
CHECKS = """check_parameters(globals(), images=(1, 10**2), blocks=[0, 8], name=("x # y", "z"),
                 teacher="network", other=(1, most()))"""


def checked_notebook(folder, *sources) -> str:
    """A notebook of these code cells, the first one of parameters."""
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    made.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(made, folder / "checked.ipynb")
    return str(folder / "checked.ipynb")


def test_what_a_notebook_says_of_its_parameters_is_read_without_running_it(tmp_path):
    file = Path(checked_notebook(tmp_path, CHECKED, "!pip list  # check_parameters(globals()",
                                 CHECKS))
    known, rules = chapters._settings_of(file)
    assert rules == {"images": (1, 100), "blocks": [0, 8], "name": ("x # y", "z"),
                     "teacher": "network"}
    assert known["images"] == (4, "how many")
    assert known["blocks"] == ([2, 3], '"#" is no comment here')
    assert known["name"] == ("x # y", "of the run, ä")
    assert known["teacher"] == ("toyfaces32", "file of a network")


def test_a_chapter_without_the_extra_is_one_sentence(notebook, tmp_path, monkeypatch):
    monkeypatch.setattr(chapters, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'needs papermill and ipykernel .*"gapkd\[course\]"'):
        chapters.run_chapter("07", out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_is_no_notebook_is_one_sentence(notebook, tmp_path):
    (tmp_path / "x.ipynb").write_text("[]")
    with pytest.raises(ValueError, match="x.ipynb cannot be read as a notebook"):
        chapters.run_chapter(str(tmp_path / "x.ipynb"))
    made = json.loads((chapters.NOTEBOOKS / "07_tiny.ipynb").read_text())
    (tmp_path / "y.ipynb").write_text(json.dumps(made | {"nbformat": 3}))
    with pytest.raises(ValueError, match="y.ipynb is no notebook of format 4 .* save it"):
        chapters.run_chapter(str(tmp_path / "y.ipynb"), out=str(tmp_path / "out"))
    made["cells"][2]["metadata"]["tags"] = None  # on which papermill stumbles
    (tmp_path / "t.ipynb").write_text(json.dumps(made))
    with pytest.raises(ValueError, match="t.ipynb cannot be read as a notebook"):
        chapters.run_chapter(str(tmp_path / "t.ipynb"), ["images=5"], str(tmp_path / "out"))
    (tmp_path / "z.ipynb").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="z.ipynb cannot be read as a notebook"):
        chapters.run_chapter(str(tmp_path / "z.ipynb"))
    with pytest.raises(ValueError, match="no chapter 99: choose one of 07_tiny"):
        chapters.run_chapter("99")


# ------------------------------------------------------------------------------ what is written


@pytest.mark.parametrize("file", readme.notebooks(), ids=lambda file: file.stem)
def test_badge_first_cell_and_notation_are_in_step(file):
    stored = json.loads(file.read_text())
    assert readme.sync_notebook(stored) == stored, "run python -m tools.readme"
    if file.parent.name == "solutions":
        return
    cells = [cell for cell in stored["cells"] if cell["cell_type"] == "markdown"]
    assert readme.badge(file.stem) in "".join("".join(cell["source"]) for cell in cells)


def test_a_measured_time_takes_the_place_of_another_whole():
    before = "**Time:** 1 min, measured on a Xeon CPU @\n2.20GHz. **Hardware:** any. More."
    assert readme.TIME.sub("NEW", before) == "NEW **Hardware:** any. More."


def test_the_notation_is_written_into_its_cell_alone():
    texts = [f"{readme.NOTATION}\n\nold\n", f"# X\n\n{readme.NOTATION}", "$z$"]
    cells = [{"cell_type": "markdown", "source": text} for text in texts]
    cells.append({"cell_type": "code", "source": "x"})
    written = readme.sync_notebook({"cells": cells})["cells"]
    assert "".join(written[0]["source"]) == readme.notation()
    assert ["".join(cell["source"]) for cell in written[1:3]] == texts[1:]
    table = readme.notation().removeprefix(f"{readme.NOTATION}\n\n").removesuffix("\n\n</details>")
    rows = table.split("\n")
    assert len(rows) > 10 and {row.count("|") for row in rows} == {6}


def test_the_places_of_the_notation_exist():
    places = re.findall(r"`(gapkd/[\w/]+\.py)`", readme.notation())
    for place in places:
        assert (chapters.ROOT / place).is_file(), place
    for name, place in re.findall(r"`(\w+)` in `(gapkd/[\w/]+\.py)`", readme.notation()):
        code = (chapters.ROOT / place).read_text()
        assert re.search(rf"^(class|def) {name}\b", code, re.MULTILINE), name
    for name in re.findall(r"`gapkd\.(\w+)`", readme.notation()):
        assert hasattr(gapkd, name), name
    assert len(places) > 5


@pytest.mark.parametrize("page, write", readme.PAGES.items(), ids=["README", "results"])
def test_pages_are_in_step(page, write):
    text = page.read_text()
    assert write(text) == text, "run python -m tools.readme"


def test_the_readme_is_short_and_shows_no_badge_that_leads_nowhere(monkeypatch):
    text = (chapters.ROOT / "README.md").read_text()
    assert len(text.encode()) < 9_500
    assert ("colab-badge" in text) == readme.is_published()
    monkeypatch.setattr(readme, "address", lambda: "https://github.com/somebody/elsewhere")
    assert readme.readme(text).count("colab-badge") == len(list(chapters.NOTEBOOKS.glob("*.ipynb")))


def test_another_address_reaches_badge_and_first_cell(monkeypatch):
    monkeypatch.setattr(readme, "address", lambda: "https://github.com/somebody/elsewhere")
    assert "somebody/elsewhere/blob/main/notebooks/04_x.ipynb" in readme.badge("04_x")
    assert '"git+https://github.com/somebody/elsewhere"' in readme.first_cell()
    for old in ("[![Open in Colab](a)](https://b/notebooks/04_x.ipynb)", readme.badge("04_x"),
                "<!-- colab: 04_x -->"):
        assert readme.synced(f"see {old} here") == f"see {readme.badge('04_x')} here"


@pytest.mark.parametrize("address", ["https://host/OWNER/gapkd", "https://host/me/gapkd"])
def test_the_first_cell_is_a_program_of_few_lines(monkeypatch, address):
    monkeypatch.setattr(readme, "address", lambda: address)
    cell = readme.first_cell()
    compile(cell, "first cell", "exec")
    assert len([line for line in cell.splitlines() if line]) <= 14 and "{" not in cell


# ------------------------------------------------------------------------------ what is checked


RULES = {"images": (1, 10**9), "keep": (0.01, 1.0), "device": ("auto", "cpu", "cuda"),
         "blocks": [0, 8], "noise": bool, "out": str, "teacher": "network"}


def test_parameters_are_checked_and_texts_become_what_they_say():
    scope = {"images": "8_000", "keep": 1, "device": "cpu", "blocks": "[2, 3]", "noise": "off",
             "out": "2026", "teacher": "toyfaces32"}
    chapters.check_parameters(scope, **RULES)
    assert scope == {"images": 8000, "keep": 1, "device": "cpu", "blocks": [2, 3], "noise": False,
                     "out": "2026", "teacher": "toyfaces32"}


@pytest.mark.parametrize("name, value, sentence", [
    ("images", "many", "images must be a whole number from 1 to 1,000,000,000, not 'many'"),
    ("images", 2.5, "images must be a whole number"),
    ("images", True, "images must be a whole number"),
    ("keep", 0, "keep must be a number from 0.01 to 1.0, not 0:"),
    ("keep", float("nan"), "keep must be a number"),
    ("device", "cud", r"one of auto, cpu, cuda, not 'cud' \(did you mean cuda\?\)"),
    ("blocks", [], "blocks must be a list, each entry a whole number from 0 to 8"),
    ("blocks", "[2, 9]", r"blocks must be a list, .* not \[2, 9\]"),
    ("blocks", "[2", r"blocks must be a list, .* not '\[2'"),
    ("noise", "perhaps", "noise must be true or false"),
    ("teacher", "toyfaces46", r"a file or an address, not 'toyfaces46' \(did you mean toyfaces64"),
])
def test_a_wrong_parameter_is_one_sentence(name, value, sentence):
    with pytest.raises(ValueError, match=sentence):
        chapters.check_parameters({name: value}, **{name: RULES[name]})


def test_a_network_may_be_a_folder_that_holds_one(teacher_file, tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    shutil.copy(teacher_file, tmp_path / "one" / "any.safetensors")
    save_pretrained(load_generator(teacher_file), tmp_path / "shared")
    (tmp_path / "runs" / "empty").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for value in ("one", tmp_path / "one", "shared", str(teacher_file)):
        chapters.check_parameters({"teacher": value}, teacher="network")
    for value in ("", ".", "runs/empty", "data", str(tmp_path)):  # data is seen in the repository
        with pytest.raises(ValueError, match="a file or an address, not"):
            chapters.check_parameters({"teacher": value}, teacher="network")


def test_a_network_of_the_repository_is_found_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {"teacher": "data/toyfaces32.safetensors"}
    chapters.check_parameters(scope, teacher="network")
    assert load_generator(scope["teacher"]).resolution == 32


@pytest.mark.parametrize("values, message", [
    ({"teacher": "toyfaces32_stylegan3"}, "teacher must be a StyleGAN2, .* a stylegan3-generator"),
    ({"teacher": "toyfaces32"}, "other=toyfaces64 has 64 px, and teacher=toyfaces32 32: .* alike"),
    ({"other": "thin.safetensors"}, "other=thin.safetensors has 8 numbers in z, and .* 128")])
def test_networks_that_a_chapter_cannot_compare_are_refused(tmp_path, monkeypatch, values, message):
    monkeypatch.chdir(tmp_path)
    save_network(Generator(64, 8, 8, 8, mapping_layers=1), "thin.safetensors")
    scope = {"teacher": "toyfaces64_stranger", "other": "toyfaces64"}
    rules = {"teacher": "stylegan2", "other": "network like teacher"}
    chapters.check_parameters(scope, **rules)
    with pytest.raises(ValueError, match=message):
        chapters.check_parameters(scope | values, **rules)


@pytest.mark.parametrize("file", sorted(chapters.NOTEBOOKS.glob("*.ipynb")), ids=lambda f: f.stem)
def test_every_chapter_is_checked_before_it_starts(file):
    known, rules = chapters._settings_of(file)
    assert set(known) <= set(rules) and len(known) <= 10


@pytest.mark.parametrize("chapter, pair, message", [
    ("06", "seed=x", "seed must be a whole number from 0 to"),
    ("06", "row=papr", r"row must be one of alone, .*, not 'papr' \(did you mean paper\?\)"),
    ("07", "factors=[smile, smle]", r"factors must be a list, each entry one of .*smile.*smle'\]"),
    ("07", "factors=smile", "factors must be a list, each entry one of hair_style: bald, ")])
def test_what_a_notebook_would_refuse_is_refused_before_it_starts(chapter, pair, message,
                                                                  monkeypatch):
    for slow in ("papermill", "gapkd.training.runs"):  # would take seconds, and are not asked
        monkeypatch.setitem(sys.modules, slow, None)
    with pytest.raises(ValueError, match=message):
        chapters.run_chapter(chapter, [pair])


def test_names_that_lie_elsewhere_are_accepted_as_text_too():
    scope = {"row": "dcp", "factors": "[smile, 'beard: full']"}
    chapters.check_parameters(scope, row="arm", factors=["direction"])
    assert scope == {"row": "dcp", "factors": ["smile", "beard: full"]}


def test_chapter_07_ends_without_the_extra_and_installs_nothing(monkeypatch, capsys):
    """The cells about ONNX, as they stand, where its packages are missing."""
    import torch

    cells = json.loads(chapters.find_notebook("07").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert not any("subprocess" in source or '"pip"' in source for source in code)
    first = next(n for n, source in enumerate(code) if '"onnxruntime"' in source)
    last = next(n for n, source in enumerate(code) if "sixteen at once" in source)
    assert last - first == 3
    G = gapkd.load_generator("toyfaces32")
    scope = {"teacher": "toyfaces32", "student": "toyfaces32", "T": G, "gapkd": gapkd,
             "torch": torch, "partial": partial, "Markdown": str, "folder": Path(),
             "chosen": None,
             "editing": SimpleNamespace(save_directions=lambda chosen, path: path)}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for source in code[first:last]:
        exec(source, scope)
    rounds = scope["rounds"]
    scope["rounds"] = lambda batch: rounds(batch, 1)
    exec(code[last], scope)
    assert capsys.readouterr().out.count("pip install -e '.[export]'") == 1
    assert [row.count("|") for row in scope["rows"]] == [4, 4, 4]
