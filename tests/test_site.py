"""The site: its pages, what stops a build, and, with the extra docs, the whole of it."""

from __future__ import annotations

import base64
import importlib
import json
import re
import shutil
import tempfile
from pathlib import Path

import pytest
from PIL import Image

from gapkd import cli
from gapkd.data.images import png
from gapkd.sharing.export import ExportError
from gapkd.sharing.web import DemoError
from tools.readme import ROOT
from tools.site import __main__ as site

FIGURE = png(Image.new("RGB", (4, 4), "red"))
README = """# Title

![picture](data/story.png) [chapter](notebooks/07_new.ipynb), [table](tools/sweeps/table.yml),
[card](data/README.md#deeper), [up](#below), [elsewhere](https://example.org/a_(b)).

## Below

[![Open in Colab](https://b/badge.svg)](https://b/notebooks/07_new.ipynb)
"""


def sphinx_is_here():
    for name in ("sphinx", "myst_nb", "sphinx_book_theme"):
        pytest.importorskip(name, reason="needs the extra docs, which make site installs")


def fake_demo(config):
    """What `gapkd demo` writes, in short."""
    Path(config.out).mkdir(parents=True)
    (Path(config.out) / "index.html").write_text(f"<p>{config.names}</p>")


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """What the pages are made from, with one chapter, without the reference."""
    root = tmp_path / "clone"
    for name in ("data/story.png", "tools/sweeps/table.yml"):
        (root / name).parent.mkdir(parents=True)
        shutil.copy(ROOT / name, root / name)
    (root / "README.md").write_text(README)
    (root / "data" / "README.md").write_text("# Card\n\n[all](../README.md)\n\n## Deeper\n")
    (root / "data" / "big.safetensors").touch()
    cells = [{"cell_type": "markdown", "metadata": {}, "source": [
                 "# New\n\n",
                 "[![Open in Colab](https://b/x.svg)](https://b/notebooks/07_new.ipynb)\n\n",
                 "[card](../data/README.md) of $\\frac{z}{2}$\n\n$$\\sum_i x_i$$"]},
             {"cell_type": "code", "metadata": {}, "source": "x[0](y)", "execution_count": 1,
              "outputs": [{"output_type": "execute_result", "execution_count": 1, "metadata": {},
                           "data": {"text/markdown": ["an **output**"]}}]},
             {"cell_type": "code", "metadata": {"tags": ["hide-input"]}, "source": "draw()",
              "execution_count": 2, "outputs": [{
                  "output_type": "display_data",
                  "metadata": {"image/png": {"width": 4, "height": 4, "alt": 'Two "faces"'}},
                  "data": {"image/png": base64.b64encode(FIGURE).decode()}}]}]
    for name, title in (("07_new", ""), ("solutions/07_solutions", "# Solutions")):
        file = root / "notebooks" / f"{name}.ipynb"
        file.parent.mkdir(exist_ok=True)
        notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        if title:
            notebook["cells"] = [{"cell_type": "markdown", "metadata": {}, "source": [title]}]
        file.write_text(json.dumps(notebook))
    monkeypatch.setattr(site, "write_demo", fake_demo)
    monkeypatch.setattr(site, "command_line", lambda: "# The command line\n")
    monkeypatch.setattr(site, "write_reference", lambda folder: (
        folder.mkdir(), (folder / "gapkd.rst").write_text("gapkd\n=====\n")))
    return root


@pytest.fixture
def pages(clone, tmp_path):
    """Writes the pages' sources, with frames for those demos; returns their folder."""
    def write(*demos: str) -> Path:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        site.write_pages(clone, folder, demos)
        return folder

    return write


def test_pages_mirror_the_clone(clone, pages):
    (clone / "tools" / "guide.md").write_text("# Guide\n")
    folder = pages()
    assert (folder / "tools" / "sweeps" / "table.yml").exists()
    assert (folder / "data" / "story.png").exists()
    assert not (folder / "data" / "big.safetensors").exists()
    front = (folder / "README.md").read_text()
    assert "badge" not in front and "\n:caption: Chapters\n\nnotebooks/*\n```" in front
    assert "\n:caption: Results and guide\n\ntools/guide\n```" in front  # what is there
    assert "\n:caption: Reference\n\ncommand_line\ndata/README\napi/gapkd\n```" in front
    chapter = (folder / "notebooks" / "07_new.ipynb").read_text()
    assert "x.svg" not in chapter
    folded = [cell["metadata"].get("tags") for cell in json.loads(chapter)["cells"]]
    assert folded == [None, ["hide-input"], ["hide-input"]]  # the last one has it from its author


