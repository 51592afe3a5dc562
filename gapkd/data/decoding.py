"""Picture files: which are read, and how a file becomes pixels.

Reading one executes nothing: of Pillow's formats, those that call another program or only name
what they cannot decode stay out.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from PIL import Image

UNFIT = {"EPS", "WMF", "IPTC", "MPEG", "BUFR", "GRIB", "HDF5"}
"""EPS calls Ghostscript, WMF draws with Windows, IPTC may hold either; the others are stubs."""
SIGNED = ("PNG", "JPEG", "WEBP", "GIF", "AVIF")
"""Formats that are believed without a suffix: their first bytes leave no doubt."""
USUAL = ".png, .jpg, .webp, .gif, .tif..."
PUT_AWAY = {"__macosx", "@eadir", "@__thumb", "@recycle", "#recycle", "$recycle.bin", "#snapshot",
            "@recently-snapshot", "lost+found", "system volume information"}
"""Folders that systems and network drives make: thumbnails, what was deleted, earlier versions."""
FURNITURE = {"thumbs.db", "ehthumbs.db", "desktop.ini", "dataset.json"}
"""Files beside pictures that nobody would take for one."""


def suffixes() -> dict[str, str]:
    """Suffix -> format, of every format that is read."""
    Image.init()
    known = {*Image.OPEN, "MPO"} - UNFIT  # MPO is opened as a JPEG
    return {end: kind for end, kind in Image.registered_extensions().items() if kind in known}


def formats(name: str) -> list[str]:
    """The formats that a file may have, whatever its suffix says; those that no first bytes tell
    apart from anything else only where the suffix names them."""
    named = suffixes().get(suffix(name))
    return [kind for kind, (_, accepts) in Image.OPEN.items()
            if kind not in UNFIT and (accepts or kind == named)]


def suffix(name: str) -> str:
    """The end of a name, from its last dot, in small letters; empty where there is none."""
    return PurePosixPath(name).suffix.lower()


def is_put_away(name: str) -> bool:
    """Whether a file is hidden, or lies in a folder of the system's."""
    return any(part.startswith(".") or part.lower() in PUT_AWAY
               for part in PurePosixPath(name).parts)


def is_furniture(name: str) -> bool:
    """Whether it goes without saying that this file is no picture."""
    path = PurePosixPath(name)
    # macOS puts "._photo.jpg", which is no image, beside photo.jpg, and "__MACOSX" into its zips.
    return path.name.lower() in FURNITURE or path.name.startswith("._") or "__MACOSX" in path.parts


def shown(name: object) -> str:
    """A name as a message shows it: on one line, whatever it is made of."""
    name = str(name)
    return name if name.isprintable() else ascii(name)
