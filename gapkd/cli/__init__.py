"""The command line, `gapkd COMMAND`: each command is a settings dataclass and a few lines.

The modules of this package hold the commands, a function each; the type of its argument is a
dataclass whose fields are the options. They are imported when they are asked for, so that
`gapkd --help` need not wait for torch.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any, get_type_hints

from gapkd.cli.options import parsed

COMMANDS: dict[str, dict[str, tuple[str, str, str]]] = {
    "Start here": {
        "distill": ("train", "distil a teacher into a small student",
                    "--recipe gapkd --teacher toyfaces64 --images 20000 --out runs/first"),
        "chapter": ("course", "run a chapter's notebook, with other parameters if you like",
                    "02 --parameters images=20000 seed=1"),
    },
    "Train": {
        "teacher": ("train", "train a StyleGAN2 or StyleGAN3 from scratch",
                    "--resolution 32 --images 300000 --out runs/my-teacher"),
        "resume": ("train", "go on with a run that was stopped",
                   "runs/my-teacher --images 600000"),
        "judge": ("measure", "train a feature network on the labels of your own data",
                  "--data photos.zip --out judge.safetensors"),
        "plan": ("measure", "count what distilling a teacher costs, before it is started",
                 "--teacher toyfaces64 --keep 0.3"),
    },
    "Measure": {
        "evaluate": ("measure", "compare a generator with real images and with its teacher",
                     "runs/first --teacher toyfaces64"),
        "sweep": ("measure", "train and measure all methods of a table with all seeds",
                  "table --arms dcp --seeds 0 --results runs/mine.jsonl"),
    },
    "Use a generator": {
        "sample": ("files", "draw images, as a sheet or one by one",
                   "toyfaces64 --truncation 0.7 --out runs/faces.png"),
        "directions": ("files", "find directions in W with a name: smile, glasses...",
                       "toyfaces64 --out runs/directions.safetensors"),
        "convert": ("files", "write it in another format", "toyfaces64 runs/teacher.pt"),
        "export": ("share", "write it as an ONNX file or a torch.export program",
                   "toyfaces64_finished --onnx runs/student.onnx"),
        "demo": ("share", "make a page that draws with it in any browser",
                 "runs/student.onnx --out runs/page"),
        "share": ("share", "make a folder that a model hub takes as it is",
                  "runs/first --out runs/my-student"),
    },
}
"""Group -> command -> (module that holds it, what it does, what it may be given)."""
ALL = {name: facts for group in COMMANDS.values() for name, facts in group.items()}
TOGETHER = ("teacher", "distill", "resume", "evaluate")
"""What several processes can do as one."""


def find(command: str) -> Callable[[Any], None]:
    """The function of a command. Raises ValueError when there is none of that name."""
    if command in ALL:
        return getattr(import_module(f"gapkd.cli.{ALL[command][0]}"), command)
    near = difflib.get_close_matches(command, ALL, n=1)
    hint = f"did you mean {near[0]}?" if near else "see gapkd --help"
    raise ValueError(f"there is no command {command}: {hint}")


def settings_of(command: str) -> type:
    """The dataclass whose fields are the command's options."""
    return get_type_hints(find(command), include_extras=True)["config"]


def overview() -> str:
    """What `gapkd --help` shows."""
    lines = ["usage: gapkd COMMAND [OPTIONS]", "       gapkd --version", "",
             "Distil a big StyleGAN into a small one."]
    for title, group in COMMANDS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {name:<12}{text}" for name, (_, text, _) in group.items()]
    return "\n".join([*lines, "", "gapkd COMMAND --help describes the options of a command."])


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0, 2 for bad input, 130 when interrupted."""
    with suppress(AttributeError, ValueError):  # a notebook's stream has no encoding of its own
        if sys.stdout.errors == "strict":
            sys.stdout.reconfigure(errors="backslashreplace")  # as that of stderr
    command, *options = (sys.argv[1:] if arguments is None else arguments) or [""]
    try:
        if command in ("", "-h", "--help", "help"):
            print(overview(), file=sys.stdout if command else sys.stderr, flush=True)
            return 0 if command else 2
        if command in ("-V", "--version", "version"):
            from gapkd import __version__

            print(f"gapkd {__version__}")
            return 0
        run(command, options)
    except KeyboardInterrupt as error:
        if int(os.environ.get("RANK", 0)) == 0:  # of several processes one says so
            _complain(str(error) or "interrupted")
        return 130
    except BrokenPipeError:  # whoever reads our lines has seen enough (| head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # what a shell says of a program that a closed pipe has ended
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        if _is_full(error):
            error = "there is too little memory for that: ask for less, or close other programs"
        elif type(error) is RuntimeError:  # a fault of ours, not of the input: show where
            raise
        _complain(error)
        return 2
    return 0


def run(command: str, options: list[str]) -> None:
    """Parse a command's options and run it."""
    try:
        os.getcwd()
    except FileNotFoundError as error:  # in which not even torch can be loaded
        raise ValueError("the folder you stand in is gone: cd to another") from error
    function = find(command)
    config = parsed(command, settings_of(command), options, ALL[command][2])
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and command not in TOGETHER:
        raise ValueError(f"torchrun is for {', '.join(TOGETHER)}: start this command without it")
    with warnings.catch_warnings():
        warnings.showwarning = _note
        function(config)


def say(text: str) -> None:
    """Print what all processes know, once."""
    from gapkd import parallel
    from gapkd.progress import show

    if parallel.is_first():
        show(_plain(text))


def _is_full(error: Exception) -> bool:
    """Whether an array or a tensor found no room; a training step says more of it."""
    words = "MemoryError|allocate memory|out of memory"
    return bool(isinstance(error, (MemoryError, RuntimeError))
                and re.search(words, f"{type(error).__name__}: {error}"))


def _note(message: Warning, category: type, *where: object, **more: object) -> None:
    """A warning of ours as one line, without the place in the code."""
    ours = category is UserWarning
    print(f"{'gapkd' if ours else category.__name__}: {_plain(message)}", file=sys.stderr)


def _complain(error: Exception | str) -> None:
    number = int(os.environ.get("RANK", 0))
    print(f"gapkd{f' (process {number})' if number else ''}: {_plain(error)}", file=sys.stderr)


def _plain(text: object) -> str:
    """A message without what a terminal would obey, whatever a file has put into it."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in str(text))
