"""Where the project's files lie, what a strange one is, and writing that leaves a file whole or not
there at all."""

from __future__ import annotations

import codecs
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

_PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = (_PACKAGE / "_clone").is_dir()
"""Whether this is a copy from a wheel, which carries what a clone keeps beside the package."""
ROOT = _PACKAGE / "_clone" if INSTALLED else _PACKAGE.parent
"""What holds data/, notebooks/ and tools/sweeps/: the clone, or the copy of it that a wheel
carries, into which nothing is written."""
KNOWN_HEADS = {
    b"\x89PNG": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture", b"%PDF": "a PDF document",
    b"\x89HDF": "an HDF5 file", b"GGUF": "a GGUF file", b"\x93NUMPY": "a numpy array (.npy)",
    b"\x1f\x8b": "a gzip archive", b"7z\xbc\xaf": "a 7z archive", b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive", b"\x28\xb5\x2f\xfd": "a Zstandard archive",
    b"Rar!": "a RAR archive", b"\x04\x22\x4d\x18": "an LZ4 archive",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
    **dict.fromkeys((b"(dp", b"}q\x00", b"ccollections\n", b"ctorch", b"L1195470371460388013333"),
                    "a pickle of protocol 0 or 1")}
"""How other files begin -> what they are."""
HEIC = b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"
NOT_FETCHED = {"LFS": "run git lfs pull", "web page": "fetch the file itself",
               "empty": "fetch it again"}
"""A word of what a file is -> what to do about it, whatever it should be."""


def at_home(path: str | Path) -> Path:
    """A path whose ~ is the home folder, also where no shell has seen it."""
    return Path(os.path.expanduser(path))


def runs_folder() -> Path:
    """Where results go: the clone's runs/; of an installed copy, that of the working directory."""
    return (Path.cwd() if INSTALLED else ROOT) / "runs"


def data_folder() -> Path:
    """Where the embedded files lie: $GAPKD_DATA, or the `data` folder of the clone or the wheel."""
    return at_home(os.environ.get("GAPKD_DATA") or ROOT / "data")


def data_path(name: str) -> Path:
    """Where an embedded file lies. Raises FileNotFoundError, in one sentence, where it is not."""
    folder = data_folder()
    if not (folder / name).is_file():
        raise FileNotFoundError(f"the embedded file {name} is not in {folder}: install gapkd anew, "
                                "or set GAPKD_DATA to the data folder of a clone")
    return folder / name


def cache_folder() -> Path:
    """$GAPKD_CACHE, or gapkd's folder in the user's cache."""
    return at_home(os.environ.get("GAPKD_CACHE") or platformdirs.user_cache_path("gapkd"))


def sha256(file: str | Path) -> str:
    """The checksum of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(file, "rb") as content:
        while chunk := content.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def check_utf8(path: str | Path) -> None:
    """Raise ValueError, in one sentence, for a file whose name, or that of a folder above it, is
    not UTF-8, as some from old archives: the safetensors library opens none of them."""
    for part in reversed(Path(path).parts):
        if os.fsencode(part) != part.encode(errors="replace"):
            what = "file" if part == Path(path).name else "folder"
            raise ValueError(f"the {what} {ascii(part)} has a name that is not UTF-8, so that the "
                             "safetensors library cannot open what it holds: rename it")


def other_kind(head: bytes, suffix: str = "") -> str:
    """What a file is, other than a network, by its first 512 bytes."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head:
        return "empty"
    for start, kind in KNOWN_HEADS.items():
        if head.startswith(start):
            return kind
    if head[4:8] == b"ftyp" and head[8:12] in HEIC:
        return "a HEIC picture"
    if head[257:262] == b"ustar":
        return "a tar archive"
    if suffix == ".onnx" or re.match(rb"\x08[\x01-\x20]\x12[\x01-\x20]\w", head):
        return "an ONNX program"
    if text[:1] == b"<" and (text[1:2] in b"!?" or text[1:2].isalpha()):
        return "a web page (did the download want a login?)"
    if all(byte >= 32 or byte in b"\t\r\n" for byte in head) and head.isascii():
        return "text"
    return "of an unknown kind"


def json_lines(path: str | Path) -> list[tuple[int, object]]:
    """(number, value) of the lines of a .jsonl file that are not blank; None for a line that is no
    JSON, or no UTF-8, as a power cut may leave it. Raises ValueError, in one sentence, where the
    file cannot be read."""
    try:
        lines = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): it should be a text file "
                         "that you may read") from error
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            found.append((number, None))
            with suppress(ValueError, RecursionError):
                found[-1] = number, json.loads(line.decode())
    return found


