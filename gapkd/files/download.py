"""Networks by address: https://host/file.pkl#sha256=..., fetched once into the user's cache.

Nothing is fetched unless its address is given. A fetch that was cut off goes on where it stopped; a file gets its name
only when it is whole and, if the address says how, verified.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import ssl
import string
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
    parts = _parts(address)
    digest = _digest(parts.fragment, address)
    if parts.scheme == "file":
        return _own_file(parts.path, digest, address)
    if parts.scheme == "http" and not digest:
        raise AddressError(f"{address} could be altered on its way: give https://, or append #sha256= and its "
                           "check sum")
    bare = urllib.parse.urlunsplit(parts._replace(fragment=""))
    url = urllib.parse.quote(bare, safe=string.punctuation, errors="replace")  # spaces, accents
    name = re.sub(r"[^A-Za-z0-9._-]", "_", Path(urllib.parse.unquote(parts.path)).name)[-100:] or "file"
    target = cache_folder() / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    try:
        if _fits(target, digest):  # before the lock, which a cache that is only read cannot have
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f"{target.name}.lock")):  # two processes may want the same
            if not _fits(target, digest):
                _download(address, url, target, digest, progress)
        return target
    except AddressError:
        raise
    except urllib.error.HTTPError as error:
        reason = " ".join(f"{error.code} {error.reason}".split())
        raise AddressError(f"{bare} could not be fetched (the server says {reason}){_unfit(target)}: "
                           "check the address") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError, ssl.SSLError) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise AddressError(f"{bare} could not be fetched ({reason}){_unfit(target)}: without a connection, bring the "
                           "file from elsewhere and give its path; what had arrived is kept, and the next try goes on "
                           "from there if the server can") from error
    except OSError as error:
        reason, mend = error.strerror or error, "free some space, or set GAPKD_CACHE to another folder"
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason, mend = f"not writable: {reason}", "set GAPKD_CACHE to a folder of your own"
        raise AddressError(f"{bare} could not be stored in {target.parent} ({reason}){_unfit(target)}: "
                           f"{mend}") from error
    except (http.client.InvalidURL, ValueError) as error:
        raise _unusable(address, error) from error
    except http.client.HTTPException as error:
        raise AddressError(f"what answers at {bare} does not speak HTTP as it should ({type(error).__name__})"
                           f"{_unfit(target)}: check the address and its port") from error


def _unusable(address: str, error: Exception) -> AddressError:
    return AddressError(f"{address} is not an address that can be fetched ({error}): mend its host or port")


def _parts(address: str) -> urllib.parse.SplitResult:
    try:
        parts = urllib.parse.urlsplit(address)
        known = parts.scheme == "file" or parts.scheme in ("https", "http") and parts.hostname and parts.port != 0
    except ValueError as error:  # a bracket that is not closed, a port that is not a number
        raise _unusable(address, error) from error
    if not known:
        raise AddressError(f"{address} is not an address that can be fetched: give file:// or https://, or a path")
    if not re.fullmatch("[!-~]*", parts.netloc):
        raise AddressError(f"the host in {address} must be ASCII without spaces: give its xn-- form for other letters")
    return parts


def _digest(fragment: str, address: str) -> str:
    if not fragment:
        return ""
    match = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if not match:
        raise AddressError(f"what follows # in {address} must be sha256= and 64 hexadecimal digits")
    return match[1].lower()


def _sum(file: Path) -> str:
    with open(file, "rb") as content:
        if hasattr(hashlib, "file_digest"):
            return hashlib.file_digest(content, "sha256").hexdigest()
        return hashlib.sha256(content.read()).hexdigest()


def _fits(file: Path, digest: str) -> bool:
    return file.is_file() and (not digest or _sum(file) == digest)


def _unfit(target: Path) -> str:
    """What to say, where a fetch fails, of a file in the cache: that it does not fit, or it would have been used."""
    return ", and the file in the cache does not fit the check sum" if os.access(target, os.R_OK) else ""


def _verify(file: Path, digest: str, address: str, done: str = "") -> None:
    if digest and (found := _sum(file)) != digest:
        raise AddressError(f"{address} has another check sum ({found}): it is damaged or not what was meant, so "
                           f"compare the digits after #sha256= with its publisher's{done}")


def _own_file(path: str, digest: str, address: str) -> Path:
    try:
        file = Path(urllib.request.url2pathname(path))
        if not file.is_file():
            raise AddressError(f"there is no file at {address}: check its path, which begins with the third /")
        _verify(file, digest, address)
    except OSError as error:
        raise AddressError(f"{address} could not be read ({error.strerror or error}): check its path, and who may "
                           "read it") from error
    return file


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    """For addresses without a check sum: a server may not lead on to where the file could be altered on its way."""

    def redirect_request(self, request, answer, code, message, headers, url):
        if urllib.parse.urlsplit(url).scheme != "https":
            raise AddressError(f"{request.full_url} leads on to {url}, which could be altered on its way: append "
                               "#sha256= and its check sum")
        return super().redirect_request(request, answer, code, message, headers, url)


def _download(address: str, url: str, target: Path, digest: str, progress: bool) -> None:
    """Into <target>.partial, from where it stopped if the server can, then verified, and only then renamed."""
    partial, tag_file = (target.with_name(f"{target.name}.{end}") for end in ("partial", "tag"))
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "gapkd"})
    if have and tag_file.exists():  # only the same version of the file may be continued
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", tag_file.read_text())
    try:
        opener = urllib.request.build_opener(*[] if digest else [_OnlyHttps])
        answer = opener.open(request, timeout=SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:  # nothing after what we have: it is whole, or another file now
            raise
        partial.unlink()
        return _download(address, url, target, digest, progress)
    with answer:
        continued = answer.status == 206
        have = have if continued else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length and length.isdecimal() else None
        with open(partial, "ab" if continued else "wb") as file, tqdm(
                total=total, initial=have, unit="B", unit_scale=True, desc=target.name[17:], leave=False,
                disable=not progress) as bar:
            tag_file.unlink(missing_ok=True)  # after the file is emptied: never a new tag beside an old part
            if tag := answer.headers.get("ETag") or answer.headers.get("Last-Modified"):
                tag_file.write_text(tag)
            try:
                while chunk := answer.read(CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
            except http.client.IncompleteRead as error:
                raise ConnectionError("the connection broke off") from error
            file.flush()
            os.fsync(file.fileno())
    if total is not None and partial.stat().st_size != total:
        raise ConnectionError("the connection broke off")
    tag_file.unlink(missing_ok=True)
    try:
        _verify(partial, digest, address, "; what was fetched was removed")
    except AddressError:
        partial.unlink()
        raise
    os.replace(partial, target)
    return None
