"""Settings of sphinx, and the three things that it does not do by itself: formulas that need no
script (MathML), docstrings in which nothing but `code` and *emphasis* is markup, and the
alternative texts of the chapters' figures."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

import gapkd
from tools.readme import address, is_published

project = html_title = "gapkd"
author = "the gapkd authors"
version = release = gapkd.__version__
root_doc = "README"
include_patterns = ["README.md", "command_line.md", "data/README.md", "data/results/README.md",
                    "tools/guide.md", "notebooks/*.ipynb", "notebooks/solutions/*.ipynb", "api/*"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
suppress_warnings = ["docutils", "ref.ref", "ref.python"]  # docstrings are written to be read as is

# Chapters and pages
nb_execution_mode = "off"  # the stored outputs are shown
nb_merge_streams = True
nb_render_markdown_format = "myst"
nb_ipywidgets_js = {}  # the scripts for live widgets would come from afar
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
highlight_language = "none"
html_math_renderer = "mathml"

# Docstrings
autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
default_role = "py:obj"  # `rgb_loss` leads to it
add_module_names = False
MARKUP = re.compile(r"(`[^`]+`|(?<![\w*])\*[^\s*](?:[^*`]*[^\s*])?\*(?![\w*]))")
SPECIAL = re.compile(r"[\\|*]|(?<=\w)_(?!\w)|:(?=//)")

# Looks
html_theme = "sphinx_book_theme"
html_static_path = ["site.css", "site.js"]
html_css_files, html_js_files = ["site.css"], ["site.js"]
html_show_sphinx = html_show_copyright = False
html_theme_options = {"show_toc_level": 2, "use_fullscreen_button": False, "navbar_persistent": []}
if is_published():
    html_theme_options |= {"repository_url": address(), "use_repository_button": True}


def escaped(line: str) -> str:
    """A docstring's line in which nothing but `code` and *emphasis* is markup."""
    parts = MARKUP.split(line)
    parts[::2] = [SPECIAL.sub(lambda found: "\\" + found[0], part) for part in parts[::2]]
    return "".join(parts)


def escape(app, what, name, thing, options, lines: list[str]) -> None:
    """Before napoleon looks for Args, Returns and Raises."""
    lines[:] = [escaped(line) for line in lines]


def alternative_texts(notebook: dict) -> dict[str, str]:
    """SHA-256 of a stored PNG, which is its name on the site -> what the figure says in words."""
    found = {}
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            alt = output.get("metadata", {}).get("image/png", {}).get("alt")
            if alt:
                picture = base64.b64decode("".join(output["data"]["image/png"]))
                found[hashlib.sha256(picture).hexdigest()] = alt
    return found


def describe(app, doctree: nodes.document) -> None:
    """Gives the figures of a chapter their alternative texts."""
    source = Path(app.env.doc2path(app.env.docname))
    if source.suffix != ".ipynb":
        return
    texts = alternative_texts(json.loads(source.read_text(encoding="utf-8")))
    for image in doctree.findall(nodes.image):
        if text := texts.get(Path(image["uri"]).stem):
            image["alt"] = text


def mathml(tex: str, block: bool = False) -> str:
    """A TeX formula as MathML. Raises ValueError naming what is not understood."""
    try:
        # As an accent, a bar crosses its letter where a machine has no font for formulas.
        drawn = tex2mathml(tex, as_block=block).replace('<mover accent="true">', "<mover>")
        return drawn.replace("\N{MODIFIER LETTER MACRON}", "\N{MACRON}")
    except (MathError, SyntaxError) as error:  # the latter in older docutils
        reason = " ".join(str(error).split())
        raise ValueError(f"the formula {tex!r} cannot be drawn: {reason}") from error


def draw(writer, node: nodes.Element) -> None:
    """A formula on its page: in a line of text (span), or as a paragraph of its own (div)."""
    block = isinstance(node, nodes.math_block)
    tag = "div" if block else "span"
    try:
        formula = mathml(node.astext(), block)
    except ValueError as error:
        logging.getLogger(__name__).warning(str(error), location=node)
        formula = ""
    writer.body.append(f"{writer.starttag(node, tag, '', CLASS='formula')}{formula}</{tag}>")
    raise nodes.SkipNode


def setup(app) -> None:
    """Entry point of sphinx."""
    app.add_html_math_renderer("mathml", (draw, None), (draw, None))
    app.connect("autodoc-process-docstring", escape, priority=400)
    app.connect("doctree-read", describe)