@pytest.mark.slow
def test_a_clone_is_built_and_faults_stop_it(clone, tmp_path, capfd):
    sphinx_is_here()
    config = site.SiteConfig(out=str(tmp_path / "site"))
    out = site.build(config, clone)
    assert "url=README.html" in (out / "index.html").read_text()
    assert 'href="notebooks/07_new.html"' in (out / "README.html").read_text()
    chapter = (out / "notebooks" / "07_new.html").read_text()
    assert "<mfrac>" in chapter and '<div class="formula' in chapter
    assert "<strong>output</strong>" in chapter
    assert re.search(r'<img alt="Two &quot;faces&quot;" [^>]*src="../_images/', chapter)
    assert re.search(r'<details[^>]*>\s*<summary.{,300}Show code cell source.{,900}draw',
                     chapter, re.DOTALL)
    assert 'href="notebooks/solutions/07_solutions.html"' in (out / "README.html").read_text()
    assert 'src="../_static/site.js' in chapter and (out / "_static" / "site.js").is_file()
    [framed] = re.findall('<iframe [^>]*src="([^"]+)"', chapter)
    assert (out / "notebooks" / framed).is_file() and f'<a href="{framed}">' in chapter
    page = clone / "data" / "README.md"
    for link in ("../gone.md", "#gone", "../README.md#gone", "../data/gone.json"):
        page.write_text(f"# Card\n\n## Deeper\n\n[x]({link})\n")
        with pytest.raises(ValueError, match="the site has faults"):
            site.build(config, clone)
        assert re.search(f"not found.*{re.findall('[^/#]+$', link)[0]}", capfd.readouterr().err)
    page.write_text("# Card\n\n## Deeper\n\n$\\nonsense{1}$\n")
    with pytest.raises(ValueError, match="the site has faults"):
        site.build(config, clone)
    assert r"the formula '\\nonsense{1}' cannot be drawn" in capfd.readouterr().err
    page.write_text("# Card\n\n## Deeper\n\n![x](https://example.org/x.png)\n")
    with pytest.raises(ValueError, match="from another host: data/README.html: src=.https://exam"):
        site.build(config, clone)


@pytest.mark.parametrize("page, fetched", [
    ('<script src="https://example.org/x.js"></script>', True),
    ('<img alt="" src="//example.org/x.png">', True),
    ('<link rel="preload stylesheet" href="https://example.org/x.css">', True),
    ('<link href="https://example.org/x.ico" rel="icon">', True),
    ("<style>@import 'https://example.org/x.css';</style>", True),
    ('<p style="background: url(https://example.org/x)">', True),
    ('<a href="https://example.org/">x</a> <link rel="canonical" href="https://x.org/">', False),
    ('<img src="a.png"> <link rel="stylesheet" href="x.css"> <b style="c: url(d.png)">', False)])
def test_what_would_be_fetched_from_another_host_is_named(tmp_path, page, fetched):
    (tmp_path / "index.html").write_text(page)
    found = site.fetches(tmp_path)
    assert len(found) == fetched and all(entry.startswith("index.html: ") for entry in found)


def frames_of(folder, chapter):
    """Demos framed at the end of a chapter's source, in their order."""
    notebook = json.loads((folder / "notebooks" / f"{chapter}.ipynb").read_text())
    last = "".join(notebook["cells"][-1]["source"])
    page = r'="\.\./([\w-]+)/index.html"'
    found = re.findall(rf'<iframe src{page} title="[^"]+" loading="lazy">', last)
    assert found == re.findall(rf'<a href{page}>Open the page by itself', last)
    return found


