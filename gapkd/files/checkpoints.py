"""Networks on disk: our own as safetensors, with architecture and provenance in the metadata, and
those of other repositories, told apart by their content. Nothing in a file is executed."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import nn

from gapkd.files import storage
from gapkd.files.download import AddressError, fetch, is_address
from gapkd.files.foreign import ForeignError, find_network, outline
from gapkd.files.pickles import UnreadableError, read
from gapkd.networks.base import StyleGenerator
from gapkd.networks.families import NETWORKS, build
from gapkd.networks.stylegan2 import Discriminator

WEIGHTS, CONFIG = "model.safetensors", "config.json"  # in a folder of gapkd.sharing.hub
FORMAT = "1"
DTYPES = torch.float16, torch.bfloat16, torch.float32, torch.float64  # of weights
FOLDER_FORMAT = "2"  # of config.json: the architecture lies flat in it; in "1" it was a part
KNOWN_HEADS = {
    b"\x89PNG": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture", b"\x1f\x8b": "a gzip archive",
    b"\x89HDF": "an HDF5 file", b"<!": "a web page (did the download want a login?)",
    b"<h": "a web page", b"7z\xbc\xaf": "a 7z archive",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself"}


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: unreadable, truncated, hostile, or of another kind."""


# ---------------------------------------------------------------------------------------- writing


def network_bytes(network: nn.Module, provenance: dict | None = None) -> bytes:
    """The content of the file that `save_network` writes."""
    tensors = {name: tensor.detach().cpu().clone().contiguous()
               for name, tensor in network.state_dict().items()}
    metadata = {"format": "pt", "gapkd": FORMAT, "kind": network.kind,
                "architecture": json.dumps(network.architecture()),
                "provenance": json.dumps(provenance or {})}
    return to_bytes(tensors, metadata)


def save_network(network: nn.Module, path: str | Path, provenance: dict | None = None) -> Path:
    """Save a generator of any family, or a discriminator, as safetensors.

    Args:
        provenance: settings, seed, commit, metrics...; anything JSON can hold, for the metadata.
    """
    return storage.write_atomically(path, network_bytes(network, provenance))


# ---------------------------------------------------------------------------------------- finding


def find_checkpoint(path: str | Path) -> Path:
    """The file of a network.

    Args:
        path: the file itself, an address, the name of an embedded network, or a folder that
            gapkd.sharing.hub wrote, whose config.json must agree with its weights.

    Raises CheckpointError when there is none.
    """
    if is_address(path):
        try:
            return fetch(str(path))
        except AddressError as error:
            raise CheckpointError(str(error)) from error
    path = Path(path)
    embedded = storage.data_folder() / f"{path}.safetensors"
    try:
        if not path.exists() and path.name == str(path) and embedded.is_file():
            return embedded
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:  # a name that is too long
        raise CheckpointError(f"{str(path)[:60]}... cannot be looked for ({error.strerror}): give "
                              "a file, or the name of an embedded network") from error
    if is_folder:
        return _shared_weights(path)
    if not is_file:
        folder = storage.data_folder()
        known = ", ".join(sorted(file.stem for file in folder.glob("*.safetensors")))
        raise CheckpointError(f"there is no checkpoint {path}: give a file, or the name of an "
                              f"embedded network ({known or f'there is none in {folder}'})")
    return path


def _shared_weights(folder: Path) -> Path:
    """The weights in a folder of gapkd.sharing.hub; config.json, where it is there, must agree."""
    weights, config = folder / WEIGHTS, folder / CONFIG
    if not weights.is_file():
        if config.is_file():
            raise CheckpointError(f"{folder} holds {CONFIG}, but no {WEIGHTS}: fetch the folder "
                                  "again, whole")
        raise CheckpointError(f"{folder} is a folder: name the file in it, for example "
                              f"{folder / 'generator.safetensors'}")
    if not config.is_file():
        return weights
    mend = f"fetch the folder again, or remove {CONFIG} if the weights are the right ones"
    try:
        with open(config, "rb") as file:
            said = json.loads(file.read(2**20))  # the largest architecture is a thousandth of that
        written = said["gapkd_format"]
        architecture = said["architecture"] if written == "1" else said
        described = {"kind": said["kind"], **architecture}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{config} cannot be read as the description of a network "
                              f"({type(error).__name__}): {mend}") from error
    if written not in ("1", FOLDER_FORMAT):
        raise CheckpointError(f"{config} is of the format {repr(written)[:20]}, this gapkd reads "
                              f"{FOLDER_FORMAT!r}: install a newer gapkd")
    found = _metadata(weights)
    known = {"kind": found["kind"]}
    if isinstance(found["architecture"], dict):
        known |= found["architecture"]
    wrong = [name for name, value in known.items() if described.get(name, ...) != value]
    if wrong:
        names = ", ".join(name for name in wrong[:5] if name.isidentifier()) or "the architecture"
        raise CheckpointError(f"{config} and {WEIGHTS} beside it disagree about {names}: one of "
                              f"the two was changed; {mend}")
    return weights


def sha256(path: str | Path) -> str:
    """Checksum of a network's file, found as by `find_checkpoint`."""
    return storage.sha256(find_checkpoint(path))


