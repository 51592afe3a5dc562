"""Networks on disk: safetensors with the architecture and its provenance in the metadata. Nothing is executed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from gapkd.stylegan2 import Discriminator, Generator

KINDS = {"stylegan2-generator": Generator, "stylegan2-discriminator": Discriminator}


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: unreadable, truncated, hostile, or of another architecture."""


def data_path(name: str) -> Path:
    """Where an embedded file lies: $GAPKD_DATA, or the `data` folder of the repository.

    Raises FileNotFoundError, in one sentence, when it is not there.
    """
    folder = Path(os.environ.get("GAPKD_DATA") or Path(__file__).resolve().parent.parent / "data")
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
        aside.unlink(missing_ok=True)
        kept = "; the file that was there before is untouched" if path.exists() else ""
        raise OSError(error.errno, f"could not write {path.name} ({error.strerror}): free some space, make "
                                   f"the folder writable or choose another{kept}") from error
    return path


def _sync_folder(folder: Path) -> None:
    """Make a rename in it survive a power cut (folders cannot be synchronised everywhere: then it is left out)."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def save_network(network: Generator | Discriminator, path: str | Path, provenance: dict | None = None) -> Path:
    """Save a network as safetensors.

    Args:
        provenance: settings, seed, commit, metrics...; anything JSON can hold, kept in the metadata.
    """
    kind = next(name for name, cls in KINDS.items() if type(network) is cls)
    tensors = {k: v.detach().cpu().clone().contiguous() for k, v in network.state_dict().items()}
    metadata = {"gapkd": "1", "kind": kind, "architecture": json.dumps(network.architecture()),
                "provenance": json.dumps(provenance or {})}
    return write_atomically(path, to_bytes(tensors, metadata))


def read_metadata(path: str | Path) -> dict:
    """{"kind", "architecture", "provenance"} of a gapkd safetensors file, without its weights."""
    return _read(path, weights=False)[0]


def load_generator(path: str | Path) -> Generator:
    """Load a generator, in eval mode, on the CPU, gradients off.

    Args:
        path: a safetensors file written by gapkd, or the name of an embedded one ("toyfaces32").
    Raises CheckpointError when the file is missing, truncated, not a checkpoint, or holds something else.
    """
    return _load(path, "stylegan2-generator")


def load_discriminator(path: str | Path) -> Discriminator:
    """Load a discriminator; as `load_generator`."""
    return _load(path, "stylegan2-discriminator")


def find_checkpoint(path: str | Path) -> Path:
    """The file itself, or the embedded file of that name."""
    path = Path(path)
    if not path.exists() and path.name == str(path) and not path.suffix:
        try:
            return data_path(f"{path}.safetensors")
        except FileNotFoundError:
            pass
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}: give a file, or the name of an embedded network "
                              "such as toyfaces32")
    return path


def sha256(path: str | Path) -> str:
    """Checksum of a network's file, or of the embedded network of that name."""
    return hashlib.sha256(find_checkpoint(path).read_bytes()).hexdigest()


def _read(path: str | Path, weights: bool) -> tuple[dict, dict[str, torch.Tensor]]:
    path = find_checkpoint(path)
    try:
        with safe_open(path, framework="pt") as file:
            raw = file.metadata() or {}
            tensors = {k: file.get_tensor(k) for k in file.keys()} if weights else {}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, MemoryError) as error:
        raise CheckpointError(f"{path.name} is not a whole safetensors file ({error}): it is truncated or of another "
                              "kind; fetch or save it again") from error
    try:
        metadata = {"kind": raw["kind"], "architecture": json.loads(raw["architecture"]),
                    "provenance": json.loads(raw["provenance"])}
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path.name} is a safetensors file, but not one of gapkd's: its metadata names no "
                              "network") from error
    return metadata, tensors


def _load(path: str | Path, kind: str):
    metadata, tensors = _read(path, weights=True)
    name = Path(path).name
    if metadata["kind"] != kind:
        raise CheckpointError(f"{name} holds a {metadata['kind']}, but a {kind} was asked for")
    try:
        with torch.device("meta"):  # compare shapes first: a hostile size then costs no memory
            KINDS[kind](**metadata["architecture"]).load_state_dict(tensors, assign=True)
        with torch.random.fork_rng():
            network = KINDS[kind](**metadata["architecture"])
        network.load_state_dict(tensors)
    except (TypeError, ValueError, KeyError, IndexError, RuntimeError, AttributeError) as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise CheckpointError(f"the weights in {name} do not fit the architecture its metadata names ({first}): "
                              "the file is damaged or was edited") from error
    return network.eval().requires_grad_(False)
