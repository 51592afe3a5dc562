"""Networks on disk: our own as safetensors, with architecture and provenance in the metadata, and
those of other repositories, told apart by their content. Nothing in a file is executed."""

from __future__ import annotations

import difflib
import json
import os
import re
import warnings
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import nn

from gapkd.files import storage
from gapkd.files.download import (
    CONFIG,
    HUB_OPTIONS,
    REPOSITORY,
    WEIGHTS,
    AddressError,
    fetch,
    is_address,
)
from gapkd.files.foreign import ForeignError, altered, find_network, outline
from gapkd.files.pickles import UnreadableError, read
from gapkd.networks.base import StyleGenerator
from gapkd.networks.families import NETWORKS, build
from gapkd.networks.stylegan2 import Discriminator
from gapkd.parallel import seeded

FORMAT = "1"
DTYPES = torch.float16, torch.bfloat16, torch.float32, torch.float64  # of weights
LONGEST_MESSAGE = 800
JOIN = "are not read: join them to one state dict, and save that"
FOLDER_FORMAT = "2"  # of config.json
ENDINGS = ".safetensors", ".pkl", ".pt", ".pth", ".bin", ".ckpt"  # of networks' files
OWN = "generator.safetensors"  # in the folder of a training
HUB_NAMES = "pytorch_model.bin", "pytorch_model.pt"  # other projects' weights in a folder
MENDS = storage.NOT_FETCHED | {
    "archive": "unpack it, and give the network's file in it",
    "protocol": "save it with protocol 2 or newer",
    **dict.fromkeys(("HDF5", "GGUF", "numpy", "ONNX"), "give the .pkl or .pt it was made from")}
"""A word of what a file is that should be a network -> what to do about it."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: unreadable, truncated, hostile, or of another kind. Its
    message is one line of printable characters, whatever a file has put into it."""

    def __init__(self, message: str):
        if len(message) > LONGEST_MESSAGE:  # what to do stands at the end
            half = LONGEST_MESSAGE // 2
            message = f"{message[:half]} ... {message[-half:]}"
        super().__init__(_one_line(message))


def _one_line(text: str) -> str:
    """Of printable characters alone."""
    return "".join(c if c.isprintable() else "?" for c in text)


# ---------------------------------------------------------------------------------------- writing


def network_bytes(network: nn.Module, provenance: dict | None = None) -> bytes:
    """The content of the file that `save_network` writes. Raises ValueError for what it could not
    be read from again."""
    for wrapper in ("_orig_mod", "module", "_orig_mod"):  # compiled, or for several GPUs, or both
        network = getattr(network, wrapper, network)
    if not hasattr(network, "architecture"):
        raise ValueError("what is saved is a generator or discriminator of gapkd, not a "
                         f"{type(network).__name__}")
    tensors = {name: tensor.detach().cpu().clone().contiguous()
               for name, tensor in network.state_dict().items()}
    with torch.device("meta"):
        wanted = type(network)(**network.architecture()).state_dict()
    odd = sorted(wanted.keys() ^ tensors.keys())
    if odd:
        raise ValueError(altered(odd) or f"{odd[0]} is not in a network of its architecture, or "
                         "missing: save it as it was before its layers were changed")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, not "
                             f"{tuple(wanted[name].shape)} as in a network of its architecture: "
                             "save it as it was before its layers were changed")
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{name} holds numbers of a kind ({tensor.dtype}) that could not be "
                             "loaded: save network.float()")
        if not tensor.float().isfinite().all():
            raise ValueError(f"{name} is not finite, and a file of such weights could not be "
                             "loaded: save the network as it was before its training diverged")
    try:
        known = json.dumps(dict(provenance or {}))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"provenance must be a dict of what JSON can hold ({error}): a number of "
                         "numpy's or torch's becomes one by .item()") from error
    metadata = {"format": "pt", "gapkd": FORMAT, "kind": network.kind,
                "architecture": json.dumps(network.architecture()), "provenance": known}
    return to_bytes(tensors, metadata)


