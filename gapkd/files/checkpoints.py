"""Networks on disk: our own as safetensors with architecture and provenance in the metadata, and those of other
repositories, told apart by their content. Nothing in a file is executed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from gapkd.files.download import AddressError, fetch, is_address
from gapkd.files.foreign import ForeignError, find_network
from gapkd.files.pickles import LEGACY_MAGIC, UnreadableError, read_pickle, read_torch
from gapkd.networks.stylegan2 import Discriminator, Generator
from gapkd.networks.stylegan3 import AliasFreeGenerator

LEGACY_HEAD = LEGACY_MAGIC.to_bytes(10, "little")  # in the first pickle of a torch.save file without zip
KINDS = {"stylegan2-generator": Generator, "stylegan3-generator": AliasFreeGenerator,
         "stylegan2-discriminator": Discriminator}
WEIGHTS, CONFIG = "model.safetensors", "config.json"  # in a folder of gapkd.sharing.hub
FORMAT = "1"
FOLDER_FORMAT = "2"  # of config.json: the architecture lies flat in it; in "1" it was a part of its own


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: unreadable, truncated, hostile, or of another architecture."""


def data_folder() -> Path:
    """Where the embedded files lie: $GAPKD_DATA, or the `data` folder of the repository."""
    return Path(os.environ.get("GAPKD_DATA") or Path(__file__).resolve().parents[2] / "data")


def data_path(name: str) -> Path:
    """Where an embedded file lies. Raises FileNotFoundError, in one sentence, when it is not there."""
    folder = data_folder()
    if not (folder / name).is_file():
        raise FileNotFoundError(f"the embedded file {name} is not in {folder}: work in a clone of the repository, "
                                "or set GAPKD_DATA to its data folder")
    return folder / name


def write_atomically(path: str | Path, content: bytes) -> Path:
    """Write a file so that it is there whole or not at all: write aside, fsync, rename.

    Raises OSError with one sentence; a file that was there before is then untouched.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.partial")
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
        kept = "; the file that was there before is untouched" if path.exists() else ""
        raise OSError(f"could not write {path} ({error.strerror}): free some space, make the folder writable or choose "
                      f"another{kept}") from error
    return path


def new_folder(folder: str | Path) -> Path:
    """The path, if a folder can be made there. Raises ValueError, in one sentence, where it cannot."""
    if not str(folder) or not str(folder).isprintable():
        raise ValueError(f"{str(folder)!r} cannot name a folder: choose another name for it")
    folder = Path(folder)
    if os.path.lexists(folder):
        raise ValueError(f"{folder} exists already: remove it or choose another folder")
    above = next(parent for parent in folder.absolute().parents if os.path.exists(parent))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"{folder} cannot be made, since {above} is {'not writable' if above.is_dir() else 'a file'}: "
                         "choose another folder")
    return folder


def write_folder(folder: str | Path, contents: Mapping[str, bytes]) -> Path:
    """Write a new folder of files so that it is there whole or not at all: write aside, fsync, rename.

    Raises ValueError when something of that name is there, OSError with one sentence; nothing is then left behind.
    """
    folder = new_folder(folder)
    aside = folder.with_name(f".gapkd-{uuid.uuid4().hex[:12]}.partial")
    try:
        aside.mkdir(parents=True)
        for name, content in contents.items():
            write_atomically(aside / name, content)
        os.rename(aside, folder)
        _sync_folder(folder.parent)
    except OSError as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise OSError(f"could not write the folder {folder} ({cause.strerror}): free some space, make the folder above "
                      "it writable or choose another; nothing of it was left behind") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _sync_folder(folder: Path) -> None:
    """Make a rename in it survive a power cut (folders cannot be synchronised everywhere: then it is left out)."""
    if hasattr(os, "O_DIRECTORY"):
        with suppress(OSError):  # the file itself is there already, and whole
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def save_network(network: Generator | AliasFreeGenerator | Discriminator, path: str | Path,
                 provenance: dict | None = None) -> Path:
    """Save a network as safetensors.

    Args:
        provenance: settings, seed, commit, metrics...; anything JSON can hold, kept in the metadata.
    """
    return write_atomically(path, network_bytes(network, provenance))


def kind_of(network: Generator | AliasFreeGenerator | Discriminator) -> str:
    """What files call it, a key of KINDS."""
    return next(name for name, cls in KINDS.items() if type(network) is cls)


def network_bytes(network: Generator | AliasFreeGenerator | Discriminator, provenance: dict | None = None) -> bytes:
    """The content of the file that `save_network` writes."""
    tensors = {k: v.detach().cpu().clone().contiguous() for k, v in network.state_dict().items()}
    metadata = {"format": "pt", "gapkd": FORMAT, "kind": kind_of(network), "architecture": json.dumps(network.architecture()),
                "provenance": json.dumps(provenance or {})}
    return to_bytes(tensors, metadata)


def read_metadata(path: str | Path) -> dict:
    """{"kind", "architecture", "provenance"} of a network's file; of a foreign one, of its generator if it has one."""
    return _metadata(find_checkpoint(path))


