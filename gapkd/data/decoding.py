"""Picture files: which are read, how a file becomes pixels, and small copies of large ones.

Reading one executes nothing: of Pillow's formats, those that call another program or only name
what they cannot decode stay out.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import sys
import unicodedata
import uuid
import warnings
import zlib
from contextlib import suppress
from pathlib import Path, PurePosixPath

import numpy as np
import PIL
from PIL import ExifTags, Image

from gapkd.settings import shown

if Image.MAX_IMAGE_PIXELS:  # the largest of phones have 200 million, twice Pillow's bound
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, 2**28)
UNFIT = {"EPS", "WMF", "IPTC", "FITS", "MPEG", "BUFR", "GRIB", "HDF5"}
"""EPS calls Ghostscript, WMF draws with Windows, IPTC may hold either; of FITS Pillow reads neither
signs nor scales; the others are stubs."""
SIGNED = ("PNG", "JPEG", "WEBP", "GIF", "AVIF")
"""Formats that are believed without a suffix: their first bytes leave no doubt."""
PUT_AWAY = {"__macosx", "@eadir", "@__thumb", "@recycle", "#recycle", "$recycle.bin", "#snapshot",
            "~snapshot", "@recently-snapshot", "lost+found", "system volume information"}
"""Folders that systems and network drives make: thumbnails, what was deleted, earlier versions."""
PUT_AWAY_WORDS = "hidden, deleted or thumbnails"
FURNITURE = {"thumbs.db", "ehthumbs.db", "desktop.ini", "dataset.json"}
"""Files beside pictures that nobody would take for one."""


def suffixes() -> dict[str, str]:
    """Suffix -> format, of every format that is read."""
    Image.init()
    known = {*Image.OPEN, "MPO"} - UNFIT  # MPO is opened as a JPEG
    more = {".pjpeg": "JPEG", ".pjp": "JPEG"}  # of a browser
    return more | {end: kind for end, kind in Image.registered_extensions().items()
                   if kind in known}


def formats(name: str) -> list[str]:
    """The formats that a file may have, whatever its suffix says; those that no first bytes tell
    apart from anything else only where the suffix names them."""
    named = suffixes().get(suffix(name))
    return [kind for kind, (_, accepts) in Image.OPEN.items()
            if kind not in UNFIT and (accepts or kind == named)]


def suffix(name: str) -> str:
    """The end of a name, from its last dot, in small letters; empty where there is none."""
    return PurePosixPath(name).suffix.lower()


def same_name(name: str) -> str:
    """What two spellings of a name have in common: systems compose accents differently, and turn
    the slashes between folders round."""
    return unicodedata.normalize("NFC", name.replace("\\", "/")).removeprefix("./")


def says_its_kind(name: str) -> bool:
    """Whether a name ends in letters, unlike "photo v1.2", "a.png.1" or "a.jpg?size=l"."""
    return suffix(name).strip(".~").isalpha()


def copied_from(name: str) -> str:
    """The picture of which a name says a second copy, as tools call them: "a.png.1", or exiftool's
    "a.png_original"; "": of none."""
    before = name.removesuffix("_original")
    if before == name and not says_its_kind(name):
        before = name.rpartition(".")[0]
    return before if before != name and suffix(before) in suffixes() else ""


def is_put_away(name: str) -> bool:
    """Whether a file is hidden, or lies in a folder of the system's."""
    return any(part.startswith(".") and part != ".." or part.lower() in PUT_AWAY
               for part in PurePosixPath(same_name(name)).parts)


def why_left_out(name: str) -> str | None:
    """Why a file is no picture of a set, "" where that goes without saying; None: it is one."""
    path, kind = PurePosixPath(same_name(name)), suffix(name)
    # macOS puts "._photo.jpg", which is no image, beside photo.jpg, and "__MACOSX" into its zips.
    if path.name.lower() in FURNITURE or path.name.startswith("._") or "__MACOSX" in path.parts:
        return ""
    if is_put_away(name):
        return PUT_AWAY_WORDS if kind in suffixes() else ""
    if kind in suffixes():
        return None
    is_suffix = kind[1:].isalnum() and len(kind) < 9
    return kind if is_suffix else "of other kinds"


TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
         4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
         6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}
"""EXIF's orientation -> what shows the picture upright."""
PNG_START, JPEG_START = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
PNG_CONTENT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
PNG_HIDDEN = {0: 2, 2: 6}  # kind of colours -> bytes of the one that is hidden, at least
JPEG_LEAST = {0xe0: 14, 0xe1: 0, 0xee: 12}  # JFIF, EXIF, Adobe: bytes of what is kept


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """What shows the image upright, if it is not; metadata that cannot be read says nothing."""
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # Pillow raises what it likes
        return None


