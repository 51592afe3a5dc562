"""What a network's provenance says of where it comes from, and how much of that is for others to read.

A provenance is JSON from a file, which may hold anything anywhere: what is not as our own runs write it counts as not
known.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath

from gapkd.files.checkpoints import WEIGHTS, data_folder, find_checkpoint, read_metadata, recognise, sha256
from gapkd.files.download import is_address
from gapkd.settings import FILES, shareable

DATA = data_folder()
COMMON = ("generator.safetensors", "best.safetensors", "discriminator.safetensors", WEIGHTS)
"""Names that the files of all runs have."""
ANCESTORS = ("started_from", "converted_from")
"""Under which names a provenance holds that of an earlier network."""
REAL = "real images, against other real ones"
SPACES = {"toyfaces": "gapkd's attribute network, which was trained on rendered toy faces: do not compare them with "
                      "figures in Inception's",
          "inception": "Inception"}
Figures = dict[str, float]


def provenance_of(path: str | Path) -> dict:
    """Where a network's file comes from, for `save_pretrained`: what it says itself; of another repository's file, its
    name and checksum."""
    file = find_checkpoint(path)
    found, digest = read_metadata(file)["provenance"], sha256(file)
    found = found if isinstance(found, dict) else {}
    if recognise(file) != "safetensors":
        return {"converted_from": found | {"file": named(str(path)), "sha256": digest}}
    sums = DATA / "SHA256SUMS"
    if sums.is_file() and digest in sums.read_text().split():  # embedded: data/README.md names their licence
        return {"license": "mit"} | found
    return found


def public(provenance: Mapping) -> dict:
    """A provenance without what belongs to one machine or one day, that of earlier networks included."""
    kept = dict(provenance)
    if isinstance(settings := kept.pop("settings", None), dict):
        files = {k: named(settings[k]) for k in FILES if isinstance(settings.get(k), str)}
        kept["settings"] = shareable({k: v for k, v in settings.items() if k not in FILES}) | files
    return kept | {name: public(kept[name]) for name in ANCESTORS if isinstance(kept.get(name), dict)}


def named(file: str) -> str:
    """A file by its name; where all runs call it the same, with the run's."""
    path = PurePath(file.partition("#")[0] if is_address(file) else file)
    return f"{path.parent.name}/{path.name}" if path.name in COMMON and path.parent.name else path.name


@dataclass(frozen=True)
class Measured:
    """Figures of this network, those beside them that give the scale (name of the column -> figures), how they were
    measured, on which data, and which network read the images (empty: not known)."""

    own: Figures
    scale: dict[str, Figures]
    how: list[str]
    dataset: str = ""
    judge: str = ""


@dataclass(frozen=True)
class Origin:
    """A provenance, read. Whatever is not known is empty."""

    provenance: dict

    @cached_property
    def source(self) -> dict:
        """The first file that these weights were translated from; {} if there is none."""
        found, earlier = {}, self.provenance
        while earlier := as_dict(earlier.get("converted_from")):
            found = earlier
        return found

    @cached_property
    def made(self) -> dict:
        """The provenance of the run that made the weights."""
        return self.source or self.provenance

    @cached_property
    def settings(self) -> dict:
        """Those of that run."""
        return as_dict(self.made.get("settings"))

    @property
    def licence(self) -> str:
        """Empty where none is known."""
        found = self.provenance.get("license") or self.made.get("license")
        return found if isinstance(found, str) else ""

    @property
    def teacher(self) -> str:
        """Empty where there was none."""
        return str(self.settings.get("teacher", "")) if self.made.get("command") == "distill" else ""

    @property
    def teacher_is_embedded(self) -> bool:
        """Whether it is one of the networks that come with gapkd."""
        return bool(re.fullmatch(r"\w{1,64}", self.teacher)) and (DATA / f"{self.teacher}.safetensors").is_file()

    @property
    def rendered(self) -> bool:
        """Whether toy faces are all that it has seen, itself and in the networks that it goes back to."""
        seen, made = [], self.made
        while made:
            seen.append(as_dict(made.get("settings")).get("data"))
            made = as_dict(made.get("started_from"))
        return (not self.teacher or self.teacher_is_embedded) and set(seen) == {"toyfaces"}

    @cached_property
    def measured(self) -> Measured | None:
        """The record of `gapkd evaluate`, or what `python -m tools.data_card` has left in the provenance."""
        record = as_dict(self.provenance.get("evaluation")) or as_dict(self.made.get("evaluation"))
        if (rows := record.get("rows")) and are_rows(rows):
            return from_record(record, rows)
        metrics = as_dict(self.made.get("metrics"))
        if metrics.keys() == {"real", "teacher"}:  # as tools.data_card writes them, about a teacher
            how = ["Taken over from the weights' provenance, where gapkd's maintainers have put them: measured against "
                   "rendered toy faces.", *_naming("toyfaces")]
            return Measured(numbers(metrics["teacher"]), {REAL: numbers(metrics["real"])}, how, "toyfaces", "toyfaces")
        how = ["Taken over from the weights' provenance, which does not say how they were measured."]
        return Measured(own, {}, how) if (own := numbers(metrics)) else None


def are_rows(rows: object) -> bool:
    """Whether they could be those of `gapkd.metrics.evaluation.evaluation_table`."""
    return isinstance(rows, list) and bool(rows) and all(isinstance(row, dict) and "name" in row for row in rows)


def from_record(record: dict, rows: list[dict]) -> Measured:
    """What a record of `gapkd evaluate` says; its last row is about this network."""
    data, space = str(record.get("data", "")), str(record.get("features", ""))
    teacher = record.get("teacher")
    names = {"real": REAL, "teacher": f"the teacher, {code(teacher)}"}
    scale = {names.get(str(row["name"]), code(row["name"])): numbers(row) for row in rows[:-1]}
    count = numbers(record)
    when = "".join(f", {name} {code(record[name])}" for name in ("commit", "hardware", "date") if name in record)
    how = [f"{count.get('samples', math.nan):,.0f} images a set, from latents of seed "
           f"{count.get('seed', math.nan):.0f}, without truncation and with the noise maps as stored, against as "
           f"many of {code(data)}. By `gapkd evaluate`{when}.",
           "Real images against other real images: the best that so few images can show.", *_naming(space)]
    if teacher:
        how.append("L1, perceptual distance, same class and correlation compare network and teacher at the same z: "
                   "pixels, features, and the categorical and continuous factors that a network reads off the images. "
                   "In brackets the chance level: this network's images against the teacher's of other z.")
    return Measured(numbers(rows[-1]), scale, how, data, "toyfaces" if space == "inception" else space)


def _naming(space: str) -> list[str]:
    """Of figures in a feature space, what their names say; nothing where it is not known."""
    network = SPACES.get(space, f"the network {code(space)}")
    return [f"FID and its kin are taken in the feature space of {network}. Their names end in that space and the "
            "number of images."] * bool(space)


def code(value: object) -> str:
    """Text of a file or reader as Markdown code, which neither ends the code nor the cell of a table."""
    text = " ".join(str(value).split())[:1500].replace("`", "'").replace("|", "/")
    return f"`{text or ' '}`"


def as_dict(value: object) -> dict:
    """A file may hold anything anywhere: what is no dict is taken for an empty one."""
    return value if isinstance(value, dict) else {}


def numbers(values: object) -> Figures:
    """What is a number of a size that a figure can have, among them."""
    return {str(k): v for k, v in as_dict(values).items()
            if isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e18}
