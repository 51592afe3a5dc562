"""The options of every command as tables, from the same dataclasses that the command line is made of."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import textwrap
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tyro

from gapkd import cli
from gapkd.settings import RECIPES, DistillConfig, defaults

POSITIONAL = get_args(tyro.conf.Positional[str])[1]


@dataclass(frozen=True)
class Option:
    """One row: the names it is called by, none where its place tells; how it is typed, with its default; what it is
    for."""

    names: tuple[str, ...]
    typed: tuple[str, ...]
    text: str


def commands() -> dict[str, type]:
    """Command -> its settings dataclass, in alphabetical order."""
    return {command: cli.settings_of(command) for command in sorted(cli.names())}


def options(cls: type) -> list[Option]:
    """The options of a command, those without a name first."""
    hints, texts, values = get_type_hints(cls, include_extras=True), field_texts(cls), defaults(cls)
    rows = []
    for field in fields(cls):
        hint, text, default = hints[field.name], texts[field.name], values[field.name]
        if get_origin(hint) is Literal:
            text += f" One of {', '.join(f'`{value}`' for value in get_args(hint) if value != '')}."
        name = "--" + field.name.replace("_", "-")
        given = () if default is MISSING else (_typed(default),)
        if POSITIONAL in get_args(hint):
            names, typed = (), (field.name.upper(), *given)
        elif hint is bool:
            names = (name, f"--no-{name[2:]}")
            typed = names if default else names[::-1]
        else:
            names, typed = (name,), (f"{name} {(*given, '...')[0]}".strip(),)
        rows.append(Option(names, typed, text))
    return sorted(rows, key=lambda row: bool(row.names))


def field_texts(cls: type) -> dict[str, str]:
    """Field -> the string under it in the source, its own or an inherited one's, on one line."""
    texts = {}
    for base in reversed(cls.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for field, below in zip(body, body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                texts[field.target.id] = " ".join(ast.literal_eval(below.value).split())
    return texts


def page() -> str:
    """Markdown of the command line's page."""
    parts = ["# The command line",
             "Every option is a field of a dataclass in `gapkd`; these tables, `gapkd COMMAND --help` and the settings "
             "that are stored in every network come from there. Options stand as they are typed, with their defaults; "
             "`...` has to be given."]
    for command, cls in commands().items():
        rows = "\n".join(f"| {' or '.join(f'`{words}`' for words in row.typed)} | {_escaped(row.text)} |"
                         for row in options(cls))
        parts += [f"## gapkd {command}", _escaped(inspect.getdoc(cls)), *_recipes(cls),
                  f"| option | what it is for |\n|---|---|\n{rows}"]
    return "\n\n".join(parts) + "\n"


def _recipes(cls: type) -> list[str]:
    """What `--recipe` changes in the defaults."""
    return [f"With `--recipe {name}` these defaults are others: "
            + ", ".join(f"`--{key.replace('_', '-')} {_typed(value)}`" for key, value in recipe.items()) + "."
            for name, recipe in RECIPES.items() if name != "paper" and cls is DistillConfig]


def _typed(value: Any) -> str:
    """A value as one would type it in a shell."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else shlex.quote(str(value))


def _escaped(text: str) -> str:
    """Text in which nothing but `code` is markup."""
    parts = re.split("(`[^`]+`)", text)
    parts[::2] = [re.sub(r"[\\|<>*_$\[\]]", lambda found: "\\" + found[0], part) for part in parts[::2]]
    return "".join(parts)