def without_metadata(content: bytes) -> bytes | None:
    """A PNG, JPEG or AVIF without texts, profiles and dates, which may be malformed where the
    picture is not; None for other files. How it is held (EXIF) is kept where that can be read."""
    if content.startswith(PNG_START):
        return _bare_png(content)
    if content[4:8] == b"ftyp":  # the list of its items (infe) names one that is EXIF
        return re.sub(rb"(infe.{8})Exif", rb"\1none", content, flags=re.DOTALL)
    return _bare_jpeg(content) if content.startswith(JPEG_START) else None


def _bare_png(content: bytes) -> bytes:
    kept, at = [PNG_START], len(PNG_START)
    while at < len(content):
        end = at + 12 + int.from_bytes(content[at:at + 4], "big")
        kind, chunk = content[at + 4:at + 8], content[at:end]
        whole = zlib.crc32(chunk[4:-4]).to_bytes(4, "big") == chunk[-4:]
        if kind == b"tRNS" and len(chunk) - 12 < PNG_HIDDEN.get(content[25], 0):
            kind = b""
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


DEEP_COLOUR = re.compile("((?:RGB[AX]?|LA|CMYK);16)([BLN])")  # Pillow reads the upper bytes of it
WITH_OPACITY = "RGBA;16", "LA;16"  # which may have other bits than the colours
SHALLOW = {"L;2": 4, "L;4": 16}  # greys, whose pixels Pillow brings to 255, not the hidden value
DEPTHS = (8, 10, 12, 14, 16)
"""Bits that cameras, scanners and formats give a value."""
NEARLY_BLACK = 15  # so small are the largest value of a black picture and the classes of a mask


def stated_depth(image: Image.Image) -> int | None:
    """Bits of a value as the file has them; None where it says no more than how they are stored:
    whatever is deeper than a byte and shallower than 16 bits is stored in 16, or in 32."""
    if image.mode.startswith("I"):
        tags = getattr(image, "tag_v2", {})
        stored = tags.get(258, (16,))[0]  # BitsPerSample of a TIFF
        known = stored < 16 or image.format == "PPM"  # whose values Pillow brings to 16 bits
        darkest = stored == 16 and tags.get(262) == 0  # white is zero, and the largest value black
        return min(stored, 16) if known or darkest else None
    return None if _deep_colour(image) else 8


def needed_depth(image: Image.Image) -> int:
    """The least of `DEPTHS` that holds all values of an image whose depth is not stated, and the
    largest one that a TIFF may name; 0 for one that is black in any of them."""
    deep_colour = _deep_colour(image)
    values = _both_bytes(image, deep_colour) if deep_colour else np.asarray(image)
    if deep_colour and deep_colour[1] != "CMYK":
        values = values[..., :1 if deep_colour[1] == "LA;16" else 3]
    named = getattr(image, "tag_v2", {}).get(281, ())  # MaxSampleValue; 65,535 says nothing
    largest = max(values.max(), *(n for n in named if isinstance(n, int) and n < 65535), 0)
    if largest <= NEARLY_BLACK:
        return 0
    return next((bits for bits in DEPTHS if largest < 2**bits), DEPTHS[-1])