@contextmanager
def locked(file: str | Path, wait: bool = False) -> Iterator[bool]:
    """Within the block no other process has this lock. Where the file system knows no locks, it
    gives False and keeps nobody out. Raises Timeout where another process has it and we do not
    wait."""
    lock = FileLock(file)
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        raise
    except (OSError, NotImplementedError):  # a file system without locks
        pass
    try:
        yield lock.is_locked
    finally:
        lock.release()


def write_atomically(path: str | Path, content: bytes) -> Path:
    """Write a file so that it is there whole or not at all: write aside, fsync, rename.

    Raises OSError with one sentence; a file that was there before is then untouched.
    """
    path = at_home(path)
    aside = _aside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        mend = "free some space, make the folder writable or choose another"
        if path.is_dir():
            mend = "move that folder away"
        elif path.exists():
            mend += "; the file that was there before is untouched"
        raise OSError(f"could not write {path} ({error.strerror}): {mend}") from error
    return path


def _aside(path: Path) -> Path:
    return path.parent / f".{path.name}.partial"


def check_place(path: str | Path, kind: str = "file") -> Path:
    """The path, if a file or folder can be made there: for a command to ask before its work, not
    after. Raises ValueError, in one sentence, if not."""
    if not str(path) or not str(path).isprintable():
        raise ValueError(f"{str(path)!r} is no printable name: choose another {kind}")
    path = at_home(path)
    try:
        os.lstat(_aside(path))  # whose name may be too long
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise ValueError(f"{str(path)[:60]} cannot be made ({error.strerror}): choose another "
                             f"{kind}") from error
    if kind == "file" and path.is_dir():
        raise ValueError(f"{path} is a folder: name a file in it")
    above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    try:
        tempfile.TemporaryFile(dir=above).close()  # permissions do not say that a disk is read-only
    except OSError as error:
        fault = "not writable" if above.is_dir() else "a file"
        raise ValueError(f"{path} cannot be made, since {above} is {fault}: choose another {kind}"
                         ) from error
    return path


def new_file(path: str | Path, *endings: str) -> Path:
    """The path, if a new file can be made there. Raises ValueError, in one sentence, if not."""
    path = at_home(path) if str(path) else path
    if endings and Path(path).suffix not in endings:
        raise ValueError(f"{path} must end in {' or '.join(endings)}: that is what is written")
    if os.path.lexists(path):
        raise ValueError(f"{path} exists already: remove it or choose another out")
    return check_place(path)


def new_folder(folder: str | Path) -> Path:
    """The path, if a folder can be made there, or an empty one is. Raises ValueError, in one
    sentence, if not."""
    folder = at_home(folder) if str(folder) else folder
    if str(folder) and os.path.lexists(folder) and not _is_empty(Path(folder)):
        raise ValueError(f"{folder} exists already: remove it or choose another folder")
    return check_place(folder, "folder")


def _is_empty(folder: Path) -> bool:
    """Whether it is a folder, no link and not the one where we stand, with nothing in it."""
    with suppress(OSError):
        return not (folder.is_symlink() or folder.samefile(".") or any(folder.iterdir()))
    return False


def write_folder(folder: str | Path, contents: Mapping[str, bytes]) -> Path:
    """Write a new or empty folder, of files by their paths in it, so that they are there all or
    none.

    Raises ValueError when something of that name is there, OSError with one sentence; nothing is
    then left behind.
    """
    folder = new_folder(folder)
    aside = folder.with_name(f".gapkd-{uuid.uuid4().hex[:12]}.partial")
    try:
        aside.mkdir(parents=True)
        for name, content in contents.items():
            write_atomically(aside / name, content)
        with suppress(FileNotFoundError):
            folder.rmdir()  # an empty one
        os.rename(aside, folder)
        _sync_folder(folder.parent)
    except OSError as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise OSError(f"could not write the folder {folder} ({cause.strerror}): free some space, "
                      "make the folder above it writable or choose another; nothing of it was left "
                      "behind") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _sync_folder(folder: Path) -> None:
    """Make a rename in it survive a power cut, where folders can be synchronised."""
    if hasattr(os, "O_DIRECTORY"):
        with suppress(OSError):  # the file itself is there already, and whole
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
