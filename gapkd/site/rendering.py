"""What sphinx does not do by itself: formulas that need no script, and this package's docstrings."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

CODE = re.compile(r"(`[^`]+`)")
EMPHASIS = re.compile(r"((?<![\w*])\*[^\s*](?:[^*`]*[^\s*])?\*(?![\w*]))")
SPECIAL = re.compile(r"[\\|*]|(?<=\w)_(?!\w)|:(?=//)")
LISTS = {"Args:": ":Parameters:", "Attributes:": ":Attributes:"}
ARGUMENT = re.compile(r" {4}(\*{0,2}\w[\w, *]*): (.+)")
FIELD = re.compile(r"(Returns|Shape|Source|Errors|Raises): (.+)")
RAISES = re.compile(r"Raises (\w+Error),? (.+)")


def mathml(tex: str, block: bool = False) -> str:
    """A TeX formula as MathML, which browsers draw themselves. Raises ValueError naming what is not understood."""
    from docutils.utils.math import MathError
    from docutils.utils.math.latex2mathml import tex2mathml

    try:
        return tex2mathml(tex, as_block=block)
    except (MathError, SyntaxError) as error:  # the latter in older docutils
        raise ValueError(f"the formula {tex!r} cannot be drawn: {' '.join(str(error).split())}") from error


def structured(docstring: list[str]) -> list[str]:
    """The lines of a docstring as reStructuredText.

    Docstrings are written to be read as they are: `code`, *emphasis*, indented formulas, `Args:`, `Attributes:`, and
    lines that begin with `Returns:`, `Shape:`, `Source:` or `Raises SomeError`. Everything else means itself.
    """
    lines: list[str] = []
    inside, literal = "", False  # what a line may go on with: list or field; whether indented lines are a formula
    for line, below in zip(docstring, [*docstring[1:], ""], strict=True):
        if literal and (not line or line.startswith(" ")):
            lines.append(line)
            continue
        literal = False
        if line in LISTS:
            inside = "list"
            lines += ["", LISTS[line]]
        elif found := RAISES.fullmatch(line):
            inside = "field"
            lines += ["", f":raises {found[1]}: {escaped(found[2])}"]
        elif found := FIELD.fullmatch(line):
            inside = "field"
            lines += ["", f":{found[1].lower()}: {escaped(found[2])}"]
        elif inside == "list" and (found := ARGUMENT.fullmatch(line)):
            lines += ["", f"    * **{escaped(found[1])}**: {escaped(found[2])}"]
        elif inside and line:
            lines.append(f"      {escaped(line.strip())}")
        else:
            inside = ""
            if line.startswith(" ") and lines and re.match(r"(?!- |\* |\d+\. )\S", lines[-1]):
                line = line.strip()  # the text goes on: no quotation
            literal = line.endswith(":") and not below
            lines.append(escaped(line) + (":" if literal else ""))
    return lines


def escaped(text: str) -> str:
    """Text in which nothing but `code` and *emphasis* is markup."""
    parts = CODE.split(text)
    for i in range(0, len(parts), 2):
        words = EMPHASIS.split(parts[i])
        words[::2] = [SPECIAL.sub(lambda found: "\\" + found[0], word) for word in words[::2]]
        parts[i] = "".join(words)
    return "".join(parts)


def setup(app: Any) -> dict[str, bool]:
    """Entry point of a sphinx extension."""
    app.add_html_math_renderer("mathml", (_drawn(block=False), None), (_drawn(block=True), None))
    app.connect("autodoc-process-docstring", _rewrite)
    app.connect("autodoc-skip-member", _is_foreign)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _drawn(block: bool) -> Callable:
    from docutils import nodes
    from sphinx.util import logging

    def visit(self: Any, node: nodes.Element) -> None:
        try:
            formula = mathml(node.astext(), block)
        except ValueError as error:
            logging.getLogger(__name__).warning(str(error), location=node)
            formula = f"<code>{self.encode(node.astext())}</code>"
        tag = "div" if block else "span"
        self.body.append(f"{self.starttag(node, tag, '', CLASS='formula')}{formula}</{tag}>")
        raise nodes.SkipNode

    return visit


def _rewrite(app: Any, what: str, name: str, thing: object, options: Any, lines: list[str]) -> None:
    lines[:] = structured(lines)


def _is_foreign(app: Any, what: str, name: str, thing: object, skip: bool, options: Any) -> bool | None:
    """Leave out what another library put into our classes; None: let autodoc decide."""
    return True if callable(thing) and not str(getattr(thing, "__module__", "gapkd")).startswith("gapkd") else None
