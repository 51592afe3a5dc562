"""The site: its pages, what stops a build, and, with the extra docs, the whole of it."""

from __future__ import annotations

import base64
import importlib
import json
import re
import shutil

import pytest
from PIL import Image

from gapkd import cli
from gapkd.data.images import png
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
    monkeypatch.setattr(site, "command_line", lambda: "# The command line\n")
    monkeypatch.setattr(site, "write_reference", lambda folder: (
        folder.mkdir(), (folder / "gapkd.rst").write_text("gapkd\n=====\n")))
    return root


def test_pages_mirror_the_clone(clone, tmp_path):
    pages = tmp_path / "pages"
    pages.mkdir()
    site.write_pages(clone, pages)
    assert (pages / "tools" / "sweeps" / "table.yml").exists()
    assert (pages / "data" / "story.png").exists()
    assert not (pages / "data" / "big.safetensors").exists()
    front = (pages / "README.md").read_text()
    assert "badge" not in front and "\n:caption: Chapters\n\nnotebooks/*\n```" in front
    assert "x.svg" not in (pages / "notebooks" / "07_new.ipynb").read_text()


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


def test_the_page_of_the_command_line_has_every_command():
    page = site.command_line()
    for command in cli.names():
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


def test_docstrings_mean_themselves():
    sphinx_is_here()
    conf = importlib.import_module("tools.site.conf")
    line = "*all* |x_i|, `a*b`, kid_..., **more, file://x: y = a * b_"
    escaped = r"*all* \|x_i\|, `a*b`, kid\_..., \*\*more, file\://x: y = a \* b\_"
    assert conf.escaped(line) == escaped


def test_a_bar_stands_above_its_letter():
    sphinx_is_here()
    drawn = importlib.import_module("tools.site.conf").mathml(r"\bar w")
    assert re.sub(r"\s", "", drawn).endswith(
        '<mover><mi>w</mi><mostretchy="false">\N{MACRON}</mo></mover></math>')


def test_the_first_cell_is_folded(clone, tmp_path):
    (tmp_path / "pages").mkdir()
    site.write_pages(clone, tmp_path / "pages")
    notebook = json.loads((tmp_path / "pages" / "notebooks" / "07_new.ipynb").read_text())
    folded = [cell["metadata"].get("tags") for cell in notebook["cells"]]
    assert folded == [None, ["hide-input"], ["hide-input"]]  # the last one has it from its author


def test_what_is_no_site_is_left_alone(tmp_path, capsys):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("all of it")
    (tmp_path / "new-build").mkdir()
    for name in ("mine", "new"):
        assert site.main(["--out", str(tmp_path / name)]) == 2
        said = capsys.readouterr().err
        assert "is not from an earlier build: remove it or choose another out" in said
    assert (mine / "thesis.txt").read_text() == "all of it"


def test_a_missing_extra_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(site, "find_spec", lambda name: None)
    assert site.main(["--out", str(tmp_path / "site")]) == 2
    assert "use `make site`" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_site(tmp_path):
    sphinx_is_here()
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
