"""Progress: a bar on a terminal or in a notebook, and a line every few seconds everywhere else;
and what is printed while work goes on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress

import tqdm.auto
from tqdm.std import tqdm as plain

SECONDS = 5.0
"""Between two lines."""
LINE = "{desc}: {n_fmt} of {total_fmt} {unit} in {elapsed}, {remaining} to go{postfix}"


class Lines(plain):
    """A bar for a log file: whole lines, none of them written over."""

    def __init__(self, *arguments: object, **options: object):
        super().__init__(*arguments, **{"mininterval": SECONDS, "maxinterval": SECONDS,
                                        "bar_format": LINE} | options)

    @staticmethod
    def status_printer(file) -> Callable[[str], None]:
        """Prints a state as a line."""
        return lambda text: print(text, file=file, flush=True)

    def set_postfix(self, *entries: object, refresh: bool = False, **more: object) -> None:
        """Note what the next line ends with, which comes when it is due."""
        super().set_postfix(*entries, refresh=False, **more)

    def close(self) -> None:
        """Leave the lines as they are: tqdm wipes away only what it knows to have shown."""
        self.last_print_t = 0
        super().close()


def show(text: str) -> None:
    """Print at once. Where nothing can be printed, as into a file on a full disk, stderr has it:
    the work goes on."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        with suppress(OSError):  # it may go to the same disk
            print(f"gapkd: standard output cannot be written ({error.strerror}), so this stands "
                  f"here:\n{text}", file=sys.stderr, flush=True)


def bar(iterable=None, **options: object) -> plain:
    """A progress bar with tqdm's options; it goes when the work is done."""
    notebook = any("notebook" in cls.__module__ for cls in tqdm.auto.tqdm.__mro__)
    kind = tqdm.auto.tqdm if notebook or sys.stderr.isatty() else Lines
    return kind(iterable, leave=False, **options)