def to_8_bits(image: Image.Image, depth: int) -> Image.Image:
    """Values of `depth` bits brought to 8; an image that has them is returned as it is.

    Raises ValueError for values below 0, or of more than 16 bits, and for what Pillow misreads.
    """
    deep_colour, tags = _deep_colour(image), getattr(image, "tag_v2", {})  # those of a TIFF
    hidden = image.info.get("transparency")  # the value or colour of a PNG that is not to be seen
    if image.mode.startswith("I"):
        values = np.asarray(image)
    elif depth < 16 and tags.get(284) == 2 and tags.get(258, (1,))[0] == 16:
        raise ValueError("it stores 16-bit colours plane by plane (PlanarConfiguration 2); pixel "
                         "by pixel is understood")
    elif deep_colour and (depth < 16 or hidden is not None):  # else Pillow brings 16 bits to 8
        values = _both_bytes(image, deep_colour)
    elif tags.get(339, (1,))[0] == 2:  # signed, which Pillow does not mind
        values = np.asarray(image).view(np.int8)
    else:
        if image.mode == "P" and max(tags.get(320, (256,))) < 256:  # colours of 8 bits, not 16
            image.putpalette(bytes(tags[320]), "RGB;L")
        if hidden is not None and (levels := SHALLOW.get(_raw_mode(image))):
            image.info["transparency"] = hidden % levels * 255 // (levels - 1)
        return image
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise ValueError("it has pixels below 0 or above 65,535; 8 or 16 bits are understood")
    white = 2**depth - 1
    if deep_colour and deep_colour[1] in WITH_OPACITY:
        opacity = values[..., -1].max()
        opaque = next(top for top in (255, white, 65_535) if opacity <= top)
        white = np.array([white] * (values.shape[2] - 1) + [opaque])
    eight_bits = ((values.astype(np.uint32) * 255 + white // 2) // white).clip(0, 255)
    if tags.get(262) == 0:  # white is zero
        eight_bits = 255 - eight_bits
    if hidden is not None:
        seen = (np.atleast_3d(values) != hidden).any(axis=2)
        eight_bits = np.dstack([eight_bits, 255 * seen])
    eight_bits = eight_bits.astype(np.uint8)
    if image.mode == "CMYK":
        return Image.frombytes("CMYK", image.size, eight_bits.tobytes())
    return Image.fromarray(eight_bits)


def is_unseen(image: Image.Image) -> bool:
    """Whether the opacity of an 8-bit picture, 0 or 1 of 255, hides colours that are there: it has
    another range, or is not in use."""
    if image.mode not in ("RGBA", "LA"):
        return False
    *colours, (_, opacity) = image.getextrema()
    return opacity <= 1 and any(low < high for low, high in colours)


def _deep_colour(image: Image.Image) -> re.Match | None:
    """How the bytes of a colour image of 16 bits lie, as long as it is not loaded."""
    return DEEP_COLOUR.fullmatch(_raw_mode(image))


def _raw_mode(image: Image.Image) -> str:
    """How Pillow calls that; "" where it is loaded."""
    arguments = image.tile[0].args if getattr(image, "tile", None) else None
    raw = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return raw if isinstance(raw, str) else ""


def _both_bytes(image: Image.Image, found: re.Match) -> np.ndarray:
    """(H, W, C) of a colour image of 16 bits; the lower bytes are what Pillow takes for the upper
    ones when it is told the other order. Grey and alpha, which it reads in one order, are as long
    as RGBA of 8 bits."""
    if found[1] == "LA;16":
        image.tile = [_told(tile, "RGBA") for tile in image.tile]
        return np.asarray(image).view(">u2")
    order = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}[found[2]]
    file = image.fp
    upper = np.asarray(image).astype(np.uint32)
    file.seek(0)
    with Image.open(file, formats=[image.format]) as lower:
        lower.tile = [_told(tile, found[1] + order) for tile in lower.tile]
        return upper * 256 + np.asarray(lower)


def _told(tile: tuple, raw: str) -> tuple:
    """A tile whose bytes lie as `raw` says."""
    return tile._replace(args=raw if isinstance(tile.args, str) else (raw, *tile.args[1:]))


SPARE = 2**31  # bytes of a disk that are left to others
DECODING = f"6, Pillow {PIL.__version__}"  # another number where other pixels come of a file


class SmallCopies:
    """Pictures at the size at which they are asked for, as PNG files that lose nothing.

    They lie in the user's cache under names that are digests of all that decides their pixels, so
    that a file that was changed has none. They are written aside and renamed. One that cannot be
    read is as good as none, and so is a disk that takes no more.
    """

    def __init__(self, folder: Path):
        self.folder, self.takes_more = folder, True

    def get(self, *decisive: object) -> Image.Image | None:
        try:
            with Image.open(self._file(decisive), formats=["PNG"]) as copy:
                copy.load()
                return copy
        except Exception:  # decoders raise what they like
            return None

    def put(self, picture: Image.Image, *decisive: object) -> None:
        if not self.takes_more:
            return
        file = self._file(decisive)
        aside = file.with_name(f".{uuid.uuid4().hex}.partial")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(file.parent).free < SPARE:
                raise OSError(errno.ENOSPC, "its disk is nearly full")
            picture.save(aside, "PNG", compress_level=1)
            os.replace(aside, file)
        except OSError as error:
            self.takes_more = False
            with suppress(OSError):
                aside.unlink(missing_ok=True)
            warnings.warn(f"no more small copies are written to {shown(self.folder)} "
                          f"({error.strerror or error}): large pictures are decoded anew each "
                          "time; set GAPKD_CACHE to another folder to have them kept",
                          stacklevel=4)

    def _file(self, decisive: tuple) -> Path:
        said = repr((DECODING, *decisive)).encode(errors="surrogatepass")
        digits = hashlib.sha256(said).hexdigest()[:40]
        return self.folder / digits[:2] / f"{digits[2:]}.png"
