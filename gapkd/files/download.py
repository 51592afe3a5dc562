"""Networks by address: https://host/file.pkl#sha256=..., fetched once into the user's cache.

Nothing is fetched unless its address is given. A file gets its name only when it is whole and, if
the address says how, verified.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import string
import urllib.parse
import urllib.request
from pathlib import Path

from filelock import FileLock

from gapkd.files.storage import cache_folder, sha256

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
CHUNK = 2**20
SECONDS = 30  # that a server may be silent


class AddressError(ValueError):
    """An address that cannot be used, or from which nothing could be fetched."""


def is_address(name: str | Path) -> bool:
    """Whether it is an address and not a path."""
    return bool(SCHEME.match(str(name)))


def fetch(address: str, progress: bool = True) -> Path:
    """The file behind an address; from the cache if it has been fetched before.

    Args:
        address: file:// or https://, with an optional #sha256=<64 hex digits>; http:// needs one.
        progress: whether a bar is shown meanwhile.

    Raises AddressError, in one sentence.
    """
    parts = _parts(address)
    digest = _digest(parts.fragment, address)
    if parts.scheme == "file":
        return _own_file(parts.path, digest, address)
    if parts.scheme == "http" and not digest:
        raise AddressError(f"{address} could be altered on its way: give https://, or append "
                           "#sha256= and its check sum")
    bare = urllib.parse.urlunsplit(parts._replace(fragment=""))
    url = urllib.parse.quote(bare, safe=string.punctuation, errors="replace")  # spaces, accents
    name = re.sub(r"[^A-Za-z0-9._-]", "_", Path(urllib.parse.unquote(parts.path)).name)[-100:]
    digits = hashlib.sha256(url.encode()).hexdigest()[:16]
    target = cache_folder() / f"{digits}-{name or 'file'}"
    try:
        # before the lock, which a cache that is only read cannot have
        if target.is_file() and digest in ("", sha256(target)):
            return target
        _retrieve(url, target, digest, progress)
    except AddressError:
        raise
    except OSError as error:  # those of the network have no number
        unfit = ""
        if os.access(target, os.R_OK):  # if it fitted, it would have been used
            unfit = ", and the file in the cache does not fit the check sum"
        if error.errno is None:
            raise AddressError(f"{bare} could not be fetched ({_reason(error)}){unfit}: check the "
                               "address and the connection, or bring the file from elsewhere and "
                               "give its path") from error
        mend = "free some space, or set GAPKD_CACHE to another folder"
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            mend = "it is not writable, so set GAPKD_CACHE to a folder of your own"
        raise AddressError(f"{bare} could not be stored in {target.parent} ({error.strerror})"
                           f"{unfit}: {mend}") from error
    except ValueError as error:  # pooch found another sum
        raise AddressError(f"{address} has another check sum: it is damaged or not what was meant, "
                           "so compare the digits after #sha256= with its publisher's; what was "
                           "fetched was removed") from error
    return target


def _retrieve(url: str, target: Path, digest: str, progress: bool) -> None:
    """Download aside, verify, rename: once, even if two processes want the same file."""
    import pooch
    from tqdm.auto import tqdm

    def check_redirect(answer, **_: object) -> None:
        if answer.is_redirect:
            onward = _parts(answer.headers["location"], answer.url)
            if onward.scheme != "https" and not digest:
                raise AddressError(f"{url} leads on to {onward.geturl()}, which could be altered "
                                   "on its way: append #sha256= and its check sum")

    pooch.get_logger().setLevel("WARNING")
    target.parent.mkdir(parents=True, exist_ok=True)
    # pooch corrects the total, but takes a bar without one for no bar
    bar = tqdm(total=1, unit="B", unit_scale=True, desc=target.name[17:], leave=False,
               disable=not progress)
    with FileLock(target.with_name(f"{target.name}.lock")), bar:
        download = pooch.HTTPDownloader(
            progressbar=bar, chunk_size=CHUNK, timeout=SECONDS, hooks={"response": check_redirect},
            headers={"User-Agent": "gapkd", "Accept-Encoding": "identity"})
        pooch.retrieve(url, digest or None, target.name, target.parent, downloader=download)


def _reason(error: BaseException) -> str:
    """What lies behind an error of requests, in a few words."""
    answer = getattr(error, "response", None)
    if answer is not None:
        return " ".join(f"the server says {answer.status_code} {answer.reason}".split())
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())


def _parts(address: str, origin: str = "") -> urllib.parse.SplitResult:
    """An address taken apart; of a redirect, seen from its origin."""
    try:
        parts = urllib.parse.urlsplit(urllib.parse.urljoin(origin, address))
        if parts.scheme != "file":
            if parts.scheme not in ("https", "http"):
                raise ValueError("give file:// or https://, or a path")
            if not parts.hostname or parts.port == 0 or re.search(r"[\s@]", parts.netloc):
                raise ValueError("mend its host or port")
            parts.hostname.encode("idna")
    except ValueError as error:  # also a bracket that is not closed, a port that is no number
        raise AddressError(f"{address} is not an address that can be fetched: {error}") from error
    return parts


def _digest(fragment: str, address: str) -> str:
    if fragment and not re.fullmatch("sha256=[0-9a-fA-F]{64}", fragment):
        raise AddressError(f"what follows # in {address} must be sha256= and 64 hexadecimal digits")
    return fragment.removeprefix("sha256=").lower()


def _own_file(path: str, digest: str, address: str) -> Path:
    """A file of the user's own, which is never removed."""
    try:
        file = Path(urllib.request.url2pathname(path))
        if not file.is_file():
            raise AddressError(f"there is no file at {address}: check its path, which begins with "
                               "the third /")
        if digest and (found := sha256(file)) != digest:
            raise AddressError(f"{address} has another check sum ({found}): it is damaged or not "
                               "what was meant, so compare the digits after #sha256= with its "
                               "publisher's")
    except OSError as error:
        raise AddressError(f"{address} could not be read ({error.strerror or error}): check its "
                           "path, and who may read it") from error
    return file
