"""How a command's options are read and shown: the long lists in groups, each in a box of its own,
and an example above them."""

from __future__ import annotations

import ast
import inspect
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import field, fields, is_dataclass, make_dataclass
from typing import Annotated, Any, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from gapkd.settings import RunConfig

WHOLE_NUMBERS = ConstructorRegistry()

GROUPS = {
    "main": ("recipe", "teacher", "architecture", "resolution", "data", "keep", "images", "batch",
             "seed", "out", "resume", "start_from"),
    "student": ("kernel", "kind", "mapping", "synthesis", "noise", "content", "reuse",
                "discriminator"),
    "network": ("conditional", "z_dim", "w_dim", "mapping_layers", "channels", "layers", "margin",
                "d_channels"),
    "loss": ("rgb_weight", "rgb_levels", "perceptual_weight", "perceptual", "gan_weight",
             "gan_from", "adversarial", "ld_weight", "ld_blocks", "ld_offsets", "ld_strength",
             "feature_weight", "moment_weight"),
    "optimisation": ("lr", "lr_end", "mapping_lr", "r1_gamma", "r1_end", "path_weight",
                     "style_mixing", "ema_half_life", "ema_rampup", "flip"),
    "machine": ("device", "precision", "cuda_graphs"),
    "log": ("progress", "log_every", "grid_every", "checkpoint_every", "fid_every", "fid_samples",
            "fid_features", "tensorboard", "probe_every"),
}
"""Group -> options of the commands that train."""


def parsed(command: str, cls: type, options: Sequence[str], example: str) -> Any:
    """The settings that options say; of --help or bad ones, tyro ends the program."""
    options = [_at_home(word) for word in options]
    if command in ("sample", "evaluate"):  # whose generator was an option once, and may be one
        options = [word.removeprefix("--generator=") for word in options if word != "--generator"]
    elif command == "resume":
        options = _switched(options)
    shown = _grouped(cls) if issubclass(cls, RunConfig) else cls
    about = f"{inspect.cleandoc(cls.__doc__)}\n\nexample: gapkd {command} {example}"
    found = tyro.cli(tyro.conf.OmitArgPrefixes[shown], prog=f"gapkd {command}", args=options,
                     description=about, registry=WHOLE_NUMBERS)
    if shown is cls:
        return found
    return cls(**{name: value for group in vars(found).values() for name, value in
                  vars(group).items()})


def _at_home(word: str) -> str:
    """A word in which ~ begins a path, which few shells spell out in --name=~/path."""
    option, path = re.fullmatch("((?:--[^=]*=)?)(.*)", word, re.DOTALL).groups()
    return option + os.path.expanduser(path)


def _switched(options: Sequence[str]) -> list[str]:
    """Switches that may also stay as they were have a value; here without one they are on, or off,
    as with the other commands."""
    words = []
    for word, after in zip(options, [*options[1:], ""], strict=True):
        words.append(word)
        plain = word.replace("-", "_")
        if plain in ("__no_cuda_graphs", "__no_tensorboard"):
            words[-1:] = [f"--{plain[5:]}", "False"]
        elif plain in ("__cuda_graphs", "__tensorboard") and after not in ("True", "False", "None"):
            words.append("True")
    return words


@WHOLE_NUMBERS.primitive_rule
def _whole_number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[int] | None:
    """1e6 is a whole number on the command line, as it is in the files of settings."""
    if info.type is not int:
        return None
    return PrimitiveConstructorSpec(
        nargs=1, metavar="INT", instance_from_str=lambda words: _as_whole(words[0]),
        is_instance=lambda value: isinstance(value, int), str_from_instance=lambda n: [str(n)])


def _as_whole(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        with suppress(ValueError):
            if float(word).is_integer():
                return int(float(word))
        raise ValueError(f"{word!r} is no whole number, such as 20000 or 2e4") from None


def _grouped(cls: type) -> type:
    """A dataclass that holds one for each group of the options of `cls`."""
    hints, words = get_type_hints(cls, include_extras=True), _descriptions(cls)
    defaults = {entry.name: entry.default for entry in fields(cls)}
    groups = []
    for title, names in GROUPS.items():
        entries = [(name, Annotated[hints[name], tyro.conf.arg(help=words[name])], defaults[name])
                   for name in names if name in defaults]
        group = make_dataclass(title, entries, frozen=True)
        group.__doc__ = ""
        groups.append((title, group, field(default=group())))
    return make_dataclass(cls.__name__, groups, frozen=True)


def _descriptions(cls: type) -> dict[str, str]:
    """Field -> the text below it in the source of a dataclass or of what it inherits from."""
    found = {}
    for part in reversed(cls.__mro__):
        if is_dataclass(part):
            body = ast.parse(inspect.getsource(part)).body[0].body
            for entry, below in zip(body, body[1:], strict=False):
                if isinstance(entry, ast.AnnAssign) and isinstance(below, ast.Expr):
                    found[entry.target.id] = inspect.cleandoc(below.value.value)
    return found