def _metadata(path: Path) -> dict:
    return (_read(path, weights=False) if recognise(path) == "safetensors" else _read_foreign(path))[0]


def load_generator(path: str | Path) -> Generator | AliasFreeGenerator:
    """Load a generator, in eval mode, on the CPU, gradients off.

    Args:
        path: a file, its address (see gapkd.files.download), the name of an embedded one ("toyfaces32"), or a folder
        that
            `gapkd share` wrote. The file is gapkd's own safetensors, a .pkl of NVIDIA's (StyleGAN2 or 3), or a .pt in
            rosinality's layout; of those, the averaged weights are taken (G_ema, g_ema).
    Raises CheckpointError when the file is missing, truncated, not a checkpoint, hostile, or holds something else.
    """
    return _load(path, "generator")


def load_discriminator(path: str | Path) -> Discriminator:
    """Load a discriminator; as `load_generator`."""
    return _load(path, "discriminator")


def find_checkpoint(path: str | Path) -> Path:
    """The file itself, the file behind an address, the embedded file of that name, or the weights of a folder that
    gapkd.sharing.hub wrote, whose config.json must agree with them."""
    if is_address(path):
        try:
            return fetch(str(path))
        except AddressError as error:
            raise CheckpointError(str(error)) from error
    path = Path(path)
    if not path.exists() and path.name == str(path) and not path.suffix:
        try:
            return data_path(f"{path}.safetensors")
        except FileNotFoundError:
            pass
    if path.is_dir():
        return _shared_weights(path)
    if not path.is_file():
        embedded = ", ".join(sorted(file.stem for file in data_folder().glob("*.safetensors")))
        raise CheckpointError(f"there is no checkpoint {path}: give a file, or the name of an embedded network "
                              f"({embedded or f'there is none in {data_folder()}'})")
    return path


def _shared_weights(folder: Path) -> Path:
    """The weights in a folder of gapkd.sharing.hub. Raises CheckpointError unless they and config.json, which may be
    missing, agree."""
    weights, config = folder / WEIGHTS, folder / CONFIG
    if not weights.is_file():
        if config.is_file():
            raise CheckpointError(f"{folder} holds {CONFIG}, but no {WEIGHTS}: fetch the folder again, whole")
        raise CheckpointError(f"{folder} is a folder: name the file in it, for example "
                              f"{folder / 'generator.safetensors'}")
    if not config.is_file():
        return weights
    mend = f"fetch the folder again, or remove {CONFIG} if the weights are the right ones"
    try:
        with open(config, "rb") as file:
            said = json.loads(file.read(2**20))  # the largest architecture is a thousandth of that
        written, kind = said["gapkd_format"], said["kind"]
        architecture = {**said["architecture"]} if written == "1" else said
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{config} cannot be read as the description of a network ({type(error).__name__}): "
                              f"{mend}") from error
    if written not in ("1", FOLDER_FORMAT):
        raise CheckpointError(f"{config} is of the format {repr(written)[:20]}, this gapkd reads {FOLDER_FORMAT!r}: "
                              "install a newer gapkd")
    found = _metadata(weights)
    known = found["architecture"] if isinstance(found["architecture"], dict) else {}
    wrong = ["kind"] if kind != found["kind"] else []
    wrong += sorted(k for k in known if architecture.get(k, ...) != known[k])
    if wrong:
        names = ", ".join(name for name in wrong[:5] if name.isidentifier()) or "the architecture"
        raise CheckpointError(f"{config} and {WEIGHTS} beside it disagree about {names}: one of the two was changed; "
                              f"{mend}")
    return weights


def sha256(path: str | Path) -> str:
    """Checksum of a network's file, of a shared folder's weights, or of the embedded network of that name."""
    return hashlib.sha256(find_checkpoint(path).read_bytes()).hexdigest()


