"""What a network's provenance says of where it comes from, and how much of that others may read.

A provenance is JSON from a file, which may hold anything anywhere: what is not as our own runs
write it counts as not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath

from gapkd.files.checkpoints import WEIGHTS, find_checkpoint, own_metadata, read_metadata, sha256
from gapkd.files.download import is_address
from gapkd.files.storage import data_folder
from gapkd.settings import FILES, DistillConfig, TrainConfig, command_line, shareable

COMMON = ("generator.safetensors", "best.safetensors", "discriminator.safetensors", WEIGHTS)
"""Names that the files of all runs have."""
ANCESTORS = ("started_from", "converted_from")
"""Under which names a provenance holds that of an earlier network."""


def provenance_of(path: str | Path) -> dict:
    """Where a network's file comes from, for `save_pretrained`: what it says itself; of another
    repository's file, its name and checksum."""
    file = find_checkpoint(path)
    found, digest = as_dict(read_metadata(file)["provenance"]), sha256(file)
    if own_metadata(file) is None:
        return {"converted_from": found | {"file": named(str(path)), "sha256": digest}}
    sums = data_folder() / "SHA256SUMS"
    if sums.is_file() and digest in sums.read_text().split():  # embedded: see data/README.md
        return {"license": "mit"} | found
    return found


def public(provenance: Mapping) -> dict:
    """A provenance without what belongs to one machine or one day, also of earlier networks."""
    kept = dict(provenance)
    if isinstance(settings := kept.pop("settings", None), dict):
        names = {key: named(settings[key]) for key in FILES if isinstance(settings.get(key), str)}
        others = {key: value for key, value in settings.items() if key not in FILES}
        kept["settings"] = shareable(others) | names
    return kept | {key: public(kept[key]) for key in ANCESTORS if isinstance(kept.get(key), dict)}


def named(file: str) -> str:
    """A file by its name; where all runs call it the same, with the run's; a hub's by its whole
    address."""
    if file.startswith("hf://"):
        return file
    path = PurePath(file.partition("#")[0] if is_address(file) else file.replace("\\", "/"))
    in_a_run = path.name in COMMON and path.parent.name
    return f"{path.parent.name}/{path.name}" if in_a_run else path.name


def runs_of(provenance: Mapping) -> tuple[list[dict], dict]:
    """The runs that made the weights, the oldest first, each with the dict of its settings; and the
    provenance of the first file that they were translated from ({}: they were not)."""
    source, run = {}, as_dict(provenance)
    while earlier := as_dict(run.get("converted_from")):
        source = run = earlier
    runs = []
    while run:
        runs.insert(0, run | {"settings": as_dict(run.get("settings"))})
        run = as_dict(run.get("started_from"))
    return runs, source


def command_of(run: dict, n: int) -> str:
    """The command that repeats the n-th of `runs_of`, as far as it is known; "": not at all."""
    cls = {"distill": DistillConfig, "teacher": TrainConfig}.get(str(run.get("command")))
    if cls is None:
        return ""
    changes = {"images": run["images"]} if "images" in numbers(run) else {}  # it may have stopped
    if n > 1:
        changes["start_from"] = f"runs/stage{n - 1}"
    command = f"gapkd {run['command']}"
    try:
        return f"{command_line(command, cls, run['settings'] | changes)} --out runs/stage{n}"
    except (TypeError, AttributeError):  # settings that no run had
        return command


def as_dict(value: object) -> dict:
    """What is no dict is taken for an empty one."""
    return value if isinstance(value, dict) else {}


def numbers(values: object) -> dict[str, float]:
    """What is a number among values, of a size that a measured one can have."""
    return {str(name): value for name, value in as_dict(values).items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
            and abs(value) < 1e18}
