"""The site: links, options, docstrings and formulas as they are rendered, and, with the extra docs, a whole build."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import tyro

from gapkd import chapters
from gapkd.cli import main
from gapkd.site import __main__ as site
from gapkd.site import options, pages, rendering
from gapkd.site.links import check

ROOT = chapters.ROOT

# ------------------------------------------------------------------------------------------------------------ links


def made_up(folder: Path, **files: str) -> Path:
    """A small site; a name's last _ stands for the dot."""
    for name, text in files.items():
        stem, _, kind = name.rpartition("_")
        path = folder / f"{stem.replace('__', '/')}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_good_links_are_not_complained_about(tmp_path):
    made_up(tmp_path, look_css="p { background: url('a%20b.png') }", sub__page_html='<a name="old"></a><p id="ö">x</p>',
            index_html='<link rel="stylesheet" href="look.css?v=1"><img src="a b.png" srcset="a%20b.png 2x">'
                       '<a href="sub/page.html#%C3%B6">x</a> <a href="sub/page.html#old">x</a> <a href="#">x</a>'
                       '<a href="look.css#L3">x</a> <a href="mailto:a@b">x</a> <img src="data:image/png;base64,AA=="/>'
                       '<p id="here" style="background: url(data:,)"></p><a href="#here">x</a>'
                       '<a href="https://example.org/x#y">x</a> <link rel="canonical" href="https://example.org/">')
    (tmp_path / "a b.png").touch()
    report = check(tmp_path)
    assert (report.dead, report.fetched) == ([], [])
    assert report.external == ["https://example.org/", "https://example.org/x#y"]


@pytest.mark.parametrize("target", [
    "gone.html", "page.html#gone", "#gone", "gone.png", "../outside.html", "/page.html", "file:///page.html", "sub/"])
def test_dead_links_are_named_with_their_page(tmp_path, target):
    (tmp_path / "outside.html").write_text("<p>a page that is there, but not in the site</p>")
    made_up(tmp_path / "site", index_html=f'<a href="{target}">x</a>', page_html='<p id="there">x</p>')
    (tmp_path / "site" / "sub").mkdir()
    report = check(tmp_path / "site")
    assert report.dead == [f"index.html: {target}"] and not report.external


@pytest.mark.parametrize("page", [
    '<script src="https://example.org/x.js"></script>', '<img src="//example.org/x.png">',
    '<link rel="preload stylesheet" href="https://example.org/x.css">', '<img srcset="a.png 1x, https://x.org/b 2x">',
    "<style>@import 'https://example.org/x.css';</style>", '<p style="background: url(https://example.org/x)">'])
def test_what_would_be_fetched_from_another_host_is_named(tmp_path, page):
    made_up(tmp_path, index_html=page, a_png="")
    report = check(tmp_path)
    assert len(report.fetched) == 1 and report.fetched[0].startswith("index.html: ") and not report.dead


def test_style_sheets_are_read_too(tmp_path):
    made_up(tmp_path, index_html="<p>", styles__look_css="a{b: url(../gone.woff2)} c{d: url(https://x.org/f.woff2)}")
    report = check(tmp_path)
    assert report.dead == ["styles/look.css: ../gone.woff2"]
    assert report.fetched == ["styles/look.css: https://x.org/f.woff2"]


def test_a_folder_without_pages_is_no_site(tmp_path):
    with pytest.raises(ValueError, match="holds no .html file: build the site first"):
        check(tmp_path)


# ---------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("command", options.commands())
def test_the_table_has_every_option_of_the_command_line_and_no_other(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    listed = {name for row in options.options(options.commands()[command]) for name in row.names}
    heads = re.findall(r"^\W ((?:-h, )?--[\w-]+(?:, --[\w-]+)*)", shown, re.MULTILINE)  # in a box
    assert {name for head in heads for name in head.split(", ")} - {"-h", "--help"} == listed


@pytest.mark.parametrize("command, cls", options.commands().items())
def test_typing_what_the_table_says_gives_the_defaults(command, cls):
    rows = options.options(cls)
    assert len(rows) == len(fields(cls)) and all(row.text for row in rows)
    given = [field.default if field.default is not MISSING else "..." for field in fields(cls)]
    words = [word for row in rows for word in shlex.split(row.typed[0] if row.names else (*row.typed, "...")[1])]
    assert tyro.cli(cls, args=words) == cls(**dict(zip((f.name for f in fields(cls)), given, strict=True)))


def test_the_page_says_it_so_that_markdown_leaves_it_alone():
    page = options.page()
    assert "## gapkd distill\n" in page and "`--ld-weight 30.0`" in page and "`--no-tf32` or `--tf32`" in page
    assert "With `--recipe gapkd` these defaults are others: `--synthesis pruned-diversity`" in page
    assert r"runs/\<kind\>-NNN" in page and "One of `auto`, `bf16`" in page and "`--out ''`" in page
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)


