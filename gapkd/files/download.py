"""Networks by address, fetched once: https://host/file.pkl#sha256=... into the user's cache,
hf://user/name of a model hub into that of its client.

Nothing is fetched unless its address is given. A file gets its name only when it is whole and, if
the address says how, verified.
"""

from __future__ import annotations

import hashlib
import re
import string
import urllib.parse
import urllib.request
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from gapkd.files.storage import cache_folder, sha256

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
ON_HUB = re.compile(rf"hf://({REPOSITORY.pattern})(?:@([\w.%-]+))?(?:/([^?#]+))?", re.ASCII)
WEIGHTS, CONFIG = "model.safetensors", "config.json"  # in a folder of gapkd.sharing.hub
HUB_OPTIONS = ("revision", "token", "cache_dir", "force_download", "local_files_only")
"""What huggingface_hub's from_pretrained takes for its client, by the same names."""
CHUNK = 2**20
SECONDS = 30  # that a server may be silent


class AddressError(ValueError):
    """An address that cannot be used, or from which nothing could be fetched."""


def is_address(name: str | Path) -> bool:
    """Whether it is an address and not a path."""
    return bool(SCHEME.match(str(name)))


def fetch(address: str, **hub: object) -> Path:
    """The file behind an address; from the cache if it has been fetched before.

    Args:
        address: file:// or https://, with an optional #sha256=<64 hex digits>; http:// needs one.
            Or a repository of a model hub, hf://user/name, with an optional @revision and an
            optional /file: without one, the folder of its weights and its config.json.
        hub: HUB_OPTIONS, for the hub's client.

    Raises AddressError, in one sentence.
    """
    if str(address).startswith("hf://"):
        return _from_hub(str(address), {k: v for k, v in hub.items() if v is not None})
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
        if not (target.is_file() and digest in ("", sha256(target))):
            _retrieve(url, target, digest)
    except AddressError:
        raise
    except OSError as error:  # those of the network have no number
        if error.errno is None:
            raise AddressError(f"{bare} could not be fetched ({reason(error)}): check the address "
                               "and the connection, or bring the file from elsewhere and give its "
                               "path") from error
        raise AddressError(f"{bare} could not be stored in {target.parent} ({error.strerror}): "
                           "free some space there, or set GAPKD_CACHE to another folder, where you "
                           "may write") from error
    except ValueError as error:  # pooch found another sum
        raise AddressError(f"{address} has another check sum: it is damaged or not what was meant, "
                           "so compare the digits after #sha256= with its publisher's; what was "
                           "fetched was removed") from error
    return target


def _from_hub(address: str, how: dict) -> Path:
    """A file of a hub's repository; if none is named, the folder of its weights and config."""
    import huggingface_hub as client
    from huggingface_hub import errors

    found = ON_HUB.fullmatch(address)
    if not found:
        raise AddressError(f"{address} names no repository: give hf://user/name, which may end in "
                           "@revision or in /file")
    name, revision, file = found.groups()
    wanted = file or WEIGHTS
    how = {"revision": urllib.parse.unquote(revision) if revision else None, **how}
    place = {key: how[key] for key in ("revision", "cache_dir") if key in how}
    login = "check it, or log in with `hf auth login`"
    try:
        known = isinstance(client.try_to_load_from_cache(name, wanted, **place), str)
        known = known and not how.get("force_download")
        if not known and not how.get("local_files_only"):  # the client would try for half a minute
            url = client.hf_hub_url(name, wanted, revision=how["revision"])
            client.get_hf_file_metadata(url, token=how.get("token"))
        fetched = Path(client.hf_hub_download(name, wanted, **how))
        if not file:
            with suppress(errors.EntryNotFoundError):  # the weights know it all themselves
                client.hf_hub_download(name, CONFIG, **how | {"revision": fetched.parent.name})
    except (*network_errors(), ValueError) as error:
        if getattr(error, "errno", None):  # which those of the network have not
            raise AddressError(f"{address} could not be stored ({error.strerror}): free some space "
                               "there, or give cache_dir, a folder where you may write") from error
        mend = "leave out local_files_only" if how.get("local_files_only") else (
            "check the connection")
        unreached = (f"{address} could not be fetched ({reason(error)}) and is not in the cache: "
                     f"{mend}, or bring its folder from elsewhere and give the path")
        told = [
            (errors.GatedRepoError, f"{address} is open to those alone who asked for it: ask on "
                                    "its page, then log in with `hf auth login`"),
            (errors.LocalTokenNotFoundError, f"{address} was asked for with token=True, but nobody "
                                             "is logged in: run `hf auth login`"),
            (errors.RepositoryNotFoundError, f"the hub shows no repository {name}, it may be "
                                             f"private: {login}"),
            (errors.RevisionNotFoundError, f"{address} has no revision {how['revision']}: {login}"),
            (errors.LocalEntryNotFoundError, unreached),
            (errors.EntryNotFoundError, f"{address} holds no {wanted}: name a file of it, as in "
                                        f"hf://{name}/FILE"),
            (ValueError, f"{address} cannot be asked for so ({reason(error)}): mend the name, or "
                         "the arguments")]
        mine = (text for kind, text in told if isinstance(error, kind))
        raise AddressError(next(mine, unreached)) from error
    return fetched if file else fetched.parent


def network_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises when the network or the hub fails: its own share no base."""
    from huggingface_hub import errors

    return OSError, RuntimeError, errors.HTTPError, errors.EntryNotFoundError  # 2nd: of hf_xet


def _retrieve(url: str, target: Path, digest: str) -> None:
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
    bar = tqdm(total=1, unit="B", unit_scale=True, desc=target.name[17:], leave=False)
    with FileLock(target.with_name(f"{target.name}.lock")), bar:
        download = pooch.HTTPDownloader(
            progressbar=bar, chunk_size=CHUNK, timeout=SECONDS, hooks={"response": check_redirect},
            headers={"User-Agent": "gapkd", "Accept-Encoding": "identity"})
        pooch.retrieve(url, digest or None, target.name, target.parent, downloader=download)


def reason(error: BaseException) -> str:
    """What lies behind an error of requests, in a few words."""
    answer = getattr(error, "response", None)
    if answer is not None:
        words = getattr(answer, "reason", getattr(answer, "reason_phrase", ""))  # requests, httpx
        return " ".join(f"the server says {answer.status_code} {words}".split())
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())


def _parts(address: str, origin: str = "") -> urllib.parse.SplitResult:
    """An address taken apart; of a redirect, seen from its origin."""
    try:
        parts = urllib.parse.urlsplit(urllib.parse.urljoin(origin, address))
        if parts.scheme == "file":
            return parts
        if parts.scheme not in ("https", "http"):
            raise ValueError("give https://, hf:// or file://, or a path")
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
                               "what was meant")
    except OSError as error:
        raise AddressError(f"{address} could not be read ({error.strerror or error}): check its "
                           "path, and who may read it") from error
    return file
