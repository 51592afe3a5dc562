"""Networks by address: https://host/file.pkl#sha256=..., fetched once into the user's cache.

Nothing is fetched unless its address is given. A fetch that was cut off goes on where it stopped; a file gets its name
only when it is whole and, if the address says how, verified.
"""

from __future__ import annotations

import hashlib
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import platformdirs
from filelock import FileLock
from tqdm.auto import tqdm

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
CHUNK = 2**20
SECONDS = 30  # that a server may be silent


class AddressError(ValueError):
    """An address that cannot be used, or from which nothing could be fetched."""


def is_address(name: str | Path) -> bool:
    """Whether it is an address and not a path."""
    return bool(SCHEME.match(str(name)))


def cache_folder() -> Path:
    """$GAPKD_CACHE, or gapkd's folder in the user's cache."""
    return Path(os.environ.get("GAPKD_CACHE") or platformdirs.user_cache_path("gapkd"))


def fetch(address: str, progress: bool = True) -> Path:
    """The file behind an address; from the cache if it has been fetched before.

    Args:
        address: file:// or https://, with an optional #sha256=<64 hex digits>; http:// needs one.
    Raises AddressError, in one sentence.
    """
    parts = urllib.parse.urlsplit(address)
    digest = _digest(parts.fragment, address)
    if parts.scheme == "file":
        return _verified(Path(urllib.request.url2pathname(parts.path)), digest, address)
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise AddressError(f"{address} is not an address that can be fetched: give file:// or https://, or a path")
    if parts.scheme == "http" and not digest:
        raise AddressError(f"{address} could be altered on its way: give https://, or append #sha256= and its "
                           "check sum")
    bare = urllib.parse.urlunsplit(parts._replace(fragment=""))
    name = re.sub(r"[^A-Za-z0-9._-]", "_", Path(urllib.parse.unquote(parts.path)).name) or "file"
    target = cache_folder() / f"{hashlib.sha256(bare.encode()).hexdigest()[:16]}-{name}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f"{target.name}.lock")):  # two processes may want the same
            if not target.exists():
                _download(bare, target, progress)
    except urllib.error.HTTPError as error:
        raise AddressError(f"{bare} could not be fetched (the server says {error.code} {error.reason}): "
                           "check the address") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        raise AddressError(f"{bare} could not be fetched ({reason}): without a connection, bring the file from "
                           "elsewhere and give its path; what had arrived is kept, and the next try goes on from "
                           "there") from error
    except OSError as error:
        raise AddressError(f"{bare} could not be stored in {target.parent} ({error.strerror or error}): free some "
                           "space, or set GAPKD_CACHE to another folder") from error
    return _verified(target, digest, address)


def _digest(fragment: str, address: str) -> str:
    if not fragment:
        return ""
    match = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if not match:
        raise AddressError(f"what follows # in {address} must be sha256= and 64 hexadecimal digits")
    return match[1].lower()


def _verified(file: Path, digest: str, address: str) -> Path:
    if not file.is_file():
        raise AddressError(f"there is no file at {address}")
    if digest:
        with open(file, "rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else (
                hashlib.sha256(content.read()).hexdigest())
        if found != digest:
            cached = file.parent == cache_folder()
            if cached:
                file.unlink()
            raise AddressError(f"{address} has another check sum ({found}): it is damaged or not what was meant"
                               f"{'; it was removed from the cache' if cached else ''}")
    return file


def _download(address: str, target: Path, progress: bool) -> None:
    """Into <target>.partial, from where it stopped if the server can, then renamed."""
    partial, tag_file = (target.with_name(f"{target.name}.{end}") for end in ("partial", "tag"))
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(address, headers={"User-Agent": "gapkd"})
    if have and tag_file.exists():  # only the same version of the file may be continued
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", tag_file.read_text())
    try:
        answer = urllib.request.urlopen(request, timeout=SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing after what we have: it is whole, or another file now
            raise
        partial.unlink()
        return _download(address, target, progress)
    with answer:
        continued = answer.status == 206
        have = have if continued else 0
        tag_file.write_text(answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "")
        if not tag_file.read_text():
            tag_file.unlink()
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length and length.isdecimal() else None
        with open(partial, "ab" if continued else "wb") as file, tqdm(
                total=total, initial=have, unit="B", unit_scale=True, desc=target.name[17:], leave=False,
                disable=not progress) as bar:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and partial.stat().st_size != total:
        raise ConnectionError("the connection broke off")
    os.replace(partial, target)
    tag_file.unlink(missing_ok=True)
    return None
