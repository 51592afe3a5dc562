"""Picture files: which are read, and how a file becomes pixels.

Reading one executes nothing: of Pillow's formats, those that call another program or only name
what they cannot decode stay out.
"""

from __future__ import annotations

import zlib
from pathlib import PurePosixPath

from PIL import ExifTags, Image

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


TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
         4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
         6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}
"""EXIF's orientation -> what shows the picture upright."""
PNG_START, JPEG_START = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
PNG_CONTENT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
JPEG_LEAST = {0xe0: 14, 0xe1: 0, 0xee: 12}  # JFIF, EXIF, Adobe: bytes of what is kept


def upright(image: Image.Image) -> Image.Image:
    """The image as it was seen; metadata that cannot be read says nothing."""
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # Pillow raises what it likes
        turn = None
    return image if turn is None else image.transpose(turn)


def without_metadata(content: bytes) -> bytes | None:
    """A PNG or JPEG without texts, profiles and dates, which may be malformed where the picture is
    not; None for other files. How it is held (EXIF) is kept where that can be read."""
    if content.startswith(PNG_START):
        return _bare_png(content)
    return _bare_jpeg(content) if content.startswith(JPEG_START) else None


def _bare_png(content: bytes) -> bytes:
    kept, at = [PNG_START], len(PNG_START)
    while at < len(content):
        end = at + 12 + int.from_bytes(content[at:at + 4], "big")
        kind, chunk = content[at + 4:at + 8], content[at:end]
        whole = zlib.crc32(chunk[4:-4]).to_bytes(4, "big") == chunk[-4:]
        if kind in PNG_CONTENT or kind == b"eXIf" and whole:
            kept.append(chunk)
        at = end
    return b"".join(kept)


def _bare_jpeg(content: bytes) -> bytes:
    kept, at = [JPEG_START], len(JPEG_START)
    while content[at:at + 1] == b"\xff" and content[at + 1:at + 2] not in (b"", b"\xda"):
        kind, length = content[at + 1], int.from_bytes(content[at + 2:at + 4], "big")
        told = 0xe0 <= kind <= 0xef or kind == 0xfe  # an application's segment, or a comment
        if not told or length - 2 >= JPEG_LEAST.get(kind, length):
            kept.append(content[at:at + 2 + length])
        at += 2 + length
    return b"".join([*kept, content[at:]])