def recognise(path: Path) -> str:
    """"safetensors" (ours) or "pickle" (NVIDIA's, or by torch.save), by a file's first bytes.

    Raises CheckpointError that says what it is instead.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    if head[4:9] == b"\0\0\0\0{":  # the header's length, which begins with any byte, and the header
        return "safetensors"
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return "pickle"
    what = "empty" if not head else "of an unknown kind"
    if head and head.isascii() and all(byte >= 32 or byte in b"\t\r\n" for byte in head):
        what = "text"
    for start, kind in KNOWN_HEADS.items():
        if head.startswith(start):
            what = kind
    raise CheckpointError(f"{_title(path)} is {what}: expected a network as .safetensors (gapkd), "
                          ".pkl (NVIDIA's StyleGAN2 and 3) or .pt (rosinality's layout)")


# ---------------------------------------------------------------------------------------- reading


def load_generator(path: str | Path) -> StyleGenerator:
    """Load a generator, in eval mode, on the CPU, gradients off.

    Args:
        path: a file, its address (see gapkd.files.download), the name of an embedded one
            ("toyfaces32"), or a folder that `gapkd share` wrote. The file is gapkd's own
            safetensors, a .pkl of NVIDIA's (StyleGAN2 or 3), or a .pt in rosinality's layout; of
            those, the averaged weights are taken (G_ema, g_ema).

    Raises CheckpointError when the file is missing, truncated, not a checkpoint, hostile, or holds
    something else.
    """
    return _load(path, "generator")


def load_discriminator(path: str | Path) -> Discriminator:
    """Load a discriminator; as `load_generator`."""
    return _load(path, "discriminator")


def read_metadata(path: str | Path) -> dict:
    """{"kind", "architecture", "provenance"} of a network's file; of a foreign one, of its
    generator if it has one."""
    return _metadata(find_checkpoint(path))


def _metadata(path: Path) -> dict:
    return (_read(path) if recognise(path) == "safetensors" else _read_foreign(path))[0]


def _load(path: str | Path, role: str) -> nn.Module:
    path = find_checkpoint(path)
    name = _title(path)
    if recognise(path) == "safetensors":
        metadata, tensors = _read(path, weights=True)
    else:
        metadata, tensors = _read_foreign(path, role)
    kind, architecture = metadata["kind"], metadata["architecture"]
    if kind not in NETWORKS or not kind.endswith(f"-{role}"):
        raise CheckpointError(f"{name} is a file of the kind {kind}, but a {role} was asked for")
    if not all(t.dtype in DTYPES for t in tensors.values()):
        raise CheckpointError(f"{name} holds numbers of a kind that no network of gapkd has: save "
                              "it with float32 weights")
    if not all(t.isfinite().all() for t in tensors.values()):
        raise CheckpointError(f"{name} holds weights that are not finite: it is damaged, or its "
                              "training diverged")
    try:
        # compare shapes first: a hostile size then costs no memory
        outline(kind, architecture).load_state_dict(tensors, assign=True)
        with torch.random.fork_rng():
            network = build(kind, architecture)
        network.load_state_dict(tensors)
    except Exception as error:  # whatever a hostile architecture brings about
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"the weights in {name} do not fit the architecture that it names "
                              f"({lines[-1].strip()}): the file is damaged or was edited"
                              ) from error
    return network.eval().requires_grad_(False)


def _read(path: Path, weights: bool = False) -> tuple[dict, dict[str, torch.Tensor]]:
    """Metadata and, if asked for, weights of a file of our own."""
    tensors = {}
    try:
        with safe_open(path, framework="pt") as file:
            raw = file.metadata() or {}
            for name in file.keys() if weights else ():  # noqa: SIM118 (not a dict)
                tensors[name] = file.get_tensor(name)
    except (SafetensorError, OSError, ValueError, MemoryError) as error:
        raise CheckpointError(f"{_title(path)} is not a whole safetensors file ({error}): it is "
                              "truncated or of another kind; fetch or save it again") from error
    try:
        metadata = {"kind": raw["kind"], "architecture": json.loads(raw["architecture"]),
                    "provenance": json.loads(raw["provenance"])}
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{_title(path)} is a safetensors file, but not one of gapkd's: its "
                              "metadata names no network") from error
    return metadata, tensors


def _read_foreign(path: Path, role: str | None = None) -> tuple[dict, dict[str, torch.Tensor]]:
    """Metadata and weights of the generator or discriminator (None: either) in another
    repository's file."""
    try:
        found = find_network(read(path.read_bytes()), role)
    except (UnreadableError, ForeignError) as error:
        raise CheckpointError(f"{path.name} cannot be read as a network: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    except Exception as error:  # whatever a hostile file brings about
        raise CheckpointError(f"{path.name} is not laid out as a network "
                              f"({type(error).__name__})") from error
    if found.note and role:
        warnings.warn(f"{path.name}: {found.note}", stacklevel=4)
    provenance = {"source": found.source, "file": path.name}
    metadata = {"kind": found.kind, "architecture": found.architecture, "provenance": provenance}
    return metadata, found.state


def _title(path: Path) -> str:
    """What a file is called in messages: its name; for shared weights, all of one name, with the
    folder's."""
    return str(Path(path.parent.name, path.name)) if path.name == WEIGHTS else path.name