def test_pages_that_draw_are_framed_where_they_are_there(clone, pages):
    chapter = clone / "notebooks" / "07_new.ipynb"
    shutil.copy(chapter, clone / "notebooks" / "01_new.ipynb")
    stored = chapter.read_bytes()
    for demos, framed in ((("demo", "demo-strangers"), (["demo-strangers", "demo"], ["demo"])),
                          ((), ([], []))):
        folder = pages(*demos)
        assert (frames_of(folder, "01_new"), frames_of(folder, "07_new")) == framed
        assert not frames_of(folder, "solutions/07_solutions")
    assert chapter.read_bytes() == stored
    assert {name for frames in site.FRAMES.values() for name, *_ in frames} == set(site.DEMOS)


@pytest.mark.parametrize("error", [DemoError("npm is missing"), ExportError("onnx is missing")])
def test_without_what_the_demo_needs_the_site_says_so(error, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(site, "write_demo", fake_demo)
    assert site.write_demos(tmp_path / "all") == ["demo", "demo-strangers"]
    page = (tmp_path / "all" / "demo-strangers" / "index.html").read_text()
    assert page == "<p>('toyfaces64', 'a stranger')</p>"

    def fail(config):
        raise error

    monkeypatch.setattr(site, "write_demo", fail)
    assert site.write_demos(tmp_path / "none") == [] and not (tmp_path / "none").exists()
    assert capsys.readouterr().out == (
        f"site: without the pages that draw in the browser: {error}\n")


def test_the_page_of_the_command_line_has_every_command():
    page = site.command_line()
    for command in cli.ALL:
        assert f"## gapkd {command}\n\n```text\nusage: gapkd {command} " in page
    assert "--keep FLOAT" in page and "\x1b" not in page


def test_every_module_has_its_page_and_its_place(tmp_path):
    site.write_reference(tmp_path / "api")
    pages = {file.stem: file.read_text() for file in (tmp_path / "api").glob("*.rst")}
    files = [file.relative_to(ROOT) for file in (ROOT / "gapkd").rglob("*.py")]
    modules = {".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files}
    assert set(pages) == {name for name in modules if not name.endswith("__main__")}
    listed = re.findall(r"^   ([\w.]+)$", "\n".join(pages.values()), re.MULTILINE)
    assert sorted(listed) == sorted(set(pages) - {"gapkd"})


def test_docstrings_mean_themselves_and_a_bar_stands_above_its_letter():
    sphinx_is_here()
    conf = importlib.import_module("tools.site.conf")
    line = "*all* |x_i|, `a*b`, kid_..., **more, file://x: y = a * b_"
    escaped = r"*all* \|x_i\|, `a*b`, kid\_..., \*\*more, file\://x: y = a \* b\_"
    assert conf.escaped(line) == escaped
    assert re.sub(r"\s", "", conf.mathml(r"\bar w")).endswith(
        '<mover><mi>w</mi><mostretchy="false">\N{MACRON}</mo></mover></math>')


def test_what_is_no_site_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    (tmp_path / "new-build").mkdir()
    for name in ("mine", "new"):
        assert site.main(["--out", str(tmp_path / name)]) == 2
        said = capsys.readouterr().err
        assert "is not from an earlier build: remove it or choose another out" in said
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"


def test_a_missing_extra_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(site, "find_spec", lambda name: None)
    assert site.main(["--out", str(tmp_path / "site")]) == 2
    assert "use `make site`" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_site(tmp_path, monkeypatch):
    sphinx_is_here()
    monkeypatch.setattr(site, "write_demo", fake_demo)
    out = site.build(site.SiteConfig(out=str(tmp_path / "site")))  # warnings would be errors
    front = (out / "README.html").read_text()
    for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
        assert f'href="notebooks/{file.stem}.html"' in front
        pictures = set()
        for cell in json.loads(file.read_text())["cells"]:
            for output in cell.get("outputs", ()):
                pictures |= {"".join(output.get("data", {}).get("image/png", ""))} - {""}
        page = (out / "notebooks" / f"{file.stem}.html").read_text()
        shown = set(re.findall(r'<img [^>]*src="\.\./_images/([^"]+)"', page))
        assert len(shown) >= len(pictures) > 0
    losses = (out / "api" / "gapkd.distillation.losses.html").read_text()
    assert 'id="gapkd.distillation.losses.latent_direction_loss"' in losses
    assert "Parameters" in losses and "Args:" not in losses
    everything = "".join(page.read_text() for page in out.rglob("*.html"))
    assert not re.search(r'src="[^"]*(mathjax|require)', everything, re.IGNORECASE)