# ------------------------------------------------------------------------------------------------------------ pages

README = """# Title

![picture](data/story.png) Some *words*.

## The chapters

<!-- chapters -->
| an old table |
<!-- /chapters -->

## Results and limits

```
## no heading, but a comment: [x](gone.md)
```

### Deeper

See [the code](gapkd/study.py), [`the records`](data/results), [a sweep](sweeps/table.yml), [up](#title),
[chapter](notebooks/07_new.ipynb#anchor), [elsewhere](https://example.org/a_(b)).
"""


@pytest.fixture
def clone(tmp_path):
    """What the pages are made from, with one new chapter."""
    root = tmp_path / "clone"
    for name in ("notebooks", "data/results", "sweeps", "gapkd"):
        (root / name).mkdir(parents=True)
    (root / "README.md").write_text(README)
    (root / "data" / "README.md").write_text("# Card\n\nBack to [all](../README.md), [depth](../README.md#deeper)")
    for name in ("data/toyfaces32.png", "data/story.png", "sweeps/table.yml", "gapkd/study.py"):
        shutil.copy(ROOT / name, root / name)
    cells = [{"cell_type": "markdown", "metadata": {}, "source": [
                 "# 7 · New\n\n", "[![Open in Colab](https://b/badge.svg)](https://b/notebooks/07_new.ipynb)\n\n",
                 "**The question.** It is\n", "new. What is $z$? And more.\n", "[card](../data/README.md)"]},
             {"cell_type": "code", "metadata": {}, "source": "x[0](y)", "execution_count": 1, "outputs": [
                 {"output_type": "execute_result", "data": {"text/markdown": ["[all](../README.md): ", "1 ± 2"]}}]}]
    (root / "notebooks" / "07_new.ipynb").write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4,
                                                                "nbformat_minor": 5}))
    return root


def test_pages_come_from_whatever_the_clone_holds(clone, tmp_path):
    out = tmp_path / "pages"
    pages.write_pages(clone, out)
    front = (out / "index.md").read_text()
    assert "- [7 · New](notebooks/07_new.ipynb): It is new. What is $z$?\n" in front and "an old table" not in front
    assert "\n:caption: Chapters\n\nnotebooks/07_new.ipynb\n```" in front
    section = (out / "results-and-limits.md").read_text()
    assert section.startswith("# Results and limits\n") and "\n## Deeper" in section and "\n## no heading" in section
    for link in ("api/gapkd.experiments.study.rst", "data/README.md", "sweeps/table.yml", "index.md#title", "https://example.org/a_(b",
                 "notebooks/07_new.ipynb#anchor"):
        assert f"]({link})" in section
    card = (out / "data" / "README.md").read_text()
    assert "[all](../index.md), [depth](../results-and-limits.md#deeper)" in card
    chapter = json.loads((out / "notebooks" / "07_new.ipynb").read_text())
    assert "(../data/README.md)" in chapter["cells"][0]["source"] and "badge" not in chapter["cells"][0]["source"]
    assert chapter["cells"][1]["source"] == "x[0](y)"
    assert chapter["cells"][1]["outputs"][0]["data"]["text/markdown"] == "[all](../index.md): 1\xa0±\xa02"
    assert (out / "data" / "story.png").exists() and (out / "sweeps" / "table.yml").exists()


def test_a_link_to_what_is_not_there_stops_the_build(clone, tmp_path):
    (clone / "data" / "README.md").write_text("[x](gone.json)")
    with pytest.raises(ValueError, match="data/README.md links to gone.json, which is not in the repository"):
        pages.write_pages(clone, tmp_path / "pages")