KNOWN_HEADS = {b"\x89PNG": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture", b"\x1f\x8b": "a gzip archive",
               b"\x89HDF": "an HDF5 file", b"<!": "a web page (did the download want a login?)", b"<h": "a web page",
               b"7z\xbc\xaf": "a 7z archive", b"version https://git-lfs": "a Git LFS pointer, not the file itself"}


def recognise(path: Path) -> str:
    """"safetensors", "torch" (torch.save) or "pickle" (NVIDIA), by a file's first bytes.

    Raises CheckpointError that says what it is instead.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    if head[4:9] == b"\0\0\0\0{":  # the length of the header, which begins with any byte, then the header
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return "torch"
    if head.startswith(b"\x80"):
        return "torch" if LEGACY_HEAD in head else "pickle"
    what = next((kind for start, kind in KNOWN_HEADS.items() if head.startswith(start)),
                "empty" if not head else "text" if all(b >= 32 or b in b"\t\r\n" for b in head[:63]) and head.isascii()
                else "of an unknown kind")
    raise CheckpointError(f"{_title(path)} is {what}: expected a network as .safetensors (gapkd), .pkl (NVIDIA's "
                          "StyleGAN2 and 3) or .pt (rosinality's layout)")


def _read_foreign(path: Path, kind: str | None = None) -> tuple[dict, dict[str, torch.Tensor]]:
    """Metadata and weights of the "generator" or "discriminator" (None: either) in another repository's file."""
    read = read_torch if recognise(path) == "torch" else read_pickle
    try:
        found = find_network(read(path.read_bytes()), kind, path.name)
    except UnreadableError as error:
        raise CheckpointError(f"{path.name} cannot be read as a network: {error}") from error
    except (ForeignError, OSError) as error:
        raise CheckpointError(str(error)) from error
    except Exception as error:  # whatever a hostile file brings about
        raise CheckpointError(f"{path.name} is not laid out as a network ({type(error).__name__})") from error
    provenance = {"source": found.source, "file": path.name}
    return {"kind": found.kind, "architecture": found.architecture, "provenance": provenance}, found.state


def _title(path: Path) -> str:
    """What a file is called in messages: its name; for shared weights, all of one name, with the folder's."""
    return str(Path(path.parent.name, path.name)) if path.name == WEIGHTS else path.name


def _read(path: Path, weights: bool) -> tuple[dict, dict[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            raw = file.metadata() or {}
            tensors = {k: file.get_tensor(k) for k in file.keys()} if weights else {}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, MemoryError) as error:
        raise CheckpointError(f"{_title(path)} is not a whole safetensors file ({error}): it is truncated or of "
                              "another kind; fetch or save it again") from error
    try:
        metadata = {"kind": raw["kind"], "architecture": json.loads(raw["architecture"]),
                    "provenance": json.loads(raw["provenance"])}
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{_title(path)} is a safetensors file, but not one of gapkd's: its metadata names no "
                              "network") from error
    return metadata, tensors


def _check_plausible(architecture: dict) -> None:
    """Raise ValueError for numbers that no network has, before they are looped over."""
    limits = {"resolution": 4096, "mapping_layers": 64, "z_dim": 2**16, "w_dim": 2**16, "c_dim": 2**20,
              "mbstd_group": 2**10}
    for name, most in limits.items():
        if not 0 <= architecture.get(name, 0) <= most:
            raise ValueError(f"{name} is {architecture[name]}")


def _load(path: str | Path, kind: str):
    path = find_checkpoint(path)
    name = _title(path)
    metadata, tensors = _read(path, weights=True) if recognise(path) == "safetensors" else _read_foreign(path, kind)
    if metadata["kind"] not in KINDS or not metadata["kind"].endswith(f"-{kind}"):
        raise CheckpointError(f"{name} is a file of the kind {metadata['kind']}, but a {kind} was asked for")
    if not all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point()):
        raise CheckpointError(f"{name} holds weights that are not finite: it is damaged, or its training diverged")
    try:
        _check_plausible(metadata["architecture"])
        with torch.device("meta"):  # compare shapes first: a hostile size then costs no memory
            KINDS[metadata["kind"]](**metadata["architecture"]).load_state_dict(tensors, assign=True)
        with torch.random.fork_rng():
            network = KINDS[metadata["kind"]](**metadata["architecture"])
        network.load_state_dict(tensors)
    except Exception as error:  # whatever a hostile architecture brings about
        first = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise CheckpointError(f"the weights in {name} do not fit the architecture that it names ({first}): "
                              "the file is damaged or was edited") from error
    return network.eval().requires_grad_(False)