def save_network(network: nn.Module, path: str | Path, provenance: dict | None = None) -> Path:
    """Save a generator of any family, or a discriminator, as safetensors. Its provenance (settings,
    seed, commit, metrics...) is a dict of what JSON can hold.

    Raises ValueError for another one, or for weights that are not finite; OSError. A file that was
    there before is then untouched.
    """
    return storage.write_atomically(path, network_bytes(network, provenance))


# ---------------------------------------------------------------------------------------- finding


def address_of(path: str | Path) -> str:
    """The address that a network's name stands for: its own, hf://user/name for user/name where
    neither that nor a folder `user` is here; "": it is a path, as runs/name always is."""
    name = str(path)
    if is_address(name):
        return name
    here = Path(name)
    on_hub = REPOSITORY.fullmatch(name) and here.suffix not in ENDINGS and here.parts[0] != "runs"
    return f"hf://{name}" if on_hub and not here.parent.exists() else ""


def find_checkpoint(path: str | Path, role: str = "", **hub: object) -> Path:
    """The file of a network, which is named as for `load_generator`. Raises CheckpointError when
    there is none, which lists the embedded ones of that role; TypeError for an option that no hub's
    client has."""
    if unknown := sorted(hub.keys() - HUB_OPTIONS):
        raise TypeError(f"unexpected argument {', '.join(unknown)}: what can be said of a hub's "
                        f"repository is {', '.join(HUB_OPTIONS)}")
    if str(path) == "":  # which Path takes for the folder that one stands in
        raise CheckpointError("a network's name is empty: give a file, or the name of an embedded "
                              "network")
    if address := address_of(path):
        try:
            path = fetch(address, **hub)
            if not address.startswith(("file:", "hf:")):
                _check_fetched(path, address)
        except AddressError as error:
            here = "" if address == str(path) else f"there is no checkpoint {path} here, and "
            raise CheckpointError(f"{here}{error}") from error
    path = Path(os.path.expanduser(path))
    embedded = storage.data_folder() / f"{path}.safetensors"
    try:
        if not path.exists() and path.name == str(path) and embedded.is_file():
            return embedded
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:  # a name that is too long, or none
        raise CheckpointError(f"{str(path)[:60]}... cannot be looked for "
                              f"({getattr(error, 'strerror', error)}): give a file, or the name of "
                              "an embedded network") from error
    if is_folder:
        return _shared_weights(path)
    if not is_file and os.path.lexists(path):
        raise CheckpointError(f"{path} is no file, but a pipe, a device or a link to nothing: give "
                              "a file")
    if not is_file:
        folder = storage.data_folder()
        known = [file.stem for file in sorted(folder.glob("*.safetensors")) if _is_a(role, file)]
        near = difflib.get_close_matches(path.stem.lower(), known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        listed = ", ".join(known) or f"there is none in {folder}"
        raise CheckpointError(f"there is no checkpoint {path}{hint}: give a file, or the name of "
                              f"an embedded network ({listed}), or a hub's repository, "
                              "hf://user/name")
    return path


def _check_fetched(file: Path, address: str) -> None:
    """A server may answer with a page of its own, as where it wants a login: the next try asks
    anew. What has its check sum stays."""
    try:
        recognise(file)
    except CheckpointError as error:
        if "#" in address:
            raise
        with suppress(OSError):  # of a cache that may only be read
            file.unlink()
        kept = f"remove {file}" if file.exists() else "what was fetched was removed"
        raise AddressError(f"{address}: {error}; {kept}") from error


def _is_a(role: str, file: Path) -> bool:
    with suppress(CheckpointError):
        return _open(file)[0].get("kind", "").endswith(role)
    return False


def _shared_weights(folder: Path) -> Path:
    """The weights in a folder of gapkd.sharing.hub; config.json, where it is there, must agree. Of
    the folder of a run, what it has to draw with."""
    if run := _network_of_run(folder):
        return run
    weights, config = folder / WEIGHTS, folder / CONFIG
    if not weights.is_file():
        return _only_network(folder)
    found = own_metadata(weights)
    if found is None or not config.is_file():
        return weights
    mend = f"fetch the folder again, or remove {CONFIG} if the weights are the right ones"
    try:
        with open(config, "rb") as file:
            said = json.loads(file.read(2**20))  # the largest architecture is a thousandth of that
        written = said["gapkd_format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{config} cannot be read as the description of a network "
                              f"({type(error).__name__}): {mend}") from error
    if written != FOLDER_FORMAT:
        raise CheckpointError(f"{config} is of the format {repr(written)[:20]}, this gapkd reads "
                              f"{FOLDER_FORMAT!r}: install a newer gapkd")
    known = {"kind": found["kind"], **found["architecture"]}
    wrong = [name for name, value in known.items() if said.get(name, ...) != value]
    if wrong:
        raise CheckpointError(f"{config} and {WEIGHTS} beside it disagree about "
                              f"{', '.join(wrong[:5])}: one of the two was changed; {mend}")
    return weights


def states_of(run: Path) -> list[Path]:
    """The checkpoints in the folder of a training, oldest first. A file of any other name than its
    count of images, such as a copy's, is somebody else's."""
    files = (run / "checkpoints").glob("*.pt")
    return sorted(file for file in files if re.fullmatch("[0-9]+", file.stem) and file.is_file())


def _network_of_run(folder: Path) -> Path | None:
    """The generator of a training, or its newest whole checkpoint if that came later."""
    folder = folder.parent if folder.name == "checkpoints" else folder
    if not (folder / "settings.json").is_file():
        return None
    own, states = folder / OWN, states_of(folder)
    later = [file for file in states if _is_later(file, own)] if own.is_file() else states
    other = own if own.is_file() else later[-1] if later else None
    if not other and (folder / "log.jsonl").is_file():
        raise CheckpointError(f"{folder} is a training that has not saved its networks yet: wait "
                              "for its first checkpoint, or start it with a shorter "
                              "checkpoint_every")
    found = next(filter(_is_whole, reversed(later)), other)
    if later and found != later[-1]:
        warnings.warn(_one_line(f"{later[-1]} cannot be read whole: {found.name}, which was saved "
                                "before it, is taken"), stacklevel=2)
    return found


def _is_later(state: Path, network: Path) -> bool:
    """Whether a checkpoint came after a network of its run: by the images that both have seen,
    since a copy's files are all of one age; by their age where that is not known."""
    with suppress(CheckpointError, TypeError, KeyError, ValueError):
        return int(state.stem) > int(own_metadata(network)["provenance"]["images"])
    return state.stat().st_mtime > network.stat().st_mtime


def _is_whole(state: Path) -> bool:
    with suppress(Exception), zipfile.ZipFile(state) as archive:  # it can raise almost anything
        return archive.testzip() is None
    return False


def _network_of_state(content: object, role: str | None) -> tuple[dict, dict] | None:
    """Metadata and weights of a network in a checkpoint of a training; None if it is none."""
    if not isinstance(content, dict) or not {"G_ema", "D", "opt_g", "about"} <= content.keys():
        return None
    about, D = json.loads(content["about"]), role == "discriminator"
    network, weights = about["networks"]["D" if D else "G"], content["D" if D else "G_ema"]
    if not (isinstance(network["kind"], str) and isinstance(network["architecture"], dict)
            and isinstance(about["provenance"], dict)
            and all(isinstance(value, torch.Tensor) for value in weights.values())):
        raise TypeError("not as it was written")
    return network | {"provenance": about["provenance"]}, weights


def _only_network(folder: Path) -> Path:
    """The one file of a network in a folder of any origin, or the one of a training's name."""
    try:
        files = _networks_among(folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read ({error.strerror})") from error
    known = [file for file in files if file.name in (OWN, *HUB_NAMES)]
    if len(files) == 1 or known:
        return (known or files)[0]
    if (folder / CONFIG).is_file() and not files:
        raise CheckpointError(f"{folder} holds {CONFIG}, but no {WEIGHTS}: fetch the folder again, "
                              "whole")
    if files and any(folder.glob("*.index.json")):
        raise CheckpointError(f"the weights in {folder} are split over {len(files)} files, which "
                              f"{JOIN}")
    files = files or _networks_among(folder.glob("*/*"))  # below, as diffusers has them
    names = ", ".join(str(file.relative_to(folder))[:60] for file in files[:5])
    listed = f"one of {names}" if files else "for example generator.safetensors"
    raise CheckpointError(f"{folder} is a folder: name the file in it, {listed}")


def _networks_among(files: Iterable[Path]) -> list[Path]:
    """Those that may hold a network by their ending, sorted."""
    return sorted(file for file in files if file.suffix.lower() in ENDINGS and file.is_file())


def sha256(path: str | Path) -> str:
    """Checksum of a network's file, found as by `find_checkpoint`."""
    return storage.sha256(find_checkpoint(path))


def recognise(path: Path) -> str:
    """"safetensors" or "pickle" (NVIDIA's, or by torch.save), by a file's first bytes.

    Raises CheckpointError that says what it is instead.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    if head[4:9] == b"\0\0\0\0{":  # the header's length, of any first byte, and the header
        return "safetensors"
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return "pickle"
    kind = storage.other_kind(head, path.suffix)
    mend = next((f"{mend}; " for word, mend in MENDS.items() if word in kind), "")
    raise CheckpointError(f"{_title(path)} is {kind}: {mend}expected a network as .safetensors "
                          "(gapkd), .pkl (NVIDIA's StyleGAN2 and 3) or .pt (rosinality's layout)")


# ---------------------------------------------------------------------------------------- reading


def load_generator(path: str | Path, **hub: object) -> StyleGenerator:
    """Load a generator, in eval mode, on the CPU, gradients off.

    Args:
        path: a file, its address (see gapkd.files.download), the name of an embedded one
            ("toyfaces32"), a folder that `gapkd share` wrote, or a hub's repository of such a
            folder ("user/name"; what is here by that name comes first, and "hf://user/name" is
            always the hub's). The file is gapkd's own safetensors, or a .pkl, .pt, .bin or
            .safetensors in which a network in NVIDIA's layout (StyleGAN2 or 3) or in rosinality's
            stands, under whatever name. Of several the averaged one is taken (G_ema, g_ema), and a
            warning says so.
        hub: revision, token, cache_dir, force_download, local_files_only, as huggingface_hub has
            them; they matter for a repository alone.

    Raises CheckpointError when the file is missing, truncated, not a checkpoint, hostile, or holds
    something else; TypeError for any other argument.
    """
    return _load(path, "generator", **hub)


def load_discriminator(path: str | Path) -> Discriminator:
    """Load a discriminator; as `load_generator`. Of a finished run's folder, its own."""
    own = Path(os.path.expanduser(path)) / "discriminator.safetensors"
    with suppress(OSError, ValueError):  # a path that none can be is told of below
        newer = find_checkpoint(path).suffix == ".pt"  # the run went on, and was stopped
        path = own if own.is_file() and not newer else path
    return _load(path, "discriminator")


def read_metadata(path: str | Path) -> dict:
    """{"kind", "architecture", "provenance"} of a network's file; of a foreign one, of its
    generator if it has one."""
    file = find_checkpoint(path)
    return own_metadata(file) or _read_foreign(file)[0]


@torch.inference_mode(False)  # else the weights could never be trained
def _load(path: str | Path, role: str, **hub: object) -> nn.Module:
    path = find_checkpoint(path, role, **hub)
    name, metadata = _title(path), own_metadata(path)
    if metadata:
        tensors = _open(path, weights=True)[1]
    else:
        metadata, tensors = _read_foreign(path, role)
    kind, architecture = metadata["kind"], metadata["architecture"]
    if kind not in NETWORKS or not kind.endswith(f"-{role}"):
        raise CheckpointError(f"{name} is a file of the kind {kind[:40]}, but a {role} was asked "
                              "for")
    if not all(t.dtype in DTYPES for t in tensors.values()):
        raise CheckpointError(f"{name} holds numbers of a kind that no network of gapkd has: save "
                              "it with float32 weights")
    try:  # first of all shapes: a hostile size then costs no memory
        outline(kind, architecture).load_state_dict(tensors, assign=True)
    except Exception as error:  # whatever a hostile architecture brings about
        raise _misfit(name, error) from error
    if not all(t.float().isfinite().all() for t in tensors.values()):  # as they will be used
        raise CheckpointError(f"{name} holds weights that are not finite: it is damaged, or its "
                              "training diverged")
    for key, t in tensors.items():
        if key.endswith("magnitude_ema") and not (t.float() > 0).all():  # its root is divided by
            raise CheckpointError(f"{name} holds a {key[-80:]} that is not above 0: it is damaged, "
                                  "or its training diverged")
    try:
        with seeded(0):  # the weights follow
            network = build(kind, architecture)
        network.load_state_dict(tensors)
    except Exception as error:
        raise _misfit(name, error) from error
    return network.eval().requires_grad_(False)


def _misfit(name: str, error: Exception) -> CheckpointError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return CheckpointError(f"the weights in {name} do not fit the architecture that it names "
                           f"({lines[-1].strip()[:200]}): the file is damaged or was edited")


def own_metadata(path: Path) -> dict | None:
    """What a file of our own says of its network; None: it does not claim to be one."""
    raw = _open(path)[0] if recognise(path) == "safetensors" else {}
    if "gapkd" not in raw:
        return None
    if raw["gapkd"] != FORMAT:
        raise CheckpointError(f"{_title(path)} is written in format {raw['gapkd'][:20]!r}, this "
                              f"gapkd reads {FORMAT!r}: install a newer gapkd")
    try:
        return {"kind": raw["kind"], "architecture": dict(json.loads(raw["architecture"])),
                "provenance": dict(json.loads(raw["provenance"]) or {})}
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{_title(path)} is a safetensors file, but not one of gapkd's: its "
                              "metadata names no network") from error


def _open(path: Path, weights: bool = False) -> tuple[dict, dict[str, torch.Tensor]]:
    """The header's metadata and, if asked for, the tensors of a safetensors file."""
    tensors = {}
    try:
        storage.check_utf8(path)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    try:
        with safe_open(path, framework="pt") as file:
            raw = file.metadata() or {}
            for name in file.keys() if weights else ():
                tensors[name] = file.get_tensor(name)
    except (SafetensorError, OSError, ValueError, MemoryError) as error:
        raise CheckpointError(f"{_title(path)} is not a whole safetensors file "
                              f"({str(error)[:200]}): it is truncated or of another kind; fetch or "
                              "save it again") from error
    return raw, tensors


def _read_foreign(path: Path, role: str | None = None) -> tuple[dict, dict[str, torch.Tensor]]:
    """Metadata and weights of the generator or discriminator (None: either) in another
    repository's file."""
    name = _title(path)
    try:
        if recognise(path) == "safetensors":
            content = _open(path, weights=True)[1]
        else:
            content = read(path.read_bytes())
        if own := _network_of_state(content, role):
            return own
        found = find_network(content, role)
    except CheckpointError:
        raise
    except (UnreadableError, ForeignError) as error:
        if re.search(r"-\d+-of-(?!0*1\.)\d+\.\w+$", path.name):
            raise CheckpointError(f"{name} is one of the files over which weights are split, which "
                                  f"{JOIN}") from error
        raise CheckpointError(f"{name} cannot be read as a network: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    except Exception as error:  # whatever a hostile file brings about
        raise CheckpointError(f"{name} is not laid out as a network ({type(error).__name__})"
                              ) from error
    if found.note and role:
        warnings.warn(_one_line(f"{name}: {found.note}"), stacklevel=4)
    provenance = {"source": found.source, "file": path.name}
    metadata = {"kind": found.kind, "architecture": found.architecture, "provenance": provenance}
    return metadata, found.state


def _title(path: Path) -> str:
    """What a file is called in messages: its name; for shared weights, all of one name, with the
    folder's."""
    common = path.name in (WEIGHTS, *HUB_NAMES)
    return str(Path(path.parent.name, path.name)) if common else path.name