def test_the_badge_becomes_words_once_there_is_an_address(monkeypatch):
    badge = pages.chapters.BADGE.search("[![Open in Colab](a)](https://b/notebooks/04_x.ipynb)")
    monkeypatch.setattr(pages.chapters, "address", lambda: "https://github.com/OWNER/course")
    assert pages.plain_badge(badge) == ""
    monkeypatch.setattr(pages.chapters, "address", lambda: "https://github.com/somebody/elsewhere")
    words = pages.plain_badge(badge)
    assert words.startswith("[Open in Colab](https://") and words.endswith("/somebody/elsewhere/blob/main/notebooks/"
                                                                           "04_x.ipynb)")


def test_every_module_has_its_place():
    listed = [name for names in pages.module_names().values() for name in names]
    there = {f"gapkd.{file.stem}" for file in (ROOT / "gapkd").glob("*.py")} - {"gapkd.__init__", "gapkd.__main__"}
    assert len(listed) == len(set(listed)) and there <= set(listed)
    assert {f"gapkd.{stem}" for stems in pages.TOPICS.values() for stem in stems} <= set(listed)


# -------------------------------------------------------------------------------------------------------- rendering


def test_docstrings_become_fields():
    docstring = """\
Sum of *all* |x_i|, `rgb_loss`_, file://x:

    y = a * b_

Args:
    a, b: (N,), one
        a sample.
    *more: the rest.
Returns: a scalar,
    always.
Raises ValueError when a
is empty.

Another paragraph
    goes on:
- a point
  goes on."""
    assert "\n".join(rendering.structured(docstring.splitlines())) == r"""Sum of *all* \|x_i\|, `rgb_loss`_, file\://x::

    y = a * b_


:Parameters:

    * **a, b**: (N,), one
      a sample.

    * **\*more**: the rest.

:returns: a scalar,
      always.

:raises ValueError: when a
      is empty.

Another paragraph
goes on:
- a point
  goes on."""


def test_formulas_become_mathml_or_are_named():
    pytest.importorskip("docutils", reason="needs the extra docs, which make site installs")
    drawn = rendering.mathml(r"\frac{1}{N} \sum_i \lVert x_i \rVert^2", block=True)
    assert drawn.startswith("<math") and "<mfrac>" in drawn and 'display="block"' in drawn
    with pytest.raises(ValueError, match=r"the formula '\\\\nonsense\{1\}' cannot be drawn: "):
        rendering.mathml(r"\nonsense{1}")


# ------------------------------------------------------------------------------------------------------------ build


def test_what_is_no_site_is_left_alone(tmp_path, capsys):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("all of it")
    assert site.main(["--out", str(mine)]) == 2
    assert "is not from an earlier build: remove it or choose another out" in capsys.readouterr().err
    assert (mine / "thesis.txt").read_text() == "all of it"
    (tmp_path / "new-build").mkdir()
    assert site.main(["--out", str(tmp_path / "new")]) == 2


def test_a_missing_extra_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(site, "find_spec", lambda name: None)
    assert site.main(["--out", str(tmp_path / "site")]) == 2
    assert "use `make site`" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_site(tmp_path):
    for name in ("sphinx", "myst_nb", "sphinx_book_theme"):
        pytest.importorskip(name, reason="needs the extra docs, which make site installs")
    out = made_up(tmp_path / "site", stale_html="an earlier build's page")
    (out / site.MARK).touch()
    assert site.build(site.SiteConfig(out=str(out))) == out  # warnings and dead links would be errors
    assert not (out / "stale.html").exists()
    front = (out / "index.html").read_text()
    for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
        assert f'href="notebooks/{file.stem}.html"' in front
        page = (out / "notebooks" / f"{file.stem}.html").read_text()
        pictures = {"".join(output["data"]["image/png"]) for cell in json.loads(file.read_text())["cells"]
                    for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})}
        assert len(set(re.findall(r'<img [^>]*src="\.\./_images/([^"]+)"', page))) >= len(pictures) > 0
    assert "<mfrac>" in (out / "notebooks" / "03_latent_direction_loss.html").read_text()
    losses = (out / "api" / "gapkd.distillation.losses.html").read_text()
    assert 'id="gapkd.distillation.losses.latent_direction_loss"' in losses
    assert "Parameters" in losses and "Args:" not in losses
    everything = "".join(page.read_text() for page in out.rglob("*.html"))
    assert not re.search(r'src="[^"]*(mathjax|require)', everything, re.IGNORECASE)
