"""onnxruntime-web, which runs ONNX files in browsers: found in a folder, or fetched once with npm, and verified."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from filelock import FileLock

from gapkd.files.checkpoints import write_atomically
from gapkd.files.download import cache_folder

VERSION = "1.30.0"
SCRIPT, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"  # all of it that the page needs
RUNTIME = {SCRIPT: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
           WASM: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"}
MOST_SECONDS = 900  # for npm
MEND = f"give --runtime a folder with {SCRIPT} and {WASM}"


class WebRuntimeError(ValueError):
    """No onnxruntime-web that could be used."""


def find_runtime(given: str | Path) -> Path:
    """The folder in which onnxruntime-web's two files lie: the given one, or dist in it. Raises WebRuntimeError."""
    for folder in (Path(given), Path(given) / "dist"):
        if all((folder / name).is_file() for name in RUNTIME):
            if (folder / WASM).read_bytes()[:4] != b"\0asm":
                raise WebRuntimeError(f"{folder / WASM} is damaged: install onnxruntime-web again")
            return folder
    raise WebRuntimeError(f"{given} holds no onnxruntime-web: {MEND}")


def fetch_runtime() -> Path:
    """The same, from the cache, or fetched by npm into it, verified. Raises WebRuntimeError, in one sentence."""
    folder = cache_folder() / f"onnxruntime-web-{VERSION}"
    if is_known(folder):  # before the lock, which a cache that is only read cannot have
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise WebRuntimeError("onnxruntime-web is not here, and npm is missing: install Node.js, which brings npm, or "
                              f"{MEND}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")), tempfile.TemporaryDirectory() as aside:
            if not is_known(folder):
                for name, content in _unpack(_pack(npm, Path(aside))).items():
                    write_atomically(folder / name, content)
    except OSError as error:
        raise WebRuntimeError(f"onnxruntime-web could not be stored in {folder} ({error.strerror or error}): set "
                              f"GAPKD_CACHE to a folder of your own, or {MEND}") from error
    return folder


def _pack(npm: str, aside: Path) -> Path:
    """The package as npm fetches it into a folder; none of its scripts is run."""
    command = [npm, "pack", f"onnxruntime-web@{VERSION}", "--ignore-scripts", "--loglevel", "error"]
    try:
        done = subprocess.run(command, cwd=aside, capture_output=True, text=True, timeout=MOST_SECONDS)
        said = next((line.strip() for line in done.stderr.splitlines() if line.strip()), "it said nothing")
        archives = [] if done.returncode else list(aside.glob("*.tgz"))
    except subprocess.TimeoutExpired:
        said, archives = f"no answer in {MOST_SECONDS} s", []
    if len(archives) != 1:
        raise WebRuntimeError(f"npm could not fetch onnxruntime-web {VERSION} ({said}): without a connection, {MEND}")
    return archives[0]


def _unpack(archive: Path) -> dict[str, bytes]:
    """The two files of a package, verified."""
    try:
        with tarfile.open(archive) as file:
            content = {name: file.extractfile(f"package/dist/{name}").read() for name in RUNTIME}
    except (KeyError, AttributeError, EOFError, tarfile.TarError) as error:
        raise WebRuntimeError(f"what npm fetched is not onnxruntime-web {VERSION}: {MEND}") from error
    for name, digest in RUNTIME.items():
        if hashlib.sha256(content[name]).hexdigest() != digest:
            raise WebRuntimeError(f"{name}, as npm fetched it, has another check sum: it was altered; nothing was kept")
    return content


def is_known(folder: Path) -> bool:
    """Whether a folder holds that version, unaltered."""
    return all((folder / name).is_file() and hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
               for name, digest in RUNTIME.items())
